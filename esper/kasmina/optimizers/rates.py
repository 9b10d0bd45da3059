"""What scales a step whatever the optimizer: clipping of the gradient, and the learning rate's course."""

import math

import torch
from torch import Tensor

from esper.utils.numerics import root, share


def clip_rows(grad: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """``grad min(1, limit / (|grad| + 1e-6))``, |.| each row's L2 norm: ``torch.nn.utils.clip_grad_norm_``.

    Pascanu, Mikolov & Bengio 2013.

    Args:
      grad: [n, P].
      limit: [n, 1] or [1, 1], >= 0; inf = off.

    Returns:
      the clipped gradient and the norms before clipping [n]. The norm's derivative at a gradient of 0 is 0.
    """
    norm = root((grad * grad).sum(dim=1, keepdim=True))
    return grad * share(limit, norm + 1e-6), norm.squeeze(1)


def schedule(warmup: Tensor, final: Tensor, begun: Tensor, span: float, horizon: float) -> Tensor:
    """``min(1, t / w) (f + (1 - f) (1 + cos(pi min(1, t' / T))) / 2)``, the factor on the learning rate.

    Linear warm-up times cosine decay (Loshchilov & Hutter 2017), where t' is the time when the step begins and
    t = t' + span when it ends; so the first step of a cosine without warm-up has the full rate.

    Args:
      warmup: w, in epochs; 0 = none.
      final: f; 1 = no decay.
      begun: t', in epochs: the age of what learns.
      span: epochs that a step takes.
      horizon: T, epochs at which the decay ends.

    Returns:
      what the tensors broadcast to.
    """
    cosine = 0.5 * (1 + torch.cos(math.pi * (begun / horizon).clamp(max=1)))
    return share(begun + span, warmup) * (final + (1 - final) * cosine)
