"""Layers of many networks at once: every tensor has the network dimension n first, weights included.

They are plain functions of tensors. Anything written for one network works too, through ``torch.func.vmap``; these
forms compile without specialising on n. Called with the stand-ins of ``esper.kasmina.tracing``, a layer is written
down instead.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kernels import convolution, pooling

__all__ = [
    "apply_batch_norm",
    "batch_norm",
    "causal_attention",
    "conv2d",
    "embed",
    "fade",
    "group_norm",
    "layer_norm",
    "linear",
    "max_pool2",
    "normalise",
    "per_channel",
    "standardise",
    "track",
]

Layer = TypeVar("Layer", bound=Callable[..., Any])


def layer(function: Layer) -> Layer:
    """A function of features that can be written down by name."""

    @functools.wraps(function)
    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        return function(x, *args, **kwargs) if isinstance(x, Tensor) else x.layer(function.__name__, *args, **kwargs)

    return cast(Layer, call)


conv2d = layer(convolution.conv2d)
max_pool2 = layer(pooling.max_pool2)

EPSILON = 1e-5
"""Added to variances; the default of torch.nn's norms."""

RUNNING_MOMENTUM = 0.1
"""Weight of the newest batch in the running statistics; torch.nn.BatchNorm2d's default."""


def per_channel(vector: Tensor, features: Tensor) -> Tensor:
    """View [n, C] so that it broadcasts against [n, B, C, *spatial]."""
    return vector.reshape(vector.shape[0], 1, -1, *(1,) * (features.dim() - 3))


@layer
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


@layer
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


@layer
def apply_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Batch norm in inference form, with running statistics.

    Args:
      x: [n, B, C, H, W].
      weight, bias, mean, variance: [n, C].

    Returns:
      like x.
    """
    scale = weight * torch.rsqrt(variance + EPSILON)
    shift = bias - mean * scale
    return x * per_channel(scale, x) + per_channel(shift, x)


@layer
def track(running: Tensor, statistic: Tensor) -> Tensor:
    """Running average of a batch's statistic, both [n, C]; it carries no gradient."""
    return torch.lerp(running, statistic.detach(), RUNNING_MOMENTUM)


@layer
def fade(x: Tensor, y: Tensor, openness: Tensor) -> Tensor:
    """The way from x to y: x + tanh(openness) (y - x), like both; openness [n, 1]."""
    return x + torch.tanh(openness).reshape(-1, *(1,) * (x.dim() - 1)) * (y - x)


@layer
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


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """Look tokens up, each network in its own table.

    Args:
      tokens: int64 [n, B, T] in [0, V).
      weight: [n, V, D].

    Returns:
      [n, B, T, D].
    """
    count, vocabulary = weight.shape[:2]
    first = torch.arange(count, device=tokens.device).reshape(-1, 1, 1) * vocabulary
    return F.embedding(tokens + first, weight.flatten(0, 1))


def standardise(x: Tensor) -> Tensor:
    """Each vector of the last dimension, minus its mean and over its standard deviation; any shape [..., D]."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise each vector of the last dimension (Ba, Kiros & Hinton 2016).

    Args:
      x: [n, B, ..., D].
      weight: [n, D].
      bias: [n, D].

    Returns:
      like x.
    """
    shape = (x.shape[0], *(1,) * (x.dim() - 2), -1)
    return standardise(x) * weight.reshape(shape) + bias.reshape(shape)


def causal_attention(qkv: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of each position to itself and those before it (Vaswani et al. 2017).

    Networks and samples become one batch, so that the fused kernels apply.

    Args:
      qkv: [n, B, T, 3 D]; queries, keys and values side by side.
      heads: divides D; head i has the i-th part of each.

    Returns:
      [n, B, T, D]; the heads' outputs side by side.
    """
    count, samples, length, width = qkv.shape
    parts = qkv.reshape(count * samples, length, 3, heads, width // (3 * heads))
    query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return mixed.transpose(1, 2).reshape(count, samples, length, width // 3)
