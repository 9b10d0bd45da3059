"""Field reports: what became of each seed, from its germination to its end, in plain values."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.leyline.codes import Verdict
from esper.leyline.stages import Stage
from esper.nissa.seeds import REMOVED, Fate, Lives
from esper.nissa.trace import Trace


class FieldReport(NamedTuple):
    """One seed. Accuracies are validation accuracies, in points; None where there was none.

    Attributes:
      env, slot: where.
      seed: which of the slot's seeds, from 0, in this trace.
      blueprint: what it was.
      germinated, ended: decisions, from 0; the second is the first at which it was no longer there.
      last_stage: name of the stage in which it ended.
      success: whether it was made permanent; None of one that was alive when the trace ended.
      epochs: by the name of the stage.
      accuracy_before, accuracy_after: of the network, when the seed was placed and at its end.
      improvement: total; their difference.
      contribution: last measured one.
      reason: of its failure, in words; empty of one that did not fail.
    """

    env: int
    slot: int
    seed: int
    blueprint: str
    germinated: int
    ended: int
    last_stage: str
    success: bool | None
    epochs: dict[str, int]
    accuracy_before: float | None
    accuracy_after: float | None
    improvement: float | None
    contribution: float | None
    reason: str


def accuracies(trace: Trace, seeds: Lives) -> tuple[Tensor, Tensor]:
    """Validation accuracy before each seed was placed and at its end, float64 [N] each; NaN where there was none."""
    before = torch.cat((torch.full_like(trace.accuracy[:1], torch.nan), trace.accuracy)).double()
    return before[seeds.born, seeds.env], before[seeds.ended, seeds.env]


def field_reports(trace: Trace, seeds: Lives, names: Sequence[str]) -> list[FieldReport]:
    """A report on every seed of a trace, in the order in which they were placed.

    Args:
      trace, seeds: of the same episodes.
      names: of the blueprints.
    """
    starts, ends = accuracies(trace, seeds)
    order = sorted(range(len(seeds.born)), key=lambda i: (int(seeds.env[i]), int(seeds.born[i]), int(seeds.slot[i])))
    counted: dict[tuple[int, int], int] = {}
    found = []
    for place in order:
        env, slot, kind, born, ended, _, fate = (int(column[place]) for column in seeds)
        number = counted[env, slot] = counted.get((env, slot), -1) + 1
        spent = trace.during[born:ended, env, slot].tolist()
        stages = [Stage(stage).name for stage in spent]
        first, last = _known(starts[place]), _known(ends[place])
        effects = [value for value in trace.effect[born:ended, env, slot].tolist() if value == value]
        found.append(
            FieldReport(
                env=env,
                slot=slot,
                seed=number,
                blueprint=names[kind],
                germinated=born,
                ended=ended,
                last_stage=Fate.FOSSILIZED.name if fate == Fate.FOSSILIZED else stages[-1] if stages else "GERMINATED",
                success=None if fate == Fate.ALIVE else fate == Fate.FOSSILIZED,
                epochs={name: stages.count(name) for name in dict.fromkeys(stages)},
                accuracy_before=first,
                accuracy_after=last,
                improvement=None if first is None or last is None else last - first,
                contribution=effects[-1] if effects else None,
                reason=_reason(trace, Fate(fate), env, ended, effects),
            )
        )
    return found


def _known(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _reason(trace: Trace, fate: Fate, env: int, ended: int, effects: Sequence[float]) -> str:
    """Why a seed failed."""
    if fate not in REMOVED:
        return ""
    if fate is Fate.DECISION:
        return "removed by a decision"
    if fate is Fate.GOVERNOR:
        return f"rolled back: {Verdict(int(trace.verdict[ended - 1, env])).name.lower()}"
    return "it did not contribute" if effects and effects[-1] <= 0 else "its time in probation was over"


def as_table(report: FieldReport) -> dict[str, Any]:
    """A report for JSON."""
    return report._asdict()
