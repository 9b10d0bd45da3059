"""Means and variances of features, and types: what is summed up has more bits than features may have.

Features may have fewer bits than weights (``esper.leyline.config.Precision``). Weights are then rounded for matrix
products alone; what is summed up for a mean or a variance is summed up in the weights' type, and what is kept for a
gradient has the features' type.
"""

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-5
"""Added to variances; the default of torch.nn's norms."""


def like_features(weight: Tensor, x: Tensor) -> Tensor:
    """A weight in the type of features that it is multiplied with."""
    return weight if weight.dtype == x.dtype else weight.to(x.dtype)


def summed_in(weight: Tensor) -> torch.dtype:
    """The type of sums over features that a weight belongs to: its own, of 32 bits at the least."""
    return torch.promote_types(weight.dtype, torch.float32)


def moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over some dimensions, which stay with size 1; in two passes, as ``var_mean`` is slow."""
    mean = x.mean(dims, keepdim=True)
    return mean, (x - mean).square().mean(dims, keepdim=True)


def normalise(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + EPSILON)."""
    return (x - mean) * torch.rsqrt(variance + EPSILON)


class Centred(NamedTuple):
    """Features of few bits without their mean as far as it has as few; the rest of it is in ``offset``.

    A gradient keeps ``features`` alone: nothing as large is made in the type of the sums and kept.
    """

    features: Tensor  # x less the rounded mean, in the type of x
    offset: Tensor  # the mean less the rounded mean
    mean: Tensor
    variance: Tensor  # biased

    def scaled(self, scale: Tensor) -> Tensor:
        """(x - mean) * scale, in the type of ``scale``."""
        return self.features * scale - self.offset * scale


def centre(x: Tensor, dims: tuple[int, ...], kept: torch.dtype) -> Centred:
    """Means and variances in the type ``kept`` over some dimensions, which stay with size 1."""
    mean = x.mean(dims, keepdim=True, dtype=kept)
    rounded = mean.to(x.dtype)
    features, offset = x - rounded, mean - rounded.to(kept)
    count = x.numel() // max(mean.numel(), 1)
    squares = torch.linalg.vector_norm(features, 2, dims, keepdim=True, dtype=kept).square() / count
    return Centred(features, offset, mean, (squares - offset.square()).clamp(min=0))
