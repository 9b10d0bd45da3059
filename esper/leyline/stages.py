"""The life cycle of a seed, as two tables: ``STAGES``, a row per stage, and ``TRANSITIONS``, a row per legal edge.

Everything else that knows the life cycle (masks, clock, gates, potentials, colours, legends) derives from them. The
rows of ``STAGES`` stand in the order of life. Names and numbers of stages are esper-lite's.
"""

from collections.abc import Iterable
from enum import Enum, Flag, IntEnum, auto
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.codes import Gate


class Stage(IntEnum):
    """Where a slot stands; what that means is in ``STAGES``."""

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


class Timer(IntEnum):
    """What the clock waits for on an edge without a gate."""

    PROBATION = 0
    EMBARGO = 1


class Trait(Flag):
    """What a stage is."""

    LIVE = auto()  # of a seed that is neither permanent nor removed
    ACTIVE = auto()  # the seed takes part in the forward pass
    MERGED = auto()  # active, and the seed changes the output; its contribution is measured
    ISOLATED = auto()  # active, and the seed reads features held constant: the host gets no gradient through it
    FAILURE = auto()  # the slot is blocked after a cull
    TERMINAL = auto()  # without a successor


class Alpha(Enum):
    """What a stage does to the weight of its seed."""

    KEEP = "it stays as it was"
    RAMP = "it climbs to its target, a step an epoch, the first on entering"
    FULL = "it is at its target from entering on"


class Colour(NamedTuple):
    """A colour in charts: on light paper, on dark paper (empty: the same), and of a letter on it."""

    light: str
    dark: str = ""
    letter: str = "#10151b"


class StageRow(NamedTuple):
    """A stage: what it is, in words, its potential on entering (for shaping), its colour (None: not drawn), alpha."""

    traits: Trait
    says: str
    potential: float = 0.0
    colour: Colour | None = None
    alpha: Alpha = Alpha.KEEP


_BEHIND = Trait.LIVE | Trait.ACTIVE | Trait.ISOLATED
_MERGED = Trait.ACTIVE | Trait.MERGED
STAGES: dict[Stage, StageRow] = {
    Stage.UNKNOWN: StageRow(Trait(0), "not begun"),
    Stage.DORMANT: StageRow(Trait(0), "the slot is empty"),
    Stage.GERMINATED: StageRow(Trait.LIVE, "the seed has just been placed", 1.0, Colour("#f0e442")),
    Stage.TRAINING: StageRow(_BEHIND, "the seed trains behind the host", 2.0, Colour("#e69f00")),
    Stage.BLENDING: StageRow(_BEHIND | Trait.MERGED, "the seed is blended in", 3.5, Colour("#56b4e9"), Alpha.RAMP),
    Stage.SHADOWING: StageRow(
        Trait.LIVE | _MERGED, "the seed waits to be measured", 4.5, Colour("#8fa3c8", "#9fb2d6"), Alpha.FULL
    ),
    Stage.PROBATIONARY: StageRow(Trait.LIVE | _MERGED, "the seed proves what it contributes", 5.5, Colour("#cc79a7")),
    Stage.FOSSILIZED: StageRow(
        _MERGED | Trait.TERMINAL, "the seed is permanent", 6.0, Colour("#009e73", letter="#ffffff")
    ),
    Stage.CULLED: StageRow(Trait.FAILURE, "the seed was removed", colour=Colour("#c44e00", "#e0702a", "#ffffff")),
    Stage.EMBARGOED: StageRow(Trait.FAILURE, "the slot is blocked for a while", colour=Colour("#8c959f")),
    Stage.RESETTING: StageRow(Trait.FAILURE, "the slot is about to be free", colour=Colour("#c5ccd3")),
}
"""All stages in the order of life. Potentials rise along it; they are 0 where there is no seed, so that a removed seed
forfeits them.
"""


def having(trait: Trait) -> tuple[Stage, ...]:
    """The stages with any of these traits, in the order of life."""
    return tuple(stage for stage, row in STAGES.items() if row.traits & trait)


LIVE = having(Trait.LIVE)
ACTIVE = having(Trait.ACTIVE)
MERGED = having(Trait.MERGED)
ISOLATED = having(Trait.ISOLATED)
FAILURE = having(Trait.FAILURE)
TERMINAL = having(Trait.TERMINAL)
HELD = having(Trait.LIVE | Trait.ACTIVE)
"""Stages of a slot that holds a seed."""

