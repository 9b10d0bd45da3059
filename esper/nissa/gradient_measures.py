"""What gradients look like: pure functions of tensors, over many networks at once and all minibatches of an epoch.

Shares are taken element by element, percentiles over the values of all minibatches together, by linear interpolation
as NumPy's. Nothing here waits for the device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

VANISHING, EXPLODING = 1e-7, 1e3
"""Absolute values below and above which an element of a gradient vanishes and explodes."""

SEED_VANISHING, SEED_EXPLODING = 1e-7, 100.0
"""The same of the norm of one of a seed's tensors."""


class GradientMeasures(NamedTuple):
    """Of n networks; T tensors each."""

    norm: Tensor  # [n]; L2 norm of a minibatch's gradient, mean over minibatches
    mean: Tensor  # [n]; of all elements
    std: Tensor  # [n]; of all elements, about their mean
    vanishing: Tensor  # [n]; share of elements below VANISHING
    exploding: Tensor  # [n]; share of elements above EXPLODING
    percentiles: Tensor  # [n, q]; of absolute values
    tensor_norm: Tensor  # [n, T]; as norm, of every tensor
    tensor_vanishing: Tensor  # [n, T]
    tensor_exploding: Tensor  # [n, T]


def percentiles(values: Tensor, wanted: Sequence[float]) -> Tensor:
    """Percentiles of rows.

    Args:
      values: [n, m], m at least 1.
      wanted: q numbers from 0 to 100.

    Returns:
      [n, q]; NaN for a row that holds one, infinite between a number and infinity. Law, of finite rows:
      ``numpy.percentile(values, wanted, axis=1).T``.
    """
    if not wanted:
        return values[:, :0]
    ordered, last = values.sort(dim=1).values, values.shape[1] - 1
    columns = []
    for each in wanted:
        place = each / 100 * last
        low = min(int(place), last)
        below, above, share = ordered[:, low], ordered[:, min(low + 1, last)], place - low
        step = above - below
        # from the nearer end, as NumPy does it
        between = below + step * share if share < 0.5 else above - step * (1 - share)
        columns.append(below if share == 0 else torch.where(above == torch.inf, above, between))
    return torch.where(values.isnan().any(1, keepdim=True), torch.nan, torch.stack(columns, 1))


def measure_gradients(
    grads: Tensor, owners: Tensor, num_tensors: int, wanted: Sequence[float] = ()
) -> GradientMeasures:
    """Measure the gradients of an epoch.

    Args:
      grads: [k, n, P]; of k minibatches.
      owners: int64 [P]; which tensor each column belongs to, 0 to T - 1.
      num_tensors: T; every one has a column.
      wanted: percentiles, q numbers from 0 to 100.

    Returns:
      of n networks; without parameters all zero.
    """
    count, parts = grads.shape[1], (grads.shape[1], num_tensors)
    grads = grads if grads.dtype == torch.float64 else grads.float()
    none = grads.new_zeros(count)
    if grads.shape[2] == 0:
        empty = grads.new_zeros(parts)
        return GradientMeasures(none, none, none, none, none, none.new_zeros(count, len(wanted)), empty, empty, empty)
    sizes = torch.zeros_like(none[:1]).expand(num_tensors).index_add(0, owners, torch.ones_like(grads[0, 0]))
    pooled = grads.movedim(0, 1).flatten(1)
    small, large = pooled.abs() < VANISHING, pooled.abs() > EXPLODING

    def by_tensor(columns: Tensor) -> Tensor:
        """Sums over the columns of each tensor: [m, P] -> [m, T]."""
        return columns.new_zeros(columns.shape[0], num_tensors).index_add(1, owners, columns)

    def share(flags: Tensor) -> Tensor:
        return by_tensor(flags.to(grads.dtype).unflatten(1, (-1, grads.shape[2])).mean(1)) / sizes

    squares = by_tensor(grads.flatten(0, 1).square()).unflatten(0, (-1, count))
    return GradientMeasures(
        norm=squares.sum(2).sqrt().mean(0),
        mean=pooled.mean(1),
        std=pooled.std(1, correction=0),
        vanishing=small.to(grads.dtype).mean(1),
        exploding=large.to(grads.dtype).mean(1),
        percentiles=percentiles(pooled.abs(), wanted),
        tensor_norm=squares.sqrt().mean(0),
        tensor_vanishing=share(small),
        tensor_exploding=share(large),
    )


def host_health(found: GradientMeasures) -> Tensor:
    """How sound a host's gradients are, [n] from 0 to 1; 0 where one is not finite.

    1 - 0.2 for every tensor of whose elements more than half vanish - 0.3 for every one of which more than a hundredth
    explode - 0.1 if the variance of the tensors' norms exceeds 10 - 0.3 if their mean is below 1e-5 - 0.2 if above 100.
    """
    norms, one = found.tensor_norm, torch.ones_like(found.norm)
    overall, spread = norms.mean(1), norms.var(1, correction=0)
    lost = 0.2 * (found.tensor_vanishing > 0.5).sum(1) + 0.3 * (found.tensor_exploding > 0.01).sum(1)
    lost = lost + 0.1 * (spread > 10) + 0.3 * (overall < 1e-5) + 0.2 * (overall > 100)
    return torch.where(found.norm.isfinite(), (one - lost).clamp(0, 1), 0.0)


def seed_health(found: GradientMeasures) -> Tensor:
    """How sound a seed's gradients are, [n] from 0 to 1; 0 where one is not finite, 1 without parameters.

    1 - 0.5 times the share of tensors whose norm vanishes - 0.8 times that of those whose norm explodes.
    """
    norms = found.tensor_norm
    if norms.shape[1] == 0:
        return torch.ones_like(found.norm)
    small, large = ((flags).to(norms.dtype).mean(1) for flags in (norms < SEED_VANISHING, norms > SEED_EXPLODING))
    return torch.where(found.norm.isfinite(), (1 - 0.5 * small - 0.8 * large).clamp(0, 1), 0.0)
