"""Layers of many networks, run for one, carry an axis of size 1 in front: it is taken out of a graph where it can."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from esper.tezzeret.modules.trace import is_tensor, operation

ATEN = torch.ops.aten

UNARY = "relu sigmoid tanh exp log sqrt rsqrt square abs neg reciprocal gelu silu softplus clone detach"
ELEMENTWISE = f"{UNARY} add sub mul div lerp"
"""What acts on every number, and pairs numbers as they broadcast."""


def without_lone_axes(graph: Graph) -> Graph:
    """The same function with no axis of one network, wherever what reads it can do without."""
    return _Rewriting(graph).new


class _Rewriting:
    """A graph on its way; ``inner`` holds what lacks the axis that its node has."""

    def __init__(self, graph: Graph) -> None:
        self.new = Graph()
        self.plain, self.inner = dict[Node, Node](), dict[Node, Node]()
        for node in graph.nodes:
            if node.op == "output":
                self.new.output(map_arg(node.args[0], self.whole))
            elif node.op != "call_function" or not self._done(node):
                self.plain[node] = self.new.node_copy(node, self.whole)

    def whole(self, node: Node) -> Node:
        """A node as it was."""
        if node not in self.plain:
            self.plain[node] = self.new.call_function(ATEN.unsqueeze.default, (self.inner[node], 0))
            self.plain[node].meta = dict(node.meta)
        return self.plain[node]

    def _done(self, node: Node) -> bool:
        """Write a node without the axis, if that can be."""
        first, kind = node.args[0] if node.args else None, operation(node)
        if not isinstance(first, Node) or not is_tensor(node):
            return False
        if kind == "unsqueeze" and node.args[1] == 0 and first not in self.inner:
            self.inner[node] = self.whole(first)
            return True
        rule = RULES.get(kind)
        if rule is _elementwise:
            first = next((each for each in node.args if isinstance(each, Node) and each in self.inner), first)
        if rule is None or first not in self.inner or str(node.target).partition(".")[0].endswith("_"):
            return False
        return rule(self, node, first)

    def dropped(self, node: Node) -> Node:
        """A node without its first axis, of size 1."""
        new = self.new.call_function(ATEN.select.int, (self.whole(node), 0, 0))
        new.meta = dict(node.meta)
        return new

    def write(self, node: Node, *args: Any, keeps: bool = True) -> bool:
        """Write a node of other arguments; whether its result lacks the axis."""
        new = self.new.call_function(node.target, args, dict(node.kwargs))  # type: ignore[arg-type]
        new.meta = dict(node.meta)
        (self.inner if keeps else self.plain)[node] = new
        return True


def _elementwise(run: _Rewriting, node: Node, first: Node) -> bool:
    rank = first.meta["val"].dim()

    def fits(other: Any) -> bool:
        return not isinstance(other, Node) or other in run.inner or _is_of_one(other, rank)

    def brought(other: Any) -> Any:
        if not isinstance(other, Node) or other in run.inner:
            return run.inner.get(other, other)
        return run.plain[other] if other.meta["val"].dim() < rank else run.dropped(other)

    nodes = [other for other in node.args if isinstance(other, Node)]
    same = all(other.meta["val"].dim() == rank for other in nodes if other in run.inner)
    return same and all(map(fits, node.args)) and not _sized(node) and run.write(node, *map(brought, node.args))


def _is_of_one(other: Node, rank: int) -> bool:
    """Whether it stands for every network: it lacks the axis, or has it with size 1."""
    value = other.meta["val"]
    return value.dim() < rank or (value.dim() == rank and isinstance(value.shape[0], int) and value.shape[0] == 1)


def _sized(node: Node) -> bool:
    """Whether named arguments are values."""
    return any(isinstance(value, Node) for value in node.kwargs.values())


def _is_idle(run: _Rewriting, node: Node, first: Node) -> bool:
    """Whether a node gives what it is given, which is then what stands for it."""
    if str(node.meta["val"].shape) != str(first.meta["val"].shape):
        return False
    run.inner[node] = run.inner[first]
    return True


def _reshape(run: _Rewriting, node: Node, first: Node) -> bool:
    if _is_idle(run, node, first):
        return True
    shape: Any = [each if not isinstance(each, Node) else run.whole(each) for each in node.args[1]]  # type: ignore[union-attr]
    keeps = len(shape) > 1 and shape[0] == 1
    return run.write(node, run.inner[first], shape[1:] if keeps else shape, keeps=keeps)


def _select(run: _Rewriting, node: Node, first: Node) -> bool:
    if tuple(node.args[1:]) != (0, 0):
        return False
    run.plain[node] = run.inner[first]
    return True


def _flatten(run: _Rewriting, node: Node, first: Node) -> bool:
    begin, *end = node.args[1:]
    if _is_idle(run, node, first):
        return True
    if not isinstance(begin, int) or begin < 1:
        return False
    return run.write(node, run.inner[first], begin - 1, *(_shifted(each) for each in end))


def _mean(run: _Rewriting, node: Node, first: Node) -> bool:
    dims, *rest = node.args[1:]
    if not isinstance(dims, list | tuple) or 0 in dims or -first.meta["val"].dim() in dims:
        return False
    return run.write(node, run.inner[first], [_shifted(each) for each in dims], *rest)


def _axis(run: _Rewriting, node: Node, first: Node) -> bool:
    axis, *rest = node.args[1:]
    if not isinstance(axis, int) or axis in (0, -first.meta["val"].dim()):
        return False
    return run.write(node, run.inner[first], _shifted(axis), *rest)


def _index(run: _Rewriting, node: Node, first: Node) -> bool:
    places: Any = node.args[1]
    if len(places) < 2 or places[0] is not None:
        return False
    return run.write(node, run.inner[first], [None if each is None else run.whole(each) for each in places[1:]])


def _same(run: _Rewriting, node: Node, first: Node) -> bool:
    """What looks at the last axes, or picks one of several results."""
    if any(isinstance(each, Node) and run.plain.get(each) is None for each in node.args[1:]):
        return False
    return run.write(node, run.inner[first], *(run.plain[e] if isinstance(e, Node) else e for e in node.args[1:]))


def _shifted(axis: Any) -> int:
    return int(axis) - 1 if axis > 0 else int(axis)


RULES: dict[str, Callable[[_Rewriting, Node, Node], bool]] = {
    **dict.fromkeys(ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(("reshape", "view"), _reshape),
    "select": _select,
    "flatten": _flatten,
    "mean": _mean,
    **dict.fromkeys(("unflatten", "softmax", "max", "squeeze"), _axis),
    **dict.fromkeys(("constant_pad_nd", "pad", "layer_norm", "<built-in function getitem>"), _same),
    "index": _index,
}
"""By operation: (rewriting, node, its first argument, which lacks the axis) -> whether it was written."""
