"""Which numbers of which tensors belong to the units of a layer: what changes with its width.

Wherever the units of a layer are found, the numbers lie as [pre, units, post]; that is all an operation has to know of
a node to give it another width, whatever reshapes, windows and heads lie on the way. From the layer's output the
relation of each operation (``relations``) carries this forward and back, until nothing new follows.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from esper.tezzeret.native.graph import Graph, Node, Shape
from esper.tezzeret.surgery.anatomy import Impossible, users_of


class Units(NamedTuple):
    """How units lie in a node's numbers.

    Attributes:
      pre, post: the numbers are [pre, units, post].
      reads: whether it is a weight that reads the units, rather than one that makes them.
    """

    pre: int
    post: int
    reads: bool = False


class Along(NamedTuple):
    """Units along an axis, which is [outer, units, inner]."""

    axis: int
    outer: int
    inner: int


Found = Iterable[tuple[int, Units]]
"""Nodes, and how units lie in them."""

Relation = Callable[["Tracing", int, Node], Found]
"""(what is known, a node's number, the node) -> what follows for the node and its inputs."""


class Tracing:
    """Where the units of a layer are, as far as it is known.

    Attributes:
      layer: its name, for messages.
      graph: the whole.
      count: units there are.
      units: node -> how they lie.
    """

    def __init__(self, layer: str, graph: Graph, count: int) -> None:
        self.layer, self.graph, self.count = layer, graph, count
        self.units: dict[int, Units] = {}

    def node(self, number: int) -> Node:
        """A node."""
        return self.graph.nodes[number]

    def along(self, number: int, shape: Shape | None = None) -> Along | None:
        """The axis of a node's shape, or of another shape of its numbers, along which units lie; None without any."""
        units = self.units.get(number)
        return None if units is None else self.axis(units, self.node(number).shape if shape is None else shape)

    def axis(self, units: Units, shape: Shape) -> Along:
        """The axis of a shape along which units lie."""
        for axis, side in enumerate(shape):
            before, behind = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
            outer, inner = units.pre // before, units.post // behind
            if outer * before == units.pre and inner * behind == units.post and outer * self.count * inner == side:
                return Along(axis, outer, inner)
        raise self.refusal(f"lies across the axes of {shape}")

    def refusal(self, what: str) -> Impossible:
        """Why the width cannot change."""
        return Impossible(f"the width of {self.layer!r} {what}")


def placed(shape: Shape, along: Along, reads: bool = False) -> Units:
    """Units along an axis of a shape."""
    before, behind = math.prod(shape[: along.axis]), math.prod(shape[along.axis + 1 :])
    return Units(before * along.outer, along.inner * behind, reads)


def spread(layer: str, graph: Graph, start: int, relations: dict[str, Relation]) -> dict[int, Units]:
    """Find the units of a layer everywhere.

    Args:
      layer: its name, for messages.
      graph: the whole.
      start: the layer's node; its units are the first axis of a convolution, the last one of another.
      relations: by operation.

    Returns:
      node -> how they lie.

    Raises:
      Impossible: another width would change an input or the output of the network, or cannot be followed.
    """
    node = graph.nodes[start]
    axis = 0 if node.op == "convolve" else len(node.shape) - 1
    found = Tracing(layer, graph, node.shape[axis])
    if found.count < 2:
        raise found.refusal("is 1, so nothing tells its units apart; expected 2 or more")
    users, waiting = users_of(graph), list[int]()

    def tell(number: int, units: Units) -> None:
        known = found.units.setdefault(number, units)
        if known != units:
            raise found.refusal(f"is read in two ways at {describe(graph.nodes[number])}")

    def learn(pairs: Found) -> None:
        for number, units in pairs:
            if number not in found.units:
                waiting.extend((number, *users[number]))
            tell(number, units)

    learn([(start, placed(node.shape, Along(axis, 1, 1)))])
    while waiting:
        number = waiting.pop()
        learn(list(relations.get(graph.nodes[number].op, _leaf)(found, number, graph.nodes[number])))
    if graph.output in found.units:
        raise found.refusal("is that of the network's output")
    return found.units


def _leaf(found: Tracing, number: int, node: Node) -> Found:
    if node.op == "input" and number in found.units:
        raise found.refusal("is that of the network's input")
    return ()


def describe(node: Node) -> str:
    """A node, for messages."""
    name = dict(node.attributes).get("name")
    return f"{node.op} {name!r}" if name else f"{node.op} {list(node.shape)}"
