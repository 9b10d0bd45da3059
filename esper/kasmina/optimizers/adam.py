"""Adam: steps of the size of the learning rate, by running means of the gradient and of its square."""

import torch
from torch import Tensor

from esper.kasmina.optimizers.contract import Optimizer, Rates, zero_moments
from esper.utils.numerics import root


def update(
    grad: Tensor, params: Tensor, moments: Tensor, steps: Tensor, rates: Rates, decays: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``params' = params - lr m' / (1 - b1^t) / (sqrt(s' / (1 - b2^t)) + epsilon)`` with ``g = grad + decay params``.

    Here m' = b1 m + (1 - b1) g, s' = b2 s + (1 - b2) g^2 and t = steps + 1: ``torch.optim.Adam`` with L2 decay of
    every parameter (Kingma & Ba 2015).

    Args:
      grad, params: [n, P].
      moments: [n, 2, P]; m and s.
      steps: int64 [n]; steps taken before.
      rates: numbers per row; momentum and clip are not used.
      decays: not used.

    Returns:
      params, moments, steps.
    """
    return descend(torch.addcmul(grad, params, rates.decay), params, moments, steps, rates)


def descend(
    grad: Tensor, params: Tensor, moments: Tensor, steps: Tensor, rates: Rates
) -> tuple[Tensor, Tensor, Tensor]:
    """``update`` with ``g = grad``."""
    mean, square = moments.unbind(1)
    mean = torch.lerp(mean, grad, 1 - rates.beta1)
    square = torch.lerp(square, grad * grad, 1 - rates.beta2)
    elapsed = (steps + 1).unsqueeze(1).to(grad.dtype)
    scale = torch.sqrt(1 - rates.beta2**elapsed)
    step = rates.lr / (1 - rates.beta1**elapsed)
    params = params - step * mean / (root(square) / scale + rates.epsilon)
    return params, torch.stack((mean, square), dim=1), steps + 1


OPTIMIZER = Optimizer("adam", 2, zero_moments(2), update)
