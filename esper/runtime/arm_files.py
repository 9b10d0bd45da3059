"""What bandits learn, kept from run to run: one checkpoint with the statistics of every strategy."""

from collections.abc import Sequence
from typing import Any

from esper.engine import Engine
from esper.runtime.rollout import Outcome
from esper.runtime.scene import Scene
from esper.tamiyo.arms import ArmStatistics, arm_names
from esper.tamiyo.bandit_parts import Bandit, BanditMemory
from esper.urza.checkpoint import CheckpointError
from esper.urza.keeping import keep, recall, shown_place

FIELDS = tuple(ArmStatistics.__annotations__)


def facts_of(engine: Engine, bandit: Bandit) -> dict[str, Any]:
    """What statistics are of; those of other arms, environments or windows mean something else."""
    return {
        "arms": arm_names(engine.codec, bandit.rule.blend),
        "blend": bandit.rule.blend.name.lower(),
        "envs": engine.config.num_envs,
        "window": bandit.config.window,
    }


def recall_statistics(place: str, scene: Scene, bandits: dict[str, Bandit]) -> dict[str, ArmStatistics]:
    """The statistics that bandits start with, by strategy; those that were never kept are not there.

    Args:
      place: see ``esper.urza.keeping``.
      scene: what is played.
      bandits: by strategy.

    Raises:
      CheckpointError: what is kept is damaged, or of other arms, environments or windows; one line.
    """
    kept = recall(place)
    if kept is None:
        return {}
    found, device = kept.table.get("bandits"), scene.engine.codec.op.device
    if not isinstance(found, dict):
        raise CheckpointError(f"{shown_place(place)}: holds {', '.join(kept.table)}; expected statistics of bandits")
    starts = {}
    for name, bandit in bandits.items():
        if name not in found:
            continue
        wanted = facts_of(scene.engine, bandit)
        differing = [(key, found[name].get(key), value) for key, value in wanted.items()]
        wrong = [f"{key} {there!r}, not {value!r}" for key, there, value in differing if there != value]
        if wrong:
            raise CheckpointError(f"{shown_place(place)}: {name}: has {'; '.join(wrong)}")
        leaves = {field: kept.tensors[f"{name}.{field}"].to(device) for field in FIELDS}
        starts[name] = ArmStatistics(**leaves, batch_size=[wanted["envs"]])
    return starts


def keep_statistics(place: str, scene: Scene, bandits: dict[str, Bandit], outcomes: Sequence[Outcome]) -> None:
    """Keep what bandits have learned; strategies that were not played keep what they had.

    Args:
      place: see ``esper.urza.keeping``.
      scene: what was played.
      bandits: by strategy.
      outcomes: of every policy.

    Raises:
      CheckpointError: it cannot be written there, or what is there is damaged; one line.
    """
    kept = recall(place)
    tensors, table = ({}, {}) if kept is None else (dict(kept.tensors), dict(kept.table["bandits"]))
    for outcome in outcomes:
        if outcome.policy in bandits and isinstance(outcome.memory, BanditMemory):
            statistics = outcome.memory.statistics
            table[outcome.policy] = facts_of(scene.engine, bandits[outcome.policy])
            tensors |= {f"{outcome.policy}.{field}": statistics.get(field) for field in FIELDS}
    keep(place, tensors, {"bandits": table})
