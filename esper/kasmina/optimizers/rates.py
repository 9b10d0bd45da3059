"""What scales a step whatever the optimizer: clipping of the gradient, and the learning rate's course."""

import math

import torch
from torch import Tensor

from esper.leyline.hypers import HyperParams, over
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


def schedule(hypers: HyperParams, epoch: Tensor, step: int, steps: int, horizon: int) -> Tensor:
    """``min(1, t / w) (f + (1 - f) (1 + cos(pi min(1, t' / T))) / 2)``, the factor on the learning rate.

    Linear warm-up times cosine decay (Loshchilov & Hutter 2017), where t' = epoch + step / steps is the time when the
    step begins and t = t' + 1 / steps when it ends; so the first step of a cosine without warm-up has the full rate.

    Args:
      hypers: ``warmup_epochs`` w, 0 = none; ``final_lr_fraction`` f; [] or [E].
      epoch: int64 [E], epochs done; or [E, ...], such as the ages [E, S] of seeds.
      step, steps: minibatch within the epoch, and how many an epoch has.
      horizon: T, epochs at which the decay ends.

    Returns:
      like ``epoch``, in the precision of ``hypers``.
    """
    warmup, final = (over(number, epoch.dim() - 1) for number in (hypers.warmup_epochs, hypers.final_lr_fraction))
    begun = epoch.to(warmup.dtype) + step / steps
    cosine = 0.5 * (1 + torch.cos(math.pi * (begun / horizon).clamp(max=1)))
    return share(begun + 1 / steps, warmup) * (final + (1 - final) * cosine)
