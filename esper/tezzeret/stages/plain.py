"""The same module as a plain torch network of one network: what a profile compares with."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from esper.kasmina import layers
from esper.tezzeret.modules.single import SingleNetwork
from esper.tezzeret.stages.forms import Subject


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    return F.group_norm(x[0], groups, weight[0], bias[0], layers.EPSILON).unsqueeze(0)


def _max_pool2(x: Tensor) -> Tensor:
    return F.max_pool2d(x[0], 2).unsqueeze(0)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {layers.group_norm: _group_norm, layers.max_pool2: _max_pool2}
"""Layers beside those of ``SingleNetwork`` for which torch has a function of its own."""


class PlainLayers(SingleNetwork):
    """While it is entered, layers are what ``torch.nn`` calls for one network."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function."""
        rule = RULES.get(func)
        if rule is not None:
            return rule(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


class PlainModule(nn.Module):
    """A blueprint in inference form, as one network's module of torch's operations alone.

    It is traced for batches of the example's size, so that a call runs nothing of this library.
    """

    def __init__(self, subject: Subject, params: Tensor, buffers: Tensor, example: Tensor) -> None:
        """Take over numbers.

        Args:
          subject: the blueprint and its sites.
          params, buffers: [1, P], [1, R].
          example: a batch [B, *source.shape].
        """
        super().__init__()
        named = subject.layout.views(params)
        self.own = nn.ParameterList([nn.Parameter(value[0].clone()) for value in named.values()])
        held = subject.buffer_layout.views(buffers)

        def run(x: Tensor, *values: Tensor) -> Tensor:
            given = {name: value.unsqueeze(0) for name, value in zip(named, values, strict=True)}
            return subject.blueprint.infer(given, held, x.unsqueeze(0)).squeeze(0)

        with PlainLayers():
            self.graph = make_fx(run)(example, *(value.detach() for value in self.own))

    def forward(self, x: Tensor) -> Tensor:
        """[B, *source.shape] -> [B, *target.shape]."""
        y: Tensor = self.graph(x, *self.own)
        return y
