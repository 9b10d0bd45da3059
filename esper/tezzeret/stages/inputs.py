"""What a blueprint is tried on: numbers of a few networks away from their start, and batches of several kinds."""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from esper.tezzeret.stages.forms import Goal, Subject
from esper.utils import rng

BATCHES = (1, 16, 32)
"""Samples of a batch."""

NETWORKS = 2
"""Rows of a comparison."""

OUTPUTS = 8
"""Of the linear map behind a blueprint, whose cross-entropy is what gradients are taken of."""

DRAWS: dict[str, Callable[[Tensor, tuple[int, ...], torch.dtype], Tensor]] = {
    "normal": rng.normal,
    "uniform": lambda key, shape, dtype: rng.uniform(key, shape, 0.0, 1.0, dtype),
    "zeros": lambda key, shape, dtype: key.new_zeros(shape, dtype=dtype),
    "normal x 100": lambda key, shape, dtype: 100 * rng.normal(key, shape, dtype),
}
"""Kinds of features; of tokens all but ``zeros`` are uniform draws."""


class Numbers(NamedTuple):
    """What networks are made of.

    Attributes:
      fresh: [n, P]; as they are drawn when a seed germinates.
      params: [n, P]; away from that, where a branch that ends in zeros shows what it does.
      buffers: [n, R].
    """

    fresh: Tensor
    params: Tensor
    buffers: Tensor


class DrawnBatch(NamedTuple):
    """A batch of a kind.

    Attributes:
      kind: of ``DRAWS``.
      x: [n, B, *source.shape].
      targets: int64 [n, B].
    """

    kind: str
    x: Tensor
    targets: Tensor

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.kind}, batch {self.x.shape[1]}"


def numbers_of(subject: Subject, count: int, dtype: torch.dtype, device: torch.device) -> Numbers:
    """The numbers of so many networks."""
    keys = rng.fold_in(rng.key(0), torch.arange(count))
    fresh, buffers = subject.layout.init(keys, dtype), subject.buffer_layout.init(keys, dtype)
    params = fresh + 0.1 * rng.normal(rng.key(3), tuple(fresh.shape), dtype)
    return Numbers(*(each.to(device) for each in (fresh, params, buffers)))


def batch_of(subject: Subject, kind: str, samples: int, count: int, like: Tensor) -> DrawnBatch:
    """A batch of a kind; ``like``: of this dtype and device."""
    number, shape = list(DRAWS).index(kind), (count, samples, *subject.source.shape)
    key = rng.fold_in(rng.fold_in(rng.key(1), number), samples)
    if subject.vocabulary and kind != "zeros":
        x = (rng.uniform(key, shape) * subject.vocabulary).long()
    else:
        x = DRAWS[kind](key, shape, torch.int64 if subject.vocabulary else like.dtype)
    targets = (rng.uniform(rng.fold_in(key, 1), (count, samples)) * OUTPUTS).long()
    return DrawnBatch(kind, x.to(like.device), targets.to(like.device))


def goal_of(subject: Subject, y: Tensor, targets: Tensor) -> Goal:
    """The goal behind outputs y [n, B, ...]: a map that gives logits of about 1, whatever the size of what it reads."""
    size = prod(subject.target.shape)
    spread = float(y.detach().double().square().mean().sqrt())
    scale = size**-0.5 / (spread if spread > 1e-6 else 1.0)
    weight = scale * rng.normal(rng.key(2), (OUTPUTS, size), y.dtype)
    return Goal(weight.to(y.device), targets)
