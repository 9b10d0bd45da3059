"""The life cycle of a seed: stages, and the one table of legal transitions.

Everything else that knows the life cycle (masks, clock, documentation, the model in the tests) derives from
``TRANSITIONS``. Names and numbers are those of the source systems.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.codes import Gate


class Stage(IntEnum):
    """Where a slot stands. TRAINING to FOSSILIZED take part in the forward pass."""

    UNKNOWN = 0
    DORMANT = 1
    GERMINATED = 2
    TRAINING = 3
    BLENDING = 4
    SHADOWING = 5
    PROBATIONARY = 6
    FOSSILIZED = 7
    CULLED = 8
    EMBARGOED = 9
    RESETTING = 10


class Cause(IntEnum):
    """Who may make a transition happen."""

    INIT = 0
    GERMINATE = 1
    ADVANCE = 2
    CULL = 3
    FOSSILIZE = 4
    CHANGE_BLUEPRINT = 5
    CLOCK = 6
    GOVERNOR = 7


class Edge(NamedTuple):
    """One legal edge: from, to, the causes that may take it, and the gate that must pass."""

    source: Stage
    target: Stage
    causes: tuple[Cause, ...]
    gate: Gate | None = None


LIVE = (Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY)
"""Stages of a seed that is neither permanent nor removed."""

ACTIVE = (Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED)
"""Stages whose seed takes part in the forward pass."""

FAILURE = (Stage.CULLED, Stage.EMBARGOED, Stage.RESETTING)
"""Stages of a slot that is blocked after a cull."""

ISOLATED = (Stage.TRAINING, Stage.BLENDING)
"""Active stages whose seed reads detached features, so that the host gets no gradient through it."""

MERGED = (Stage.BLENDING, Stage.SHADOWING, Stage.PROBATIONARY, Stage.FOSSILIZED)
"""Active stages whose seed changes the output; their contribution is measured."""

TERMINAL = (Stage.FOSSILIZED,)
"""Stages without a successor."""

TRANSITIONS: tuple[Edge, ...] = (
    Edge(Stage.UNKNOWN, Stage.DORMANT, (Cause.INIT,)),
    Edge(Stage.DORMANT, Stage.GERMINATED, (Cause.GERMINATE,), Gate.G0),
    Edge(Stage.GERMINATED, Stage.TRAINING, (Cause.CLOCK,), Gate.G1),
    Edge(Stage.TRAINING, Stage.BLENDING, (Cause.ADVANCE, Cause.CLOCK), Gate.G2),
    Edge(Stage.BLENDING, Stage.SHADOWING, (Cause.ADVANCE, Cause.CLOCK), Gate.G3),
    Edge(Stage.SHADOWING, Stage.PROBATIONARY, (Cause.ADVANCE, Cause.CLOCK), Gate.G4),
    Edge(Stage.PROBATIONARY, Stage.FOSSILIZED, (Cause.FOSSILIZE,), Gate.G5),
    *(Edge(stage, Stage.GERMINATED, (Cause.CHANGE_BLUEPRINT,), Gate.G0) for stage in LIVE),
    *(Edge(stage, Stage.CULLED, (Cause.CULL, Cause.GOVERNOR)) for stage in LIVE if stage != Stage.PROBATIONARY),
    Edge(Stage.PROBATIONARY, Stage.CULLED, (Cause.CULL, Cause.GOVERNOR, Cause.CLOCK)),
    Edge(Stage.CULLED, Stage.EMBARGOED, (Cause.CLOCK,)),
    Edge(Stage.EMBARGOED, Stage.RESETTING, (Cause.CLOCK,)),
    Edge(Stage.RESETTING, Stage.DORMANT, (Cause.CLOCK,)),
)


def sources(cause: Cause) -> tuple[Stage, ...]:
    """Stages from which ``cause`` may take a transition."""
    return tuple(edge.source for edge in TRANSITIONS if cause in edge.causes)


def is_in(stage: Tensor, stages: Iterable[Stage]) -> Tensor:
    """Elementwise: is the stage one of ``stages``?

    Args:
      stage: int64 [...], stage numbers.
      stages: the set.

    Returns:
      bool [...].
    """
    member = torch.zeros_like(stage, dtype=torch.bool)
    for candidate in stages:
        member = member | (stage == int(candidate))
    return member
