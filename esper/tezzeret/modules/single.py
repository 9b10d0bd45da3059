"""The layers of many networks, for one: what they are called in ``torch.nn.functional``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from esper.kasmina import layers
from esper.tezzeret.modules.segment import by_batch, by_statistics


def _conv2d(x: Tensor, weight: Tensor) -> Tensor:
    groups = x.shape[2] // weight.shape[2]
    return F.conv2d(x[0], weight[0], padding=weight.shape[-1] // 2, groups=groups).unsqueeze(0)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x[0], weight[0], None if bias is None else bias[0]).unsqueeze(0)


def _embed(tokens: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(tokens[0], weight[0]).unsqueeze(0)


def _apply_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    statistics = (mean[0], variance[0], weight[0], bias[0])
    return F.batch_norm(x[0], *statistics, training=False, eps=layers.EPSILON).unsqueeze(0)


def _by_batch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float = layers.EPSILON
) -> tuple[Tensor, Tensor, Tensor]:
    """With momentum 1 the running statistics of ``torch.nn.functional`` are those of the batch."""
    mean, variance = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    y = F.batch_norm(x, mean, variance, weight, bias, training=True, momentum=1.0, eps=epsilon)
    return y, mean, variance


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return tuple(each.unsqueeze(0) for each in _by_batch(x[0], weight[0], bias[0]))


def _by_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, epsilon: float
) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=epsilon)


def _max_pool2(x: Tensor) -> Tensor:
    """Where entries tie, the gradient goes to the first: the same for whatever made them equal."""
    return F.max_pool2d(x[0], 2).unsqueeze(0)


def _dropout(x: Tensor, key: Tensor | None, share: float, whole: bool = False) -> Tensor:
    """From PyTorch's own generator: the network leaves without keys."""
    del key
    return torch.feature_dropout(x, share, True) if whole else F.dropout(x, share, True)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    layers.conv2d: _conv2d,
    layers.linear: _linear,
    layers.embed: _embed,
    layers.apply_batch_norm: _apply_batch_norm,
    layers.dropout: _dropout,
    layers.max_pool2: _max_pool2,
    layers.batch_norm: _batch_norm,
    by_batch: _by_batch,
    by_statistics: _by_statistics,
}
"""A layer of ``esper.kasmina.layers`` -> the same for rows of one network; the others are run as they are."""


class SingleNetwork(TorchFunctionMode):
    """While it is entered, layers are called by what they are for one network."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return RULES.get(func, func)(*args, **(kwargs or {}))
