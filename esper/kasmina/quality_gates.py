"""Quality gates and timers: what must be so before an edge of the life cycle is taken.

A gate says which of its checks fail, as ``Check`` bits; 0 means it is open. Edges name gates and timers by number;
``GATES``, ``CANDIDATE_GATES`` and ``TIMERS`` hold their functions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from esper.kasmina.alpha import targets
from esper.leyline.codes import Check, Gate
from esper.leyline.hypers import HyperParams, over
from esper.leyline.stages import Cause, Edge, Stage, Timer, edges
from esper.leyline.state import Slots
from esper.utils.masks import holds_nowhere


def _bits(failed: Tensor, check: Check) -> Tensor:
    return torch.where(failed, int(check), 0)


def germination_gate(hypers: HyperParams, seed_params: Tensor, sizes: Tensor) -> Tensor:
    """G0's budget: would the seeds of an environment stay within it?

    Args:
      hypers: ``seed_budget``.
      seed_params: int64 [E, 1] or [E, A]; parameters in the environment's other seeds.
      sizes: int64 [A]; parameters of the candidates.

    Returns:
      int64 [E, A].
    """
    return _bits(seed_params + sizes > over(hypers.seed_budget, 1), Check.OVER_BUDGET)


def training_gate(hypers: HyperParams, slots: Slots) -> Tensor:
    """G1: the seed is in GERMINATED. Returns int64 [E, S]."""
    return _bits(slots.stage != int(Stage.GERMINATED), Check.NOT_GERMINATED)


def blending_gate(hypers: HyperParams, slots: Slots) -> Tensor:
    """G2: old enough, a gradient worth the name, healthy, and an improvement *or* a prospect.

    A seed behind the host does not change the network's accuracy, so the improvement alone says nothing about it;
    the prospect is the contribution it would have. Returns int64 [E, S].
    """
    least = over(hypers.min_improvement, 1)
    promising = (slots.evaluations > 0) & (slots.prospect >= least)
    improved = (slots.evaluations > 0) & (slots.improvement >= least)
    return (
        _bits(slots.stage_age < over(hypers.min_training_epochs, 1), Check.TOO_YOUNG)
        + _bits(~(slots.gradient_ratio >= over(hypers.min_gradient_ratio, 1)), Check.LOW_GRADIENT)
        + _bits(~slots.healthy, Check.UNHEALTHY)
        + _bits(~(promising | improved), Check.NO_IMPROVEMENT)
    )


def shadowing_gate(hypers: HyperParams, slots: Slots) -> Tensor:
    """G3: long enough in BLENDING, and alpha near its target. Returns int64 [E, S]."""
    near = over(hypers.alpha_complete, 1) * targets(hypers, slots)
    return _bits(slots.stage_age < over(hypers.min_blending_epochs, 1), Check.TOO_YOUNG) + _bits(
        slots.alpha < near, Check.LOW_ALPHA
    )


def probation_gate(hypers: HyperParams, slots: Slots) -> Tensor:
    """G4: the contribution was measured often enough in SHADOWING. Returns int64 [E, S]."""
    return _bits(slots.evaluations < over(hypers.shadowing_epochs, 1), Check.NOT_MEASURED)


def fossilization_gate(hypers: HyperParams, slots: Slots) -> Tensor:
    """G5: a measured contribution that is large enough, healthy gradients, and a copy in the snapshot.

    The copy is what a rollback restores; without it a permanent seed could be lost. Returns int64 [E, S].
    """
    return (
        _bits(~slots.measured, Check.NOT_MEASURED)
        + _bits(~(slots.contribution >= over(hypers.min_contribution, 1)), Check.LOW_CONTRIBUTION)
        + _bits(~slots.healthy, Check.UNHEALTHY)
        + _bits(~slots.in_snapshot, Check.NOT_IN_SNAPSHOT)
    )


GATES: dict[Gate, Callable[[HyperParams, Slots], Tensor]] = {
    Gate.G1: training_gate,
    Gate.G2: blending_gate,
    Gate.G3: shadowing_gate,
    Gate.G4: probation_gate,
    Gate.G5: fossilization_gate,
}
"""Gates that ask about the seed in a slot: (hypers, slots [E, S]) -> int64 [E, S]."""

CANDIDATE_GATES: dict[Gate, Callable[[HyperParams, Tensor, Tensor], Tensor]] = {Gate.G0: germination_gate}
"""Gates that ask about a seed not there yet: (hypers, parameters of the other seeds [E, A], its own [A]) ->
int64 [E, A].
"""


def probation_over(horizon: int, hypers: HyperParams, slots: Slots) -> Tensor:
    """A seed that gives nothing, or has waited for too long: ``probation_epochs`` or a fraction of the horizon,
    whichever is longer. Returns bool [E, S].
    """
    limit = torch.clamp(torch.floor(hypers.probation_fraction * horizon), min=0)
    overdue = slots.stage_age >= over(torch.maximum(hypers.probation_epochs, limit), 1)
    useless = slots.measured & (slots.contribution <= 0)
    return useless | overdue


def embargo_over(horizon: int, hypers: HyperParams, slots: Slots) -> Tensor:
    """The slot was blocked for long enough. Returns bool [E, S]."""
    return slots.stage_age >= over(hypers.embargo_epochs, 1)


TIMERS: dict[Timer, Callable[[int, HyperParams, Slots], Tensor]] = {
    Timer.PROBATION: probation_over,
    Timer.EMBARGO: embargo_over,
}
"""What the clock waits for: (horizon in epochs, hypers, slots [E, S]) -> bool [E, S]."""


def failed_gate(hypers: HyperParams, slots: Slots, cause: Cause) -> Tensor:
    """The gate between a slot's stage and the one into which ``cause`` would move its seed.

    Args:
      hypers: thresholds.
      slots: [E, S].
      cause: whose edges are asked about.

    Returns:
      ``Check`` bits, int64 [E, S]; 0 where the stage has no such edge, or no gate stands on it.
    """
    failed = torch.zeros_like(slots.stage)
    for edge in edges(cause):
        at_source = slots.stage == int(edge.source)
        if edge.gate in GATES and not holds_nowhere(at_source):
            failed = torch.where(at_source, GATES[edge.gate](hypers, slots), failed)
    return failed


def is_open(hypers: HyperParams, slots: Slots, edge: Edge) -> Tensor:
    """Slots [E, S] whose seed the edge's gate would let through, whatever their stage; all, if it has none. bool."""
    if edge.gate is None:
        return torch.ones_like(slots.stage, dtype=torch.bool)
    return GATES[edge.gate](hypers, slots) == 0


def is_due(horizon: int, hypers: HyperParams, slots: Slots, edge: Edge) -> Tensor:
    """Slots at the source of an edge that the clock may move along it.

    Args:
      horizon: epochs of an episode.
      hypers: thresholds and lengths.
      slots: [E, S].
      edge: one of TRANSITIONS.

    Returns:
      bool [E, S]: the stage is the edge's source, its gate is open, its timer has run out.
    """
    at_source = slots.stage == int(edge.source)
    if holds_nowhere(at_source):
        return at_source
    due = at_source & is_open(hypers, slots, edge)
    return due if edge.timer is None else due & TIMERS[edge.timer](horizon, hypers, slots)
