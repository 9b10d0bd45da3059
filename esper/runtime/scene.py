"""Scenes: what is played. A task with its engine's and its reward's numbers, the same for training, evaluation and
inspection.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import EnumMeta
from pathlib import Path
from typing import Any, NamedTuple, cast, get_type_hints

from torch import Tensor

from esper.engine import Engine
from esper.leyline.actions import Blend
from esper.leyline.config import Config, ConfigError
from esper.leyline.hypers import numbers
from esper.leyline.state import State
from esper.runtime.build import make
from esper.runtime.own import is_own, load, recorded
from esper.runtime.policy_checkpoint import CHECKPOINTS, load_policy, load_run
from esper.runtime.tasks import named
from esper.simic.rewards import OwnReward, RewardMode, RewardParams, build_reward_params
from esper.tamiyo import scripted
from esper.tamiyo.gradient import gradient_policy
from esper.tamiyo.policies import Policy, from_mask, heuristic_policy, random_policy
from esper.tolaria.slopes import birth_norms
from esper.urza.checkpoint import Checkpoint
from esper.utils.settings import SettingsError, Value, setting

OWN_FLAGS = {"task": "--task", "num_envs": "--num-envs", "horizon": "--horizon", "backend": "--backend"}
"""Arguments of ``make`` that are settings of their own."""

RUNS = "auto"
"""Value of a setting that follows the run, or the default without one."""

MODES = tuple(mode.value for mode in RewardMode)


@dataclass(frozen=True)
class Rules:
    """What is played, apart from how many environments.

    Attributes:
      task: name of a preset, a kind of dataset and its path, or py:module:name.
      horizon: decisions per episode; 0 = the preset's.
      engine: values of ``Config`` and ``HyperParams`` by name; enumerations by their words, and tuples of words or
        numbers with + between them, such as ``slots=0+input:logits``.
      reward: mode, or py:module:name.
      rewards: values of ``RewardParams`` by name, but for gamma.
      gamma: discount per decision, of learner and shaping alike.
    """

    task: str = "digits"
    horizon: int = 0
    engine: Mapping[str, Value] = field(default_factory=dict)
    reward: str = RewardMode.SHAPED.value
    rewards: Mapping[str, Value] = field(default_factory=dict)
    gamma: float = numbers(RewardParams)["gamma"].default


class Scene(NamedTuple):
    """Rules made concrete for a number of environments."""

    rules: Rules
    engine: Engine
    mode: RewardMode | OwnReward
    params: RewardParams


def rules_of(settings: Mapping[str, Any]) -> Rules:
    """The rules among a run's settings; what they do not name has its default."""
    return Rules(**{entry.name: settings[entry.name] for entry in fields(Rules) if entry.name in settings})


def tasks_of(names: str) -> list[str]:
    """Tasks named with commas between.

    Raises:
      SettingsError: an empty name, or one twice.
    """
    tasks = names.split(",")
    if "" in tasks or len(set(tasks)) < len(tasks):
        raise SettingsError(f"--task = {names!r}: expected different names with commas between")
    return tasks


def build_scene(rules: Rules, num_envs: int, backend: str) -> Scene:
    """Build the engine and the reward's numbers.

    Args:
      rules: what is played.
      num_envs: environments E.
      backend: how networks are run.

    Raises:
      SettingsError: a name or a value of ``--engine`` or ``--rewards`` is not allowed.
      ConfigError, DatasetError: the rest cannot be built.
    """
    engine_numbers, reward_numbers = dict(rules.engine), dict(rules.rewards)
    if "gamma" in reward_numbers:
        raise SettingsError("--rewards: gamma: is a setting of its own (--gamma), which learner and shaping share")
    overrides = _meant(engine_numbers) | ({"horizon": rules.horizon} if rules.horizon else {})
    try:
        task = named(rules.task)
        engine = make(task, num_envs, backend=backend, **overrides)
    except ConfigError as error:
        raise SettingsError(f"--engine: {error}") from None if engine_numbers else error
    try:
        params = build_reward_params({"gamma": rules.gamma, **task.rewards, **reward_numbers}, engine.config)  # type: ignore[dict-item]
    except ConfigError as error:
        raise SettingsError(f"--rewards: {error}") from None
    return Scene(rules, engine, reward_of(rules.reward), params)


def reward_of(name: str) -> RewardMode | OwnReward:
    """The reward of a name: a mode, or a function of the user's own; see ``esper.simic.rewards.OwnReward``.

    Raises:
      SettingsError: no such reward.
    """
    if name in MODES:
        return RewardMode(name)
    if not is_own(name):
        raise SettingsError(f"--reward = {name!r}: expected {' or '.join(MODES)} or py:module:name")
    found = load("--reward", name)
    if not callable(found):
        raise SettingsError(f"--reward = {name!r}: found a {type(found).__name__}; expected a function")
    return cast(OwnReward, found)


