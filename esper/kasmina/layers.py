"""Layers of many networks at once: every tensor has the network dimension n first, weights included.

They are plain functions of tensors. Anything written for one network works too, through ``torch.func.vmap``; these
forms compile without specialising on n. Who overrides torch's functions (``torch.overrides``) sees a layer as one.

Features may have fewer bits than weights: see ``esper.kasmina.moments``.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from esper.kasmina.moments import EPSILON, centre, like_features, moments, normalise, summed_in
from esper.utils import rng

__all__ = [
    "apply_batch_norm",
    "batch_norm",
    "causal_attention",
    "conv2d",
    "dropout",
    "embed",
    "group_norm",
    "largest",
    "layer_norm",
    "linear",
    "max_pool2",
    "normalise",
    "per_channel",
    "standardise",
    "tanh_mix",
    "track",
]

Layer = TypeVar("Layer", bound=Callable[..., Any])


def layer(function: Layer) -> Layer:
    """A function of features that can be overridden as torch's own are."""

    @functools.wraps(function)
    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if has_torch_function_unary(x):
            return handle_torch_function(call, (x,), x, *args, **kwargs)
        return function(x, *args, **kwargs)

    return cast(Layer, call)


RUNNING_MOMENTUM = 0.1
"""Weight of the newest batch in the running statistics; torch.nn.BatchNorm2d's default."""


def per_channel(vector: Tensor, features: Tensor) -> Tensor:
    """View [n, C] so that it broadcasts against [n, B, C, *spatial]."""
    return vector.reshape(vector.shape[0], 1, -1, *(1,) * (features.dim() - 3))


@layer
def conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """2-D convolution, stride 1, "same" zero padding, no bias, one weight per network.

    Every position's window becomes a column, and the convolution one matrix product per network: a grouped convolution
    of the library would be specialised on the number of networks when it is compiled.

    Args:
      x: [n, B, C, H, W].
      weight: [n, C', C/g, k, k], k odd. g = C / (C/g) channel groups follow from the shapes: g = 1 is a full
        convolution, C/g = 1 with C' = C a depthwise one.

    Returns:
      [n, B, C', H, W]. Law: row i equals ``F.conv2d(x[i], weight[i], padding=k // 2, groups=g)``.
    """
    weight = like_features(weight, x)
    outputs, per_group, kernel = weight.shape[1:4]
    groups = x.shape[2] // per_group
    if groups > 1 and (per_group > 1 or outputs != groups):
        parts = [conv2d(part, own) for part, own in zip(x.chunk(groups, 2), weight.chunk(groups, 1), strict=True)]
        return torch.cat(parts, dim=2)
    shared = x.stride(0) == 0  # samples that all networks see are cut once
    columns = _windows(x[:1] if shared else x, kernel)
    columns = columns.expand(weight.shape[0], -1, -1, -1) if shared else columns
    if groups > 1:
        out = (columns.unflatten(1, (groups, -1)) * weight.flatten(2)[..., None, None]).sum(2)
    else:
        out = torch.bmm(weight.flatten(2), columns.flatten(2)).unflatten(2, columns.shape[2:])
    return out.unflatten(3, x.shape[3:]).transpose(1, 2)


def _windows(x: Tensor, kernel: int) -> Tensor:
    """Windows of x [n, B, C, H, W], zeros beyond its border -> [n, C * k * k, B, H * W]."""
    if kernel == 1:
        return x.flatten(3).transpose(1, 2)
    columns = F.unfold(x.flatten(0, 1), kernel, padding=kernel // 2)
    return columns.unflatten(0, x.shape[:2]).transpose(1, 2)


@layer
def max_pool2(x: Tensor) -> Tensor:
    """2x2 max pooling with stride 2; an odd last row or column is dropped.

    Args:
      x: [n, B, C, H, W].

    Returns:
      [n, B, C, H // 2, W // 2]. Where entries tie, the gradient is shared among them; a NaN wins.
    """
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    rows = torch.maximum(x[..., 0:height:2, :width], x[..., 1:height:2, :width])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


@layer
def largest(x: Tensor) -> Tensor:
    """The largest number of the last dimension, which goes; the first of equals has the gradient."""
    return x.max(-1).values


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
    weight, rows = like_features(weight, x), x.flatten(1, -2)
    bias = bias if bias is None else like_features(bias, x)
    out = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return out.reshape(*x.shape[:-1], weight.shape[1])


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
    if x.dtype == summed_in(weight):
        mean, variance = moments(x, dims)
        scale = per_channel(weight, x) * torch.rsqrt(variance + EPSILON)
        out = (x - mean) * scale + per_channel(bias, x)
    else:
        centred = centre(x, dims, summed_in(weight))
        mean, variance = centred.mean, centred.variance
        scale = per_channel(weight, x) * torch.rsqrt(variance + EPSILON)
        out = (centred.scaled(scale) + per_channel(bias, x)).to(x.dtype)
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
    return like_features(x * per_channel(scale, x) + per_channel(shift, x), x)


@layer
def track(running: Tensor, statistic: Tensor) -> Tensor:
    """Running average of a batch's statistic, both [n, C]."""
    return torch.lerp(running, statistic, RUNNING_MOMENTUM)


@layer
def dropout(x: Tensor, key: Tensor, share: float, whole: bool = False) -> Tensor:
    """Set a share of the features to 0, and the others so much higher that the mean stays (Srivastava et al. 2014).

    Args:
      x: [n, B, ...], or [B, ...] of one network.
      key: int64 [n, 2], or [2].
      share: of features that vanish, in [0, 1).
      whole: whether whole channels vanish, whose axis follows that of the samples.

    Returns:
      like x.
    """
    lead = key.dim() - 1
    shape = tuple(x.shape[lead:])
    drawn = (*shape[:2], *(1,) * (len(shape) - 2)) if whole else shape
    return torch.where(rng.uniform(key, drawn) >= share, x / (1 - share), 0.0)


@layer
def tanh_mix(x: Tensor, y: Tensor, openness: Tensor) -> Tensor:
    """The way from x to y: x + tanh(openness) (y - x), like both; openness [n, 1]."""
    return like_features(x + torch.tanh(openness).reshape(-1, *(1,) * (x.dim() - 1)) * (y - x), x)


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
    if x.dtype == summed_in(weight):
        normed = normalise(grouped, *moments(grouped, dims)).flatten(2, 3)
    else:
        centred = centre(grouped, dims, summed_in(weight))
        normed = centred.scaled(torch.rsqrt(centred.variance + EPSILON)).to(x.dtype).flatten(2, 3)
    return like_features(normed * per_channel(weight, x) + per_channel(bias, x), x)


@layer
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
    return like_features(standardise(x) * weight.reshape(shape) + bias.reshape(shape), x)


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
