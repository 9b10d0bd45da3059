"""Layers of many networks at once: every tensor has the network dimension n first, weights included.

They are plain functions of tensors. Anything written for one network works too, through ``torch.func.vmap``; these
forms compile without specialising on n.
"""

import torch
from torch import Tensor

from esper.kernels.convolution import conv2d
from esper.kernels.pooling import max_pool2

__all__ = ["batch_norm", "conv2d", "group_norm", "linear", "max_pool2", "normalise", "per_channel"]

EPSILON = 1e-5
"""Added to variances; the default of torch.nn's norms."""


def per_channel(vector: Tensor, features: Tensor) -> Tensor:
    """View [n, C] so that it broadcasts against [n, B, C, *spatial]."""
    return vector.reshape(vector.shape[0], 1, -1, *(1,) * (features.dim() - 3))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Affine map of the last dimension.

    Args:
      x: [n, ..., I].
      weight: [n, O, I].
      bias: [n, O] or None.

    Returns:
      [n, ..., O].
    """
    rows = x.flatten(1, -2)
    out = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return out.reshape(*x.shape[:-1], weight.shape[1])


def normalise(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + EPSILON)."""
    return (x - mean) * torch.rsqrt(variance + EPSILON)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel over samples and positions (Ioffe & Szegedy 2015), training form.

    Args:
      x: [n, B, C, H, W].
      weight: [n, C].
      bias: [n, C].

    Returns:
      the output like x, the batch mean [n, C], and the unbiased batch variance [n, C] (for running statistics; the
      output uses the biased one, as torch does).
    """
    dims = (1, *range(3, x.dim()))
    variance, mean = torch.var_mean(x, dim=dims, correction=0, keepdim=True)
    scale = per_channel(weight, x) * torch.rsqrt(variance + EPSILON)
    out = (x - mean) * scale + per_channel(bias, x)
    samples = x[0, :, 0].numel()
    unbiased = variance * (samples / max(samples - 1, 1))
    return out, mean.flatten(1), unbiased.flatten(1)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Normalise groups of channels within each sample (Wu & He 2018).

    Args:
      x: [n, B, C, *spatial].
      weight: [n, C].
      bias: [n, C].
      groups: divides C.

    Returns:
      like x. Written with mean and variance: ``F.group_norm`` does not compile with a symbolic batch.
    """
    grouped = x.unflatten(2, (groups, -1))
    dims = tuple(range(3, grouped.dim()))
    variance, mean = torch.var_mean(grouped, dim=dims, correction=0, keepdim=True)
    return normalise(grouped, mean, variance).flatten(2, 3) * per_channel(weight, x) + per_channel(bias, x)
