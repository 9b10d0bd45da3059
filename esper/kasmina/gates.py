"""Quality gates: which checks fail, as ``Check`` bits. 0 means the gate is open."""

import torch
from torch import Tensor

from esper.leyline.codes import Check
from esper.leyline.hypers import HyperParams, over
from esper.leyline.stages import Stage
from esper.leyline.state import Slots


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


def training_gate(slots: Slots) -> Tensor:
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
    near = over(hypers.alpha_complete * hypers.alpha_target, 1)
    return _bits(slots.stage_age < over(hypers.min_blending_epochs, 1), Check.TOO_YOUNG) + _bits(
        slots.alpha < near, Check.LOW_ALPHA
    )


def probation_gate(hypers: HyperParams, slots: Slots) -> Tensor:
    """G4: the contribution was measured often enough in SHADOWING. Returns int64 [E, S]."""
    return _bits(slots.evaluations < over(hypers.shadowing_epochs, 1), Check.NOT_MEASURED)


def fossilization_gate(hypers: HyperParams, slots: Slots) -> Tensor:
    """G5: a measured contribution that is large enough, healthy gradients, and a copy in the vault.

    The copy is what a rollback restores; without it a permanent seed could be lost. Returns int64 [E, S].
    """
    return (
        _bits(~slots.measured, Check.NOT_MEASURED)
        + _bits(~(slots.contribution >= over(hypers.min_contribution, 1)), Check.LOW_CONTRIBUTION)
        + _bits(~slots.healthy, Check.UNHEALTHY)
        + _bits(~slots.banked, Check.NOT_BANKED)
    )


def advance_gate(hypers: HyperParams, slots: Slots) -> Tensor:
    """The gate between a slot's stage and the next: G2, G3 or G4; 0 where the stage has none. int64 [E, S]."""
    failed = torch.zeros_like(slots.stage)
    for stage, gate in (
        (Stage.TRAINING, blending_gate),
        (Stage.BLENDING, shadowing_gate),
        (Stage.SHADOWING, probation_gate),
    ):
        failed = torch.where(slots.stage == int(stage), gate(hypers, slots), failed)
    return failed
