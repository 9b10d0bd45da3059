"""Optimizers on flat rows: one expression updates every network, each with its own numbers.

Definitions are torch.optim's: SGD with momentum and L2 weight decay, Adam with L2 weight decay, gradient clipping by
norm, linear warm-up and cosine decay.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kernels import optimizer as kernel
from esper.leyline.config import Optimizer
from esper.leyline.hypers import HyperParams

MOMENTS = {Optimizer.SGD: 1, Optimizer.ADAM: 2}
"""Optimizer moments M per parameter."""


class Learner(NamedTuple):
    """Parameters of n rows with their optimizer state."""

    params: Tensor  # [n, P]
    moments: Tensor  # [n, M, P]
    steps: Tensor  # int64 [n]; steps taken


class Rates(NamedTuple):
    """The numbers of an update, each [n, 1] or [1, 1]."""

    lr: Tensor
    decay: Tensor
    clip: Tensor
    momentum: Tensor
    beta1: Tensor
    beta2: Tensor
    epsilon: Tensor

    def at(self, rows: Tensor) -> "Rates":
        """The numbers of some rows; [1, 1] stays."""
        return Rates(*(value if value.shape[0] == 1 else value.index_select(0, rows) for value in self))


def schedule(hypers: HyperParams, epoch: Tensor, step: int, steps: int, horizon: int) -> Tensor:
    """Factor on the learning rate: linear warm-up, then cosine decay to ``final_lr_fraction``.

    Args:
      hypers: ``warmup_epochs`` w, ``final_lr_fraction`` f.
      epoch: int64 [E]; epochs done.
      step, steps: minibatch within the epoch, and how many an epoch has.
      horizon: epochs at which the decay ends.

    Returns:
      [E]. With t = epoch + (step + 1) / steps: min(1, t / w) * (f + (1 - f) (1 + cos(pi min(1, t' / T))) / 2), where
      t' = epoch + step / steps; so the first step of a cosine without warm-up has the full rate.
    """
    dtype = hypers.warmup_epochs.dtype
    begun = epoch.to(dtype) + step / steps
    warm = ((begun + 1 / steps) / hypers.warmup_epochs.clamp(min=1e-12)).clamp(max=1)
    cosine = 0.5 * (1 + torch.cos(math.pi * (begun / horizon).clamp(max=1)))
    return warm * (hypers.final_lr_fraction + (1 - hypers.final_lr_fraction) * cosine)


def _column(value: Tensor) -> Tensor:
    return value.reshape(-1, 1)


def host_rates(hypers: HyperParams, factor: Tensor) -> Rates:
    """Numbers of the hosts' updates; ``factor`` [E] scales the learning rate."""
    return _rates(hypers, hypers.host_lr * factor, hypers.host_weight_decay, hypers.host_clip)


def seed_rates(hypers: HyperParams, factor: Tensor) -> Rates:
    """Numbers of the seeds' updates; ``factor`` [E] scales the learning rate."""
    return _rates(hypers, hypers.seed_lr * factor, hypers.seed_weight_decay, hypers.seed_clip)


def _rates(hypers: HyperParams, lr: Tensor, decay: Tensor, clip: Tensor) -> Rates:
    shared = (hypers.momentum, hypers.adam_beta1, hypers.adam_beta2, hypers.adam_epsilon)
    return Rates(*(_column(value) for value in (lr, decay, clip, *shared)))


def clip_rows(grad: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Clip each row by its L2 norm, as ``torch.nn.utils.clip_grad_norm_`` does.

    Args:
      grad: [n, P].
      limit: [n, 1] or [1, 1]; inf = off.

    Returns:
      the clipped gradient and the norms before clipping [n].
    """
    norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
    return grad * (limit / (norm + 1e-6)).clamp(max=1), norm.squeeze(1)


def update(optimizer: Optimizer, learner: Learner, grad: Tensor, rates: Rates) -> Learner:
    """One optimizer step on every row.

    Args:
      optimizer: SGD or ADAM.
      learner: [n, P].
      grad: [n, P].
      rates: numbers per row.

    Returns:
      the new learner. Law: row i equals torch.optim's step with row i's numbers.
    """
    steps = learner.steps + 1
    grad = torch.addcmul(grad, learner.params, rates.decay)
    if optimizer is Optimizer.SGD:
        velocity = torch.addcmul(grad, learner.moments[:, 0], rates.momentum)
        return Learner(torch.addcmul(learner.params, velocity, rates.lr, value=-1), velocity.unsqueeze(1), steps)
    mean, square = learner.moments.unbind(1)
    mean = torch.lerp(mean, grad, 1 - rates.beta1)
    square = torch.lerp(square, grad * grad, 1 - rates.beta2)
    elapsed = _column(steps).to(grad.dtype)
    scale = torch.sqrt(1 - rates.beta2**elapsed)
    step = rates.lr / (1 - rates.beta1**elapsed)
    params = learner.params - step * mean / (torch.sqrt(square) / scale + rates.epsilon)
    return Learner(params, torch.stack((mean, square), dim=1), steps)


def learn(
    optimizer: Optimizer, learner: Learner, grad: Tensor, rates: Rates, owners: Tensor | None, fused: bool
) -> Learner:
    """Clip and take one step.

    Args:
      optimizer: SGD or ADAM.
      learner: [n, P].
      grad: [n, P].
      rates: numbers of every environment.
      owners: int64 [n]; environment of each row; None: its own number.
      fused: in one pass by ``esper.kernels.optimizer``, the same up to rounding.
    """
    if fused:
        steps = learner.steps + 1
        return Learner(*kernel.update(learner.params, learner.moments, grad, steps, rates, owners), steps)
    own = rates if owners is None else rates.at(owners)
    return update(optimizer, learner, clip_rows(grad, own.clip)[0], own)
