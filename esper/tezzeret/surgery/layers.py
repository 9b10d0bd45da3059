"""The layers of a body by name, and the places behind them."""

from difflib import get_close_matches
from typing import NamedTuple

from esper.tezzeret.native.graph import Graph
from esper.tezzeret.surgery.anatomy import Anatomy, Impossible, before, name_of, users_of
from esper.tezzeret.surgery.relations import UNARY

KINDS = ("convolve", "linear", "embed")
"""Operations that are layers."""

FOLLOWERS = ("batch_norm", "affine_norm", "group_norm", *(op for op in UNARY if op not in ("plus", "times")))
"""What belongs to the layer before it."""

STATISTICS = ("batch_mean", "batch_variance")


class Layer(NamedTuple):
    """A layer.

    Attributes:
      name: of its weight, without ``.weight``.
      node: what computes it.
      end: the last of its norm and activation, if it has any, else ``node``.
      weight: name of its weight.
      bias: name of its bias; None without one.
    """

    name: str
    node: int
    end: int
    weight: str
    bias: str | None


def layers_of(body: Anatomy) -> dict[str, Layer]:
    """All layers by name, in order; what reads a weight of another layer, as a tied head does, is none."""
    graph, users, found = body.graph, users_of(body.graph), dict[str, Layer]()
    for number, node in enumerate(graph.nodes):
        if node.op not in KINDS:
            continue
        weights = _leaves(graph, node.inputs[1])
        name = weights[0].removesuffix(".weight") if len(weights) == 1 else ""
        if name and name not in found:
            biases = _leaves(graph, node.inputs[2]) if len(node.inputs) > 2 else []
            end = follow(graph, users, number)
            found[name] = Layer(name, number, end, weights[0], biases[0] if biases else None)
    return found


def _leaves(graph: Graph, number: int) -> list[str]:
    return [
        name_of(node)
        for node in map(graph.nodes.__getitem__, sorted(before(graph, [number])))
        if node.op == "parameter"
    ]


def follow(graph: Graph, users: dict[int, list[int]], number: int) -> int:
    """The last of the norms and activations behind a node that nothing else reads."""
    while True:
        readers = [user for user in users[number] if graph.nodes[user].op not in STATISTICS]
        if (
            len(readers) != 1
            or graph.nodes[readers[0]].op not in FOLLOWERS
            or graph.nodes[readers[0]].inputs[0] != number
        ):
            return number
        number = readers[0]


def layer(body: Anatomy, name: str) -> Layer:
    """The layer of a name.

    Raises:
      Impossible: there is none; one line with the nearest.
    """
    found = layers_of(body)
    if name not in found:
        near = get_close_matches(name, found, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(found)}"
        raise Impossible(f"no layer {name!r}{hint}")
    return found[name]


def width_of(body: Anatomy, found: Layer) -> int:
    """Units of a layer."""
    node = body.graph.nodes[found.node]
    return node.shape[0 if node.op == "convolve" else -1]


def unnamed(body: Anatomy, name: str) -> None:
    """Raise ``Impossible`` if there is a tensor of a name, or of one behind it."""
    names = [*body.params, *body.buffers]
    taken = [each for each in names if each == name or each.startswith(f"{name}.")]
    if taken:
        raise Impossible(f"{name!r}: there is {taken[0]!r} already; expected a new name")
