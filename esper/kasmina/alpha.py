"""Alpha ramps: how the weight of a seed grows from 0 to its target."""

import torch
from torch import Tensor

from esper.leyline.actions import BLENDS, Curve
from esper.leyline.hypers import HyperParams, over
from esper.leyline.state import Slots


def targets(hypers: HyperParams, slots: Slots) -> Tensor:
    """Where every slot's alpha goes: what RETARGET asked for, else the hyperparameters' target. [E, S] in [0, 1]."""
    return torch.where(slots.target < 0, over(hypers.alpha_target, 1), slots.target)


def curve_progress(curve: Curve, time: Tensor, steepness: Tensor) -> Tensor:
    """How far a ramp has come.

    Args:
      curve: its shape.
      time: fraction of its steps done, [0, 1].
      steepness: of the sigmoid, > 0; broadcasts to ``time``.

    Returns:
      [0, 1], monotone in time; the ends are exact in ``ramp``. Linear: t. Cosine: (1 - cos(pi t)) / 2. Sigmoid,
      normalised to end at 0 and 1: (s(k(t - 1/2)) - s(-k/2)) / (s(k/2) - s(-k/2)), k the steepness; it nears the
      line for small k and a step for large. It is computed as (1 + tanh(k/2 (t - 1/2)) / tanh(k/4)) / 2, the same
      number: torch's sigmoid gives other bits where a tensor ends than within it, so that they would depend on how
      many environments there are.
    """
    if curve is Curve.LINEAR:
        return time
    if curve is Curve.COSINE:
        return 0.5 * (1 - torch.cos(torch.pi * time))
    slope = steepness / 2
    return 0.5 * (1 + torch.tanh(slope * (time - 0.5)) / torch.tanh(slope * 0.5))


def ramp(blend: Tensor, done: Tensor, total: Tensor, target: Tensor, steepness: Tensor) -> Tensor:
    """Alpha after ``done`` of ``total`` steps.

    Args:
      blend: int64 [E, S]; Blend, decides the curve.
      done: int64 [E, S]; steps done.
      total: broadcasts to [E, S]; steps of the ramp, >= 1.
      target: broadcasts to [E, S]; where the ramp ends, [0, 1].
      steepness: broadcasts to [E, S]; of the sigmoid curve, > 0.

    Returns:
      [E, S] in [0, target], monotone in ``done``, exactly 0 at 0 and exactly ``target`` from ``total`` on.
    """
    time = (done / total).clamp(0, 1).to(target.dtype)
    alpha = torch.zeros_like(time)
    for rule_blend, rule in BLENDS.items():
        alpha = torch.where(blend == int(rule_blend), curve_progress(rule.curve, time, steepness).clamp(0, 1), alpha)
    alpha = torch.where(done <= 0, 0.0, torch.where(done >= total, 1.0, alpha))
    return alpha * target
