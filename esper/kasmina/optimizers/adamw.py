"""AdamW: Adam whose weight decay does not pass through the running means."""

import torch
from torch import Tensor

from esper.kasmina.optimizers.adam import descend
from esper.kasmina.optimizers.contract import Optimizer, Rates, zero_moments


def update(
    grad: Tensor, params: Tensor, moments: Tensor, steps: Tensor, rates: Rates, decays: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``params' = (1 - lr decay) params`` where ``decays``, else ``params``; minus Adam's step for the bare gradient.

    ``torch.optim.AdamW`` (Loshchilov & Hutter 2019).

    Args:
      grad, params: [n, P].
      moments: [n, 2, P]; Adam's.
      steps: int64 [n]; steps taken before.
      rates: numbers per row; momentum and clip are not used.
      decays: bool [P] or [n, P]; None: every column decays.

    Returns:
      params, moments, steps.
    """
    shrunk = params * (1 - rates.lr * rates.decay)
    start = shrunk if decays is None else torch.where(decays, shrunk, params)
    return descend(grad, start, moments, steps, rates)


OPTIMIZER = Optimizer("adamw", 2, zero_moments(2), update)
