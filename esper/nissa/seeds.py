"""The lives of seeds, read from a trace: when each was placed, how far it came, how and when it ended."""

from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.leyline.actions import Op
from esper.leyline.stages import FAILURE, HELD, TERMINAL, is_in
from esper.nissa.trace import Trace

COURSE = HELD
"""The stages of a seed's life in the order in which it reaches them."""


class Fate(IntEnum):
    """How a seed ended, or that it did not."""

    ALIVE = 0
    FOSSILIZED = 1
    DECISION = 2
    CLOCK = 3
    GOVERNOR = 4


REMOVED = (Fate.DECISION, Fate.CLOCK, Fate.GOVERNOR)
"""Culled: by a CULL or CHANGE_BLUEPRINT, by the clock, by a rollback."""


class Lives(NamedTuple):
    """N seeds, int64 [N] each."""

    env: Tensor
    slot: Tensor
    kind: Tensor  # blueprint
    born: Tensor  # decision that placed it
    ended: Tensor  # first decision at which it was no longer there; T of a seed that stayed
    reached: Tensor  # index of the furthest stage, in COURSE
    fate: Tensor  # Fate

    @property
    def age(self) -> Tensor:
        """Epochs it took part in, [N]."""
        return self.ended - self.born


def done_to(trace: Trace, decision: int, *ops: Op) -> Tensor:
    """The slots that one of these operations was carried out on in a decision, bool [E, S]."""
    slots = torch.arange(trace.stage.shape[2])
    chosen = torch.zeros_like(trace.rolled_back[decision])
    for op in ops:
        chosen = chosen | (trace.op[decision] == int(op))
    return (trace.slot[decision].unsqueeze(1) == slots) & chosen.unsqueeze(1)


def lives(trace: Trace) -> Lives:
    """Every seed of a trace, in the order in which they ended.

    A seed is placed by GERMINATE or CHANGE_BLUEPRINT. It ends at decision t if that decision removes it, and at t + 1
    if the clock or the governor removes it at the end of epoch t.
    """
    shape = trace.stage.shape[1:]
    born, reached, kind = torch.full(shape, -1), torch.zeros(shape, dtype=torch.int64), torch.zeros(shape).long()
    found: list[Tensor] = []

    def end(which: Tensor, at: int, fate: Tensor) -> None:
        env, slot = which.nonzero(as_tuple=True)
        rows = (env, slot, kind[which], born[which], torch.full_like(env, at), reached[which], fate[which])
        found.append(torch.stack(rows))
        born[which] = -1

    for t in range(trace.length):
        removed = done_to(trace, t, Op.CULL, Op.CHANGE_BLUEPRINT) & (born >= 0)
        end(removed, t, torch.full(shape, int(Fate.DECISION)))
        placed = done_to(trace, t, Op.GERMINATE, Op.CHANGE_BLUEPRINT)
        born[placed], reached[placed] = t, 0
        kind = torch.where(placed, trace.kind[t].long().unsqueeze(1), kind)
        held = born >= 0
        for stages in (trace.during[t], trace.stage[t]):
            for index, stage in enumerate(COURSE):
                there = held & (stages == int(stage))
                reached = torch.where(there, reached.clamp(min=index), reached)
        lost = held & is_in(trace.stage[t].long(), FAILURE)
        fate = torch.where(trace.rolled_back[t], int(Fate.GOVERNOR), int(Fate.CLOCK))
        end(lost, t + 1, fate.unsqueeze(1).expand(shape))
    fossil = is_in(trace.stage[-1], TERMINAL)
    end(born >= 0, trace.length, torch.where(fossil, int(Fate.FOSSILIZED), int(Fate.ALIVE)))
    return Lives(*torch.cat(found, dim=1))


def survival(seeds: Lives) -> dict[str, Any]:
    """How far seeds came.

    Returns:
      "count"; "reached": stage -> share of the seeds that reached it; "fate": fate -> share; "median_cull_age":
      epochs, the lower median; None where there is nothing to take a share or a median of.
    """
    count = seeds.born.numel()

    def share(hits: Tensor) -> float | None:
        return float(hits.sum()) / count if count else None

    culled = is_in(seeds.fate, REMOVED)  # type: ignore[arg-type]
    return {
        "count": count,
        "reached": {stage.name: share(seeds.reached >= index) for index, stage in enumerate(COURSE)},
        "fate": {fate.name: share(seeds.fate == int(fate)) for fate in Fate},
        "median_cull_age": int(seeds.age[culled].median()) if bool(culled.any()) else None,
    }