def own_policy(scene: Scene, place: str, name: str) -> Policy:
    """A policy of the user's own: what their function of the engine returns.

    Raises:
      SettingsError: the name means no such function.
    """
    if not is_own(name):
        raise SettingsError(f"{place} = {name!r}: expected py:module:name")
    found = load(place, name)
    policy = found(scene.engine) if callable(found) and not isinstance(found, Policy) else found
    if not isinstance(policy, Policy):
        raise SettingsError(
            f"{place} = {name!r}: found a {type(policy).__name__}; expected a function from an engine to a Policy"
        )
    return policy._replace(name=name)


def _meant(given: dict[str, Value]) -> dict[str, Any]:
    """Words of ``Config``'s enumerations as their members, lists such as ``0+input:logits`` as tuples of theirs; the
    other values as they are.
    """
    hints, found = get_type_hints(Config), dict[str, Any]()
    for name, value in given.items():
        if name in OWN_FLAGS or name == "device":
            raise SettingsError(f"--engine: {name}: is a setting of its own ({OWN_FLAGS.get(name, 'the CPU is used')})")
        kind = hints.get(name)
        if isinstance(kind, EnumMeta):
            words = [member.value for member in kind]  # type: ignore[var-annotated]
            if value not in words:
                raise SettingsError(f"--engine: {name} = {value!r}: expected {' or '.join(words)}")
            found[name] = kind(value)
        elif name == "slots":
            found[name] = tuple(int(word) if word.isdecimal() else word for word in str(value).split("+"))
        elif name == "blends":
            found[name] = tuple(_blend(word) for word in str(value).split("+"))
        else:
            found[name] = value
    return found


def _blend(word: str) -> Blend:
    known = {blend.name.lower(): blend for blend in Blend}
    if word not in known:
        raise SettingsError(f"--engine: blends: {word!r}: expected some of {', '.join(known)}, with + between")
    return known[word]


@dataclass(frozen=True)
class SceneSettings:
    """Settings of commands that play: a run to follow, and what to play otherwise than it did."""

    run: str = setting("", "run directory of a learned policy; empty = baselines only")
    checkpoint: str = setting("latest", "which policy of the run", choices=("latest", "best"))
    seed: int = setting(1, "seed of the environments; odd numbers are never trained on", low=0, high=2**40)
    task: str = setting(
        RUNS, "preset, KIND:PATH or py:module:name (esper tasks lists them); auto = the run's first, digits without one"
    )
    horizon: int = setting(0, "decisions per episode; 0 = the run's, or the preset's", low=0, high=100_000)
    engine: Mapping[str, Value] = setting({}, "numbers of the engine by name, over the run's own")
    reward: str = setting(
        RUNS, "reward that is summed up; auto = the run's, shaped without one; else one of a run, or py:module:name"
    )
    rewards: Mapping[str, Value] = setting({}, "numbers of the reward by name, over the run's own")
    greedy: bool = setting(False, "the learned policy takes its likeliest action instead of drawing one")

    def loaded(self) -> Checkpoint | None:
        """The run's checkpoint, if there is a run.

        Raises:
          CheckpointError: it cannot be read.
        """
        return load_run(Path(self.run) / CHECKPOINTS[self.checkpoint]) if self.run else None

    def rules(self, loaded: Checkpoint | None) -> Rules:
        """The run's rules, or the defaults, with what was asked for in their place.

        Another task than the run's first starts from its preset: the run's horizon and engine numbers are not its.
        """
        base = Rules() if loaded is None else rules_of(loaded.table["settings"])
        base = replace(base, task=tasks_of(base.task)[0])
        if self.task == RUNS:
            recorded("--task", base.task)
        if self.reward == RUNS:
            recorded("--reward", base.reward)
        if self.task not in (RUNS, base.task):
            base = replace(base, task=self.task, horizon=0, engine={})
        return Rules(
            task=base.task,
            horizon=self.horizon or base.horizon,
            engine=dict(base.engine) | dict(self.engine),
            reward=base.reward if self.reward == RUNS else self.reward,
            rewards=dict(base.rewards) | dict(self.rewards),
            gamma=base.gamma,
        )


def policies_of(scene: Scene, loaded: Checkpoint | None, greedy: bool) -> list[Policy]:
    """The policies to compare, the learned one first: a run's policy if there is one, heuristic, random and wait.

    Raises:
      CheckpointError: the run's policy cannot be restored.
    """
    codec = scene.engine.codec
    learned = [] if loaded is None else [load_policy(loaded, scene.engine.interface, greedy)]
    return [*learned, heuristic_policy(codec), random_policy(codec), from_mask("wait", scripted.wait(codec))]


def gradient_of(scene: Scene) -> Policy:
    """The policy that grows what the gradient of the validation loss is largest for; see ``birth_norms``."""
    engine = scene.engine
    samples = (engine.data.validation.inputs, engine.data.validation.targets)

    def promise(state: State, index: int) -> Tensor:
        return birth_norms(engine.structure, engine.hypers, state, engine.codec.actions[index], samples)

    return gradient_policy(engine.codec, promise)
