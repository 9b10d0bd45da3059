"""Lanes: chosen environments of a round as a live page draws them, small and bounded however long an episode is."""

import math
from collections.abc import Sequence
from typing import Any

from esper.leyline.actions import NONE
from esper.nissa.seeds import Lives
from esper.nissa.swimlanes import SHOWN, stretches
from esper.nissa.trace import Trace

MOST_POINTS = 400
"""Points of a curve at most: every n-th decision, and the last."""


def lanes(trace: Trace, seeds: Lives, names: Sequence[str]) -> list[dict[str, Any]]:
    """What a page needs to draw the environments of a trace, for JSON.

    Args:
      trace, seeds: of the same environments and decisions.
      names: of the blueprints.

    Returns:
      by environment "accuracy": [decision, points] pairs (None where there was none), decisions from 1; "slots": by
      slot its stretches [stage, first decision, last decision, blueprint], empty slots left out.
    """
    every = -(-trace.length // MOST_POINTS)
    points = [t for t in range(trace.length) if (t + 1) % every == 0 or t + 1 == trace.length]
    found = []
    for env in range(trace.stage.shape[1]):
        accuracy = trace.accuracy[:, env].tolist()
        pairs = [[t + 1, accuracy[t] if math.isfinite(accuracy[t]) else None] for t in points]
        slots = [_slot(trace, seeds, names, env, slot) for slot in range(trace.stage.shape[2])]
        found.append({"accuracy": pairs, "slots": slots})
    return found


def _slot(trace: Trace, seeds: Lives, names: Sequence[str], env: int, slot: int) -> list[list[Any]]:
    mine = ((seeds.env == env) & (seeds.slot == slot)).nonzero().squeeze(1)
    births = sorted(zip(seeds.born[mine].tolist(), seeds.kind[mine].tolist(), strict=True))

    def kind_at(decision: int) -> str:
        placed = [kind for born, kind in births if born <= decision]
        held = placed[-1] if placed else int(trace.blueprint[decision, env, slot])
        return "" if held == NONE else names[held]

    whole = [stretch for stretch in stretches(trace, env, slot) if stretch.stage in SHOWN]
    return [[stage.name, start + 1, stop, kind_at(start)] for stage, start, stop in whole]