WEIGHED = tuple(stage for stage in LIVE if stage in MERGED)
"""Stages of a seed that reaches the output and is not permanent: its weight may be asked to be another."""

CLIMBING = tuple(stage for stage, row in STAGES.items() if row.alpha is Alpha.RAMP)
"""Stages in which alpha takes a step every epoch."""


class Edge(NamedTuple):
    """One legal edge: from, to, the causes that may take it, and what must be so.

    The clock takes an edge that a decision may take too only in a run with ``auto_advance``. An edge without gate and
    timer is taken by the clock at its next tick. A *straight* edge is also taken on arriving at its source, if its
    gate is open then.
    """

    source: Stage
    target: Stage
    causes: tuple[Cause, ...]
    gate: Gate | None = None
    timer: Timer | None = None
    straight: bool = False


TRANSITIONS: tuple[Edge, ...] = (
    Edge(Stage.UNKNOWN, Stage.DORMANT, (Cause.INIT,)),
    Edge(Stage.DORMANT, Stage.GERMINATED, (Cause.GERMINATE,), Gate.G0),
    Edge(Stage.GERMINATED, Stage.TRAINING, (Cause.CLOCK,), Gate.G1),
    Edge(Stage.TRAINING, Stage.BLENDING, (Cause.ADVANCE, Cause.CLOCK), Gate.G2),
    Edge(Stage.BLENDING, Stage.SHADOWING, (Cause.ADVANCE, Cause.CLOCK), Gate.G3),
    Edge(Stage.SHADOWING, Stage.PROBATIONARY, (Cause.ADVANCE, Cause.CLOCK), Gate.G4, straight=True),
    Edge(Stage.PROBATIONARY, Stage.FOSSILIZED, (Cause.FOSSILIZE,), Gate.G5),
    *(Edge(stage, Stage.GERMINATED, (Cause.CHANGE_BLUEPRINT,), Gate.G0) for stage in LIVE),
    *(Edge(stage, Stage.CULLED, (Cause.CULL, Cause.GOVERNOR)) for stage in LIVE if stage != Stage.PROBATIONARY),
    Edge(Stage.PROBATIONARY, Stage.CULLED, (Cause.CULL, Cause.GOVERNOR, Cause.CLOCK), timer=Timer.PROBATION),
    Edge(Stage.CULLED, Stage.EMBARGOED, (Cause.CLOCK,)),
    Edge(Stage.EMBARGOED, Stage.RESETTING, (Cause.CLOCK,), timer=Timer.EMBARGO),
    Edge(Stage.RESETTING, Stage.DORMANT, (Cause.CLOCK,)),
)


def edges(cause: Cause) -> tuple[Edge, ...]:
    """The edges that ``cause`` may take, in the table's order."""
    return tuple(edge for edge in TRANSITIONS if cause in edge.causes)


def sources(cause: Cause) -> tuple[Stage, ...]:
    """Stages from which ``cause`` may take a transition."""
    return tuple(edge.source for edge in edges(cause))


def routes(cause: Cause) -> dict[Stage, tuple[Stage, ...]]:
    """Where ``cause`` leads: target -> the stages from which it leads there."""
    targets = dict.fromkeys(edge.target for edge in edges(cause))
    return {target: tuple(edge.source for edge in edges(cause) if edge.target is target) for target in targets}


def runs(stages: Iterable[Stage]) -> list[tuple[int, int]]:
    """A set of stages as runs of consecutive numbers, first and last."""
    numbers = sorted({int(stage) for stage in stages})
    firsts = [number for number in numbers if number - 1 not in numbers]
    lasts = [number for number in numbers if number + 1 not in numbers]
    return list(zip(firsts, lasts, strict=True))


def is_in(stage: Tensor, stages: Iterable[Stage]) -> Tensor:
    """Elementwise: is the stage one of ``stages``? A comparison or two for every run of consecutive numbers.

    Args:
      stage: int64 [...], stage numbers.
      stages: the set.

    Returns:
      bool [...].
    """
    member: Tensor | None = None
    for first, last in runs(stages):
        within = stage == first if first == last else (stage >= first) & (stage <= last)
        member = within if member is None else member | within
    return torch.zeros_like(stage, dtype=torch.bool) if member is None else member
