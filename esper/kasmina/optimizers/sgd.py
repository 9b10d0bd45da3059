"""Stochastic gradient descent with momentum."""

import torch
from torch import Tensor

from esper.kasmina.optimizers.contract import Optimizer, Rates, zero_moments


def update(
    grad: Tensor, params: Tensor, moments: Tensor, steps: Tensor, rates: Rates, decays: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``v' = momentum v + grad + decay params``; ``params' = params - lr v'``.

    ``torch.optim.SGD`` with L2 decay of every parameter (Polyak 1964; Sutskever et al. 2013).

    Args:
      grad, params: [n, P].
      moments: [n, 1, P]; v.
      steps: int64 [n]; steps taken before.
      rates: numbers per row; lr, decay and momentum are used.
      decays: not used.

    Returns:
      params, moments, steps.
    """
    grad = torch.addcmul(grad, params, rates.decay)
    velocity = torch.addcmul(grad, moments[:, 0], rates.momentum)
    return torch.addcmul(params, velocity, rates.lr, value=-1), velocity.unsqueeze(1), steps + 1


OPTIMIZER = Optimizer("sgd", 1, zero_moments(1), update)
