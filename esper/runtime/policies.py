"""Policies by name: what commands play, built for a scene."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from esper.engine import Engine
from esper.kasmina.structure import seed_sizes
from esper.leyline.actions import Blend
from esper.leyline.config import Determinism
from esper.leyline.environments import select
from esper.leyline.state import State
from esper.leyline.words import as_meant
from esper.runtime.policy_checkpoint import load_policy
from esper.runtime.scene import Scene
from esper.tamiyo import scripted
from esper.tamiyo.arms import ArmStatistics, BanditConfig
from esper.tamiyo.bandit_parts import Bandit, Viability
from esper.tamiyo.bandits import always, bandit_policy, build_bandit
from esper.tamiyo.baselines import HeuristicConfig
from esper.tamiyo.gradient import gradient_policy
from esper.tamiyo.orchestration import Orchestrator, SlotStrategy, build_orchestrator
from esper.tamiyo.orchestration_policy import orchestration_policy
from esper.tamiyo.policies import Policy, from_mask, heuristic_policy, random_policy
from esper.tamiyo.selection import STRATEGIES
from esper.tolaria.slopes import birth_norms
from esper.urza.checkpoint import Checkpoint
from esper.utils.settings import SettingsError, Table

Numbers = TypeVar("Numbers", HeuristicConfig, BanditConfig)


def heuristic_named(scene: Scene) -> Policy:
    """The rule of thumb.

    Raises:
      SettingsError: a number of ``--heuristic`` is not allowed.
    """
    rule = heuristic_of(scene.rules.heuristic, scene.engine.config.blends)
    try:
        return heuristic_policy(scene.engine.codec, rule)
    except ValueError as error:
        raise SettingsError(f"--heuristic: {error}") from None


def gradient_of(scene: Scene) -> Policy:
    """The policy that grows what the gradient of the validation loss is largest for; see ``birth_norms``."""
    engine = scene.engine
    samples = engine.data.validation.samples

    def promise(state: State, index: int) -> Tensor:
        return birth_norms(engine.structure, engine.hypers, state, engine.codec.actions[index], samples)

    def one_by_one(state: State, index: int) -> Tensor:
        rows = torch.arange(len(state.epoch), device=state.epoch.device).split(1)
        return torch.cat([promise(select(state, row), index) for row in rows])

    strict = engine.config.deterministic is Determinism.STRICT
    return gradient_policy(engine.codec, one_by_one if strict else promise)


def orchestrator_of(engine: Engine) -> Orchestrator:
    """The fixed parts of the orchestration strategies, for an engine."""
    structure = engine.structure

    def growth(state: State) -> Tensor:
        return seed_sizes(structure, state.slots) / structure.host.num_params

    return build_orchestrator(engine.codec, growth)


def bandit_of(scene: Scene, strategy: str) -> Bandit:
    """A bandit's fixed parts; the rest of a seed's life, and the blend, follow ``--heuristic``.

    Raises:
      SettingsError: a number of ``--bandit`` or ``--heuristic`` is not allowed.
    """
    engine = scene.engine
    rule = heuristic_of(scene.rules.heuristic, engine.config.blends)
    config = _numbers_of("--bandit", BanditConfig, dict(scene.rules.bandit))
    limits = Viability(engine.structure.action_sizes, engine.structure.sizes, engine.hypers.seed_budget)
    return build_bandit(strategy, engine.codec, limits, config, rule)


def bandit_named(scene: Scene, name: str, start: ArmStatistics | None = None) -> Policy:
    """A bandit by its strategy's name, with the statistics that it starts with; FIRST is one of a single arm.

    Raises:
      SettingsError: as ``bandit_of``, or the task has no arm.
    """
    bandit = always(bandit_of(scene, "ucb"), 0) if name == FIRST else bandit_of(scene, name)
    try:
        return bandit_policy(name, bandit, start)
    except ValueError as error:
        raise SettingsError(f"--policies: {error}") from None


FIRST = "first"
"""Always the first blueprint in the first slot, within the bandits' limits."""

Start = ArmStatistics | None


def _bandit(name: str) -> Callable[[Scene, Start], Policy]:
    return lambda scene, start: bandit_named(scene, name, start)


def _orchestrated(strategy: SlotStrategy) -> Callable[[Scene, Start], Policy]:
    return lambda scene, start: orchestration_policy(strategy, orchestrator_of(scene.engine))


NAMED: dict[str, Callable[[Scene, Start], Policy]] = {
    "heuristic": lambda scene, start: heuristic_named(scene),
    "random": lambda scene, start: random_policy(scene.engine.codec),
    "wait": lambda scene, start: from_mask("wait", scripted.wait(scene.engine.codec)),
    "gradient": lambda scene, start: gradient_of(scene),
    FIRST: _bandit(FIRST),
    **{name: _bandit(name) for name in STRATEGIES},
    **{strategy.value: _orchestrated(strategy) for strategy in SlotStrategy},
}
"""Policies that need no run, by name; a function of the scene and of what a bandit starts with."""

USUAL = ("heuristic", "random", "wait")
"""What a policy is compared with if nothing else is asked for."""


def names_of(text: str) -> list[str]:
    """Names of policies with commas between.

    Raises:
      SettingsError: an unknown name, or one twice.
    """
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names) or not set(names) <= NAMED.keys():
        raise SettingsError(f"--policies = {text!r}: expected different names among {', '.join(NAMED)}")
    return names


def policies_of(
    scene: Scene,
    loaded: Checkpoint | None,
    greedy: bool,
    names: Sequence[str] = USUAL,
    starts: Mapping[str, ArmStatistics] | None = None,
) -> list[Policy]:
    """The policies to compare, the learned one first: a run's policy if there is one, then those named.

    Args:
      scene: what is played.
      loaded: the run's checkpoint, if there is a run.
      greedy: the learned policy takes its likeliest action instead of drawing one.
      names: of policies that need no run.
      starts: statistics that bandits start with, by name.

    Raises:
      CheckpointError: the run's policy cannot be restored.
      SettingsError: a number of ``--heuristic`` or ``--bandit`` is not allowed.
    """
    strict = scene.engine.config.deterministic is Determinism.STRICT
    learned = [] if loaded is None else [load_policy(loaded, scene.engine.interface, greedy, strict)]
    return [*learned, *(NAMED[name](scene, (starts or {}).get(name)) for name in names)]


def heuristic_of(given: Table, blends: tuple[Blend, ...]) -> HeuristicConfig:
    """The rule of thumb's numbers.

    Args:
      given: values of ``HeuristicConfig`` by name.
      blends: those on offer; the first is taken where the default is not among them.

    Raises:
      SettingsError: an unknown name, or a value that is not allowed.
    """
    read = dict[str, Any](given)
    if "rotation" in read:
        names = read["rotation"]
        read["rotation"] = tuple(names.split("+")) if isinstance(names, str) else names
    try:
        if "blend" in read:
            (read["blend"],) = as_meant("blends", read["blend"])
        elif HeuristicConfig.blend not in blends:
            read["blend"] = blends[0]
    except (TypeError, ValueError) as error:
        raise SettingsError(f"--heuristic: {error}") from None
    return _numbers_of("--heuristic", HeuristicConfig, read)


def _numbers_of(place: str, kind: type[Numbers], given: dict[str, Any]) -> Numbers:
    """A table of numbers as its dataclass; one line for what it does not take."""
    known = [entry.name for entry in fields(kind)]
    for name in given:
        if name not in known:
            raise SettingsError(f"{place}: {name}: unknown; known are {', '.join(known)}")
    try:
        return kind(**given)
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingsError(f"{place}: {error}") from None
