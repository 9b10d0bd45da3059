"""Scenes: what is played. A task with its engine's and its reward's numbers, the same for training, evaluation and
inspection.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch

from esper.engine import Engine
from esper.leyline.config import ConfigError, Determinism, Precision
from esper.leyline.hypers import numbers
from esper.runtime.build import DEVICES, find_device, make
from esper.runtime.own import is_own, load, recorded
from esper.runtime.own_flags import OWN_FLAGS, flags_of
from esper.runtime.own_trials import check_task, own_reward, try_step
from esper.runtime.policy_checkpoint import WHICH, load_run_to_play
from esper.runtime.run_blueprints import blueprint_from, kept_of
from esper.runtime.tasks import Task, begins_task, named, takes_path
from esper.simic.rewards import DEFAULT_REWARD, OwnReward, RewardMode, RewardParams, build_reward_params
from esper.tamiyo.observation import build_scales
from esper.tezzeret.backend import BackendError
from esper.tezzeret.blueprints import Document, DocumentError
from esper.urza.checkpoint import Checkpoint
from esper.utils.paths import user_path
from esper.utils.settings import Entry, SettingsError, Table, from_record, setting

RUNS = "auto"
"""Value of a setting that follows the run, or the default without one."""

LEVELS = tuple(level.value for level in Determinism)

PRECISIONS = tuple(precision.value for precision in Precision)

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
      bandit: values of ``BanditConfig`` by name, for all bandits.
      observation: values of ``Scales`` by name: units of what a policy sees.
      deterministic: what the bits of an environment may depend on; ``Config.deterministic``.
      precision: of features and matrix products; ``Config.precision``.
      documents: further blueprints, where a slot is for them.
    """

    task: str = "digits"
    horizon: int = 0
    engine: Table = field(default_factory=dict)
    reward: str = DEFAULT_REWARD.value
    rewards: Table = field(default_factory=dict)
    gamma: float = numbers(RewardParams)["gamma"].default
    heuristic: Table = field(default_factory=dict)
    bandit: Table = field(default_factory=dict)
    observation: Table = field(default_factory=dict)
    deterministic: str = Determinism.ORDINARY.value
    precision: str = Precision.FLOAT32.value
    documents: tuple[Document, ...] = ()


class Scene(NamedTuple):
    """Rules made concrete for a number of environments."""

    rules: Rules
    engine: Engine
    mode: RewardMode | OwnReward
    params: RewardParams
    task: Task


def rules_of(settings: Mapping[str, Any]) -> Rules:
    """The rules among a run's settings; what they do not name has its default.

    A run of an earlier version has its precision among the numbers of the engine.
    """
    engine = dict(settings.get("engine", {}))
    if "precision" not in settings and "precision" in engine:
        settings = {**settings, "precision": engine.pop("precision"), "engine": engine}
    given = from_record({entry.name: settings[entry.name] for entry in fields(Rules) if entry.name in settings})
    return Rules(**given)


def tasks_of(names: str, place: str = "--task") -> list[str]:
    """Tasks named with commas between; a comma after which no task begins belongs to the path before it.

    Args:
      names: as they were written.
      place: where, for the message.

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
        raise SettingsError(f"{place} = {names!r}: expected different names with commas between")
    return tasks


def build_scene(rules: Rules, num_envs: int, backend: str, device: str | torch.device = "cpu") -> Scene:
    """Build the engine and the reward's numbers.

    Args:
      rules: what is played.
      num_envs: environments E.
      backend: how networks are run.
      device: where everything lives.

    Raises:
      SettingsError: a name or a value of ``--engine`` or ``--rewards`` is not allowed, or the backend that was asked
        for cannot do what they and other flags say.
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
    overrides |= {"deterministic": rules.deterministic, "precision": rules.precision}
    task, place = named(rules.task), find_device(device, "--device")
    if is_own(rules.task):
        check_task(rules.task, task)
    try:
        task, engine = _with_documents(
            task,
            rules.documents,
            lambda task: make(task, num_envs, place, backend, observation=rules.observation, **overrides),
        )
    except DocumentError:
        raise
    except BackendError as error:
        asked = {"backend": backend, "device": place, "precision": rules.precision}
        raise SettingsError(f"{flags_of(error, engine_numbers, asked)}: {error}") from None
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


def _with_documents(task: Task, documents: Sequence[Document], build: Callable[[Task], Engine]) -> tuple[Task, Engine]:
    """A task with further blueprints behind its own, those that a slot is for, and its engine."""
    kinds = tuple(blueprint_from(document) for document in documents)
    engine = build(task._replace(blueprints=(*task.blueprints, *kinds)))
    offered = {kind for slot in engine.structure.slots for kind in slot.offers}
    own = len(task.blueprints)
    used = tuple(kind for number, kind in enumerate(kinds, start=own) if number in offered)
    task = task._replace(blueprints=(*task.blueprints, *used))
    return task, engine if len(used) == len(kinds) else build(task)


def expect_numbers_for(scene: Scene, num_envs: int, place: str) -> None:
    """Raise unless the scene's numbers are for another number of environments as well.

    Args:
      scene: built.
      num_envs: environments that will be played, too; 0 = none.
      place: what asks for them, for the message.

    Raises:
      SettingsError: a number has a value for every environment, and they are not as many.
    """
    for flag, numbers_of in (("--engine", scene.engine.hypers), ("--rewards", scene.params)):
        for name, number in numbers_of.items():
            if number.dim() and num_envs not in (0, len(number)):
                raise SettingsError(
                    f"{flag}: {name}: {len(number)} values, one for each environment; expected one value, or "
                    f"{place} {len(number)} instead of {num_envs}, or 0"
                )


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
    bandit: Mapping[str, Entry] = setting({}, "numbers of the bandits by name, such as cool_down")
    observation: Mapping[str, Entry] = setting({}, "units of what policies see, by name, over the run's own")
    deterministic: str = setting(
        RUNS, "strict: an environment's bits depend on itself alone; auto = as the run", choices=(RUNS, *LEVELS)
    )
    precision: str = setting(
        RUNS, "type of features and matrix products; auto = the run's, float32 without one", choices=(RUNS, *PRECISIONS)
    )
    greedy: bool = setting(False, "the learned policy takes its likeliest action instead of drawing one")

    def loaded(self) -> Checkpoint | None:
        """The run's checkpoint, if there is a run.

        Raises:
          CheckpointError: it cannot be read.
        """
        return load_run_to_play(user_path(self.run), self.checkpoint) if self.run else None

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
            bandit=dict(base.bandit) | dict(self.bandit),
            observation=dict(base.observation) | dict(self.observation),
            deterministic=base.deterministic if self.deterministic == RUNS else self.deterministic,
            precision=base.precision if self.precision == RUNS else self.precision,
            documents=() if loaded is None else kept_of(user_path(self.run), loaded.table),
        )
