"""A stretch of a traced module as a function of tensors, for one network."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from esper.kasmina.layers import dropout, layer
from esper.kasmina.layout import Params
from esper.tezzeret.modules.cuts import is_aside, module_paths
from esper.tezzeret.modules.functions import FUNCTIONS
from esper.tezzeret.modules.trace import Traced, is_tensor, operation, writes
from esper.utils import rng

DROPOUTS = {"dropout": False, "feature_dropout": True}
"""Operations that draw, and whether whole channels vanish."""

ATTENTION = "scaled_dot_product_attention"
"""It may draw, too; with a share of 0 it does not."""


class Segment(NamedTuple):
    """A stretch between two places that all features go through.

    Attributes:
      traced: the module it is a part of.
      nodes: operations that features go through, in order.
      start: what gives the features.
      end: whose result is the stretch's.
    """

    traced: Traced
    nodes: tuple[Node, ...]
    start: Node
    end: Node

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that it computes with, in the order of their use."""
        found: dict[str, None] = {}
        ready, waiting = {self.start, *self.nodes}, list[Node]()
        for node in self.nodes:
            waiting += node.all_input_nodes
            while waiting:
                each = waiting.pop(0)
                if each in self.traced.names:
                    found[self.traced.names[each]] = None
                elif each not in ready and is_tensor(each):
                    ready.add(each)
                    waiting = each.all_input_nodes + waiting
        return tuple(found)

    @property
    def changes(self) -> tuple[str, ...]:
        """Names of the tensors that it gives new values."""
        names = self.traced.names
        changed = [node.args[0] for node in self.nodes if writes(node)]
        for node in self.nodes:
            if operation(node) == "batch_norm" and node.args[5]:
                changed += node.args[3:5]
        return tuple(dict.fromkeys(names[node] for node in changed if isinstance(node, Node) and node in names))

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return any(_draws(node) for node in self.nodes)


def _draws(node: Node) -> bool:
    return operation(node) in DROPOUTS and bool(node.args[2]) and bool(node.args[1] != 0.0)


def _is_in_place(node: Node) -> bool:
    """Whether a node has to write where it reads, since others read there, too."""
    return writes(node) and not (operation(node) in FUNCTIONS and len(node.all_input_nodes[0].users) == 1)


def why_not(traced: Traced) -> str | None:
    """What of a module cannot be computed from keys, if anything; with the submodule."""
    for node in (each for each in traced.graph.nodes if each.op == "call_function"):
        known = operation(node) in DROPOUTS or (operation(node) == ATTENTION and not _attention_drops(node))
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not known:
            where = next(iter(reversed(module_paths(node))), "forward")
            return f"{operation(node)} in {where!r} draws random numbers that come from no key"
    return None


def _attention_drops(node: Node) -> bool:
    share = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    return bool(share != 0.0)


def compute(part: Segment, tensors: Mapping[str, Tensor], x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
    """The features behind a stretch.

    Args:
      part: the stretch.
      tensors: by name; all that it ``reads``.
      x: [B, ...]; the features before it.
      key: int64 [2]; of what it draws.

    Returns:
      the features, and the new values of what it ``changes``.
    """
    run = _Run(part, dict(tensors), x, key)
    for node in part.nodes:
        if not is_aside(node):
            run.values[node] = run.result(node)
    return run.values[part.end], {name: run.tensors[name] for name in part.changes}


class _Run:
    """A stretch on its way."""

    def __init__(self, part: Segment, tensors: Params, x: Tensor, key: Tensor | None) -> None:
        self.part, self.tensors, self.key, self.drawn, self.samples = part, tensors, key, 0, x.shape[0]
        in_place = any(_is_in_place(node) for node in part.nodes)  # nobody else sees what is written
        self.values: dict[Node, Any] = {part.start: x.clone() if in_place else x}
        self.batch = str(part.traced.inputs.meta["val"].shape[0])

    def value(self, node: Node) -> Any:
        """What a node gives; sizes and what depends on parameters alone when it is asked for."""
        name = self.part.traced.names.get(node)
        if name is not None:
            return self.tensors[name]
        if node not in self.values:
            counts = not is_tensor(node) and str(node.meta.get("val")) == self.batch
            self.values[node] = self.samples if counts else self.result(node)
        return self.values[node]

    def result(self, node: Node) -> Any:
        """Carry a node out."""
        given: Any = map_arg(node.args, self.value)
        named: Any = map_arg(node.kwargs, self.value)
        name, kind = self._written(node), operation(node)
        if _draws(node):
            key = None if self.key is None else rng.fold_in(self.key, self.drawn)
            self.drawn += 1
            return dropout(given[0], key, given[1], DROPOUTS[kind])  # type: ignore[arg-type]
        if kind == "batch_norm":
            return self._batch_norm(node, *given)
        if name is not None:  # a statistic that gets a new value
            first = self.tensors[name] = given[0].clone()
            if kind == "copy":
                self.tensors[name] = given[1].reshape(first.shape)
                return self.tensors[name]
            given = (first, *given[1:])
        function = node.target if _is_in_place(node) else FUNCTIONS.get(kind, node.target)
        return function(*given, **named)  # type: ignore[operator]

    def _written(self, node: Node) -> str | None:
        first = node.args[0] if node.args else None
        return self.part.traced.names.get(first) if writes(node) and isinstance(first, Node) else None

    def _batch_norm(self, node: Node, *given: Any) -> Tensor:
        """``torch.nn.functional.batch_norm``."""
        x, weight, bias, mean, variance, is_training, momentum, epsilon = given[:8]
        if not is_training and mean is not None:
            return by_statistics(x, weight, bias, mean, variance, epsilon)
        out, *statistics = by_batch(x, weight, bias, epsilon)
        for place, statistic in zip((3, 4), statistics, strict=True):
            held: Any = node.args[place]
            name = self.part.traced.names.get(held)
            if name is not None:
                self.tensors[name] = tracked(self.tensors[name], statistic, momentum)
            elif held is not None:  # made on the way, as where the batch's own statistics are asked for
                value = self.values[held]
                self.values[held] = statistic if momentum == 1.0 else torch.lerp(value, statistic, momentum)
        return out


@layer
def by_batch(x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the channels of one network, x [B, C, ...], over samples and positions.

    Returns:
      like x; the batch's mean [C]; its unbiased variance [C].
    """
    dims, shape = (0, *range(2, x.dim())), (1, -1, *(1,) * (x.dim() - 2))
    mean = x.mean(dims)
    variance = (x - mean.reshape(shape)).square().mean(dims)
    samples = x.numel() // x.shape[1]
    return _normalise(x, weight, bias, mean, variance, epsilon), mean, variance * (samples / (samples - 1))


@layer
def tracked(running: Tensor, statistic: Tensor, momentum: float) -> Tensor:
    """The running average of a statistic of one network, both [C]."""
    return torch.lerp(running, statistic, momentum)


@layer
def by_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, epsilon: float
) -> Tensor:
    """Normalise the channels of one network, x [B, C, ...], by running statistics [C], which have no gradient."""
    return _normalise(x, weight, bias, mean, variance, epsilon)


def _normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, epsilon: float
) -> Tensor:
    shape = (1, -1, *(1,) * (x.dim() - 2))
    y = (x - mean.reshape(shape)) * torch.rsqrt(variance + epsilon).reshape(shape)
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)
