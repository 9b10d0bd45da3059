"""Scenes: what is played. A task with its engine's and its reward's numbers, the same for training, evaluation and
inspection.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.engine import Engine
from esper.leyline.actions import Blend
from esper.leyline.config import ConfigError
from esper.leyline.hypers import numbers
from esper.leyline.state import State
from esper.leyline.words import as_meant
from esper.runtime.build import DEVICES, find_device, make
from esper.runtime.own import is_own, load, recorded
from esper.runtime.own_trials import check_task, own_reward, try_step
from esper.runtime.policy_checkpoint import WHICH, load_policy, load_run
from esper.runtime.tasks import Task, begins_task, named, takes_path
from esper.simic.rewards import DEFAULT_REWARD, OwnReward, RewardMode, RewardParams, build_reward_params
from esper.tamiyo import scripted
from esper.tamiyo.baselines import HeuristicConfig
from esper.tamiyo.gradient import gradient_policy
from esper.tamiyo.observation import build_scales
from esper.tamiyo.policies import Policy, from_mask, heuristic_policy, random_policy
from esper.tolaria.slopes import birth_norms
from esper.urza.checkpoint import Checkpoint
from esper.utils.paths import user_path
from esper.utils.settings import Entry, SettingsError, Table, from_record, setting

OWN_FLAGS = {name: f"--{name.replace('_', '-')}" for name in ("task", "num_envs", "horizon", "backend", "device")}
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
      engine: values of ``Config`` and ``HyperParams`` by name; as ``esper.leyline.words`` reads them, such as
        ``slots=0+input:logits``.
      reward: mode, or py:module:name.
      rewards: values of ``RewardParams`` by name, but for gamma.
      gamma: discount per decision, of learner and shaping alike.
      heuristic: values of ``HeuristicConfig`` by name, for the rule of thumb that others are compared with.
      observation: values of ``Scales`` by name: units of what a policy sees.
    """

    task: str = "digits"
    horizon: int = 0
    engine: Table = field(default_factory=dict)
    reward: str = DEFAULT_REWARD.value
    rewards: Table = field(default_factory=dict)
    gamma: float = numbers(RewardParams)["gamma"].default
    heuristic: Table = field(default_factory=dict)
    observation: Table = field(default_factory=dict)


class Scene(NamedTuple):
    """Rules made concrete for a number of environments."""

    rules: Rules
    engine: Engine
    mode: RewardMode | OwnReward
    params: RewardParams
    task: Task


def rules_of(settings: Mapping[str, Any]) -> Rules:
    """The rules among a run's settings; what they do not name has its default."""
    given = from_record({entry.name: settings[entry.name] for entry in fields(Rules) if entry.name in settings})
    return Rules(**given)


def tasks_of(names: str) -> list[str]:
    """Tasks named with commas between; a comma after which no task begins belongs to the path before it.

    Raises:
      SettingsError: an empty name, or one twice.
    """
    tasks = list[str]()
    for part in names.split(","):
        if tasks and takes_path(tasks[-1]) and not begins_task(part):
            tasks[-1] += f",{part}"
        else:
            tasks.append(part)
    if "" in tasks or len(set(tasks)) < len(tasks):
        raise SettingsError(f"--task = {names!r}: expected different names with commas between")
    return tasks


def build_scene(rules: Rules, num_envs: int, backend: str, device: str | torch.device = "cpu") -> Scene:
    """Build the engine and the reward's numbers.

    Args:
      rules: what is played.
      num_envs: environments E.
      backend: how networks are run.
      device: where everything lives.

    Raises:
      SettingsError: a name or a value of ``--engine`` or ``--rewards`` is not allowed.
      ConfigError, DatasetError: the rest cannot be built, or one's own task or reward fails in a first step.
    """
    engine_numbers, reward_numbers = dict(rules.engine), dict(rules.rewards)
    if "gamma" in reward_numbers:
        raise SettingsError("--rewards: gamma: is a setting of its own (--gamma), which learner and shaping share")
    try:
        build_scales(rules.observation)
    except ConfigError as error:
        raise SettingsError(f"--observation: {error}") from None
    overrides = _own(engine_numbers) | ({"horizon": rules.horizon} if rules.horizon else {})
    task, place = named(rules.task), find_device(device, "--device")
    if is_own(rules.task):
        check_task(rules.task, task)
    try:
        engine = make(task, num_envs, place, backend, observation=rules.observation, **overrides)
    except ConfigError as error:
        raise SettingsError(f"--engine: {error}") from None if engine_numbers else error
    try:
        rewards: dict[str, Any] = {"gamma": rules.gamma, **task.rewards, **reward_numbers}
        params = build_reward_params(rewards, engine.config, place)
    except ConfigError as error:
        raise SettingsError(f"--rewards: {error}") from None
    scene = Scene(rules, engine, reward_of(rules.reward), params, task)
    if is_own(rules.task) or is_own(rules.reward):
        try_step(engine, scene.mode, params, (rules.task, rules.reward))
    return scene


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
    return own_reward(name, found)


