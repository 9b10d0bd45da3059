"""Graphs: what a module computes, as named operations. They are values: they compare, hash, print, and can be edited.

A node is an operation on earlier nodes. What it gives is either by sample (each network has one for every sample) or
by network (parameters, and what follows from them alone); shapes are of one sample, or of one network. The operations:

| operation | inputs | gives |
|---|---|---|
| ``input`` | | the features, or tokens |
| ``parameter``, ``buffer`` | | a named tensor, which begins at ``place`` of its row |
| ``constant`` | | ``values`` |
| ``reshape`` | x | the same numbers in another shape |
| ``take`` | x, ... | numbers of x at ``index``, of all inputs one behind the other; 0 where it is -1 |
| ``relu``, ``sigmoid``, ``tanh``, ``gelu``, ``gelu_tanh``, ``softplus``, ``exp``, ``log``, ``sqrt``, ``reciprocal``, \
``abs`` | x | of every number |
| ``plus``, ``times`` | x | x + ``value``, x ``value`` |
| ``add``, ``multiply`` | x, y | of pairs; if y has fewer numbers, each stands for as many neighbours of x, in each of \
``repeats`` equal parts |
| ``mean``, ``largest`` | x | one number of ``each`` neighbours (``first``: the first of equals has the gradient) |
| ``softmax``, ``normalise`` | x | of ``each`` neighbours as many; ``eps`` is added to their variance |
| ``matmul`` | x, y | ``groups`` products of matrices, with ``inner`` columns of x and rows of y |
| ``linear`` | x, weight, bias? | an affine map of the last axis |
| ``embed`` | x, table | of every token its row of the table |
| ``convolve`` | x, weight, bias? | odd ``kernel``, stride 1, as large as x, in ``groups`` of channels |
| ``group_norm`` | x, weight, bias | in ``groups`` |
| ``batch_norm`` | x, weight, bias | by the batch's statistics: its ``batch_mean`` and ``batch_variance`` |
| ``affine_norm`` | x, weight, bias, mean, variance | batch norm by given statistics |
| ``running`` | buffer, statistic | a running average |
| ``pool`` | x | the largest of 2x2; equals share the gradient |
| ``fade`` | x, y, openness | x + tanh(openness) (y - x) |
"""

import math
from typing import NamedTuple

Attribute = int | float | bool | str | tuple[int, ...] | tuple[float, ...]
Shape = tuple[int, ...]


class Node(NamedTuple):
    """An operation.

    Attributes:
      op: its name.
      inputs: numbers of earlier nodes.
      shape: of what it gives, per sample or per network.
      by_sample: which of these.
      attributes: name, value; in the order of names.
    """

    op: str
    inputs: tuple[int, ...]
    shape: Shape
    by_sample: bool
    attributes: tuple[tuple[str, Attribute], ...] = ()

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    def number(self, name: str, default: int | None = None) -> int:
        """An attribute that is an integer."""
        value = dict(self.attributes).get(name, default)
        assert isinstance(value, int)
        return value

    def real(self, name: str) -> float:
        """An attribute that is a number."""
        value = dict(self.attributes)[name]
        assert isinstance(value, (int, float))
        return float(value)

    def row(self, name: str) -> tuple[float, ...]:
        """An attribute that is a row of numbers."""
        value = dict(self.attributes)[name]
        assert isinstance(value, tuple)
        return value


class Graph(NamedTuple):
    """What a module computes.

    Attributes:
      nodes: in order.
      output: the node of its result.
      buffers: per buffer, the node of its new value; empty where they stay.
    """

    nodes: tuple[Node, ...]
    output: int
    buffers: tuple[int, ...] = ()


class Draft:
    """A graph that is being written; what is written twice is the same node."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[Node, int] = {}

    def add(
        self, op: str, inputs: tuple[int, ...], shape: Shape, by_sample: bool | None = None, **attributes: Attribute
    ) -> int:
        """Write a node; by sample where one of its inputs is, if it is not said."""
        by_sample = any(self.nodes[i].by_sample for i in inputs) if by_sample is None else by_sample
        node = Node(op, inputs, tuple(shape), by_sample, tuple(sorted(attributes.items())))
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return self._known[node]

    def reshape(self, source: int, shape: Shape) -> int:
        """The same numbers in another shape."""
        if self.nodes[source].op == "reshape":
            source = self.nodes[source].inputs[0]
        return source if self.nodes[source].shape == tuple(shape) else self.add("reshape", (source,), shape)

    def take(self, inputs: tuple[int, ...], index: tuple[int, ...], shape: Shape) -> int:
        """Numbers of the inputs at an index; of what was taken itself, the origin."""
        if len(inputs) == 1:
            (source,) = inputs
            while self.nodes[source].op == "reshape" or self._is_move(source):
                node = self.nodes[source]
                if node.op == "take":
                    origin = [int(place) for place in node.row("index")]
                    index = tuple(origin[place] if place >= 0 else -1 for place in index)
                (source,) = node.inputs
            inputs = (source,)
            if index == tuple(range(self.nodes[source].size)):
                return self.reshape(source, shape)
        return self.add("take", inputs, shape, index=index)

    def _is_move(self, number: int) -> bool:
        return self.nodes[number].op == "take" and len(self.nodes[number].inputs) == 1

    def times(self, source: int, value: float) -> int:
        """A node times a number."""
        return source if value == 1 else self.add("times", (source,), self.nodes[source].shape, value=float(value))

    def plus(self, source: int, value: float) -> int:
        """A node plus a number."""
        return source if value == 0 else self.add("plus", (source,), self.nodes[source].shape, value=float(value))

    def unary(self, op: str, source: int) -> int:
        """An operation on every number."""
        return self.add(op, (source,), self.nodes[source].shape)

    def over_last(self, op: str, source: int, count: int, **attributes: Attribute) -> int:
        """An operation over the last ``count`` axes: ``softmax``, ``normalise``; ``mean``, ``largest`` drop them."""
        shape = self.nodes[source].shape
        kept = shape[: len(shape) - count]
        gives = kept if op in ("mean", "largest") else shape
        attributes["each"] = math.prod(shape[len(kept) :])
        return self.add(op, (source,), gives, None, **attributes)