def _own(given: Mapping[str, Entry]) -> dict[str, Any]:
    """The numbers of the engine.

    Raises:
      SettingsError: one that is a setting of its own.
    """
    for name in given:
        if name in OWN_FLAGS:
            raise SettingsError(f"--engine: {name}: is a setting of its own ({OWN_FLAGS[name]})")
    return dict(given)


@dataclass(frozen=True)
class SceneSettings:
    """Settings of commands that play: a run to follow, and what to play otherwise than it did."""

    run: str = setting("", "run directory of a learned policy; empty = baselines only")
    checkpoint: str = setting("latest", "which policy of the run", choices=WHICH)
    seed: int = setting(1, "seed of the environments; odd numbers are never trained on", low=0, high=2**40)
    device: str = setting("cpu", DEVICES)
    task: str = setting(
        RUNS, "preset, KIND:PATH or py:module:name (esper tasks lists them); auto = the run's first, digits without one"
    )
    horizon: int = setting(0, "decisions per episode; 0 = the run's, or the preset's", low=0, high=100_000)
    engine: Mapping[str, Entry] = setting({}, "numbers of the engine by name, over the run's own")
    reward: str = setting(
        RUNS, "reward that is summed up; auto = the run's, utility without one; else one of a run, or py:module:name"
    )
    rewards: Mapping[str, Entry] = setting({}, "numbers of the reward by name, over the run's own")
    heuristic: Mapping[str, Entry] = setting({}, "numbers of the rule of thumb by name, over the run's own")
    observation: Mapping[str, Entry] = setting({}, "units of what policies see, by name, over the run's own")
    greedy: bool = setting(False, "the learned policy takes its likeliest action instead of drawing one")

    def loaded(self) -> Checkpoint | None:
        """The run's checkpoint, if there is a run.

        Raises:
          CheckpointError: it cannot be read.
        """
        return load_run(user_path(self.run), self.checkpoint) if self.run else None

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
            heuristic=dict(base.heuristic) | dict(self.heuristic),
            observation=dict(base.observation) | dict(self.observation),
        )


def policies_of(scene: Scene, loaded: Checkpoint | None, greedy: bool) -> list[Policy]:
    """The policies to compare, the learned one first: a run's policy if there is one, heuristic, random and wait.

    Raises:
      CheckpointError: the run's policy cannot be restored.
    """
    codec = scene.engine.codec
    learned = [] if loaded is None else [load_policy(loaded, scene.engine.interface, greedy)]
    rule = heuristic_of(scene.rules.heuristic, scene.engine.config.blends)
    try:
        heuristic = heuristic_policy(codec, rule)
    except ValueError as error:
        raise SettingsError(f"--heuristic: {error}") from None
    return [*learned, heuristic, random_policy(codec), from_mask("wait", scripted.wait(codec))]


def heuristic_of(given: Table, blends: tuple[Blend, ...]) -> HeuristicConfig:
    """The rule of thumb's numbers.

    Args:
      given: values of ``HeuristicConfig`` by name.
      blends: those on offer; the first is taken where the default is not among them.

    Raises:
      SettingsError: an unknown name, or a value that is not allowed.
    """
    known = [entry.name for entry in fields(HeuristicConfig)]
    for name in given:
        if name not in known:
            raise SettingsError(f"--heuristic: {name}: unknown; known are {', '.join(known)}")
    read = dict[str, Any](given)
    if "rotation" in read:
        names = read["rotation"]
        read["rotation"] = tuple(names.split("+")) if isinstance(names, str) else names
    try:
        if "blend" in read:
            (read["blend"],) = as_meant("blends", read["blend"])
        elif HeuristicConfig.blend not in blends:
            read["blend"] = blends[0]
        return HeuristicConfig(**read)
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingsError(f"--heuristic: {error}") from None


def gradient_of(scene: Scene) -> Policy:
    """The policy that grows what the gradient of the validation loss is largest for; see ``birth_norms``."""
    engine = scene.engine
    samples = (engine.data.validation.inputs, engine.data.validation.targets)

    def promise(state: State, index: int) -> Tensor:
        return birth_norms(engine.structure, engine.hypers, state, engine.codec.actions[index], samples)

    return gradient_policy(engine.codec, promise)
