"""What operations compute, for n networks and B samples: the layers of the Python blueprints, number for number.

Rules of a graph's operations are those of ``esper.tezzeret.surgery.forward``, but for those that keep axes apart where
these run over flattened numbers: sums in another order would have other bits.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina import layers
from esper.tezzeret.native.graph import Graph, Node
from esper.tezzeret.surgery.forward import RULES as GRAPH_RULES
from esper.tezzeret.surgery.forward import Computing, Forward
from esper.utils import rng

EagerRule = Callable[[Computing, int, Node], Tensor]


class GraphRun(Computing):
    """A graph on its way, with the key of what it draws.

    Attributes:
      key: int64 [n, 2], or None.
      drawn: how many draws there were.
    """

    def __init__(self, forward: Forward, named: dict[str, dict[str, Tensor]], x: Tensor, key: Tensor | None) -> None:
        super().__init__(forward, named, x)
        self.key, self.drawn = key, 0

    def weight(self, number: int, *shape: int) -> Tensor:
        """A value by network, in a shape; of a constant, the same for all."""
        value = self.values[number]
        value = value if value.shape[1:] == shape else value.reshape(value.shape[0], *shape)
        return value.expand(self.x.shape[0], *shape) if self.nodes[number].op == "constant" else value


def apply_graph(
    forward: Forward, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, key: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute a graph.

    Args:
      forward: the graph, ready to run.
      params, buffers: name -> [n, *shape].
      x: [n, B, *shape]; int64 where it takes tokens.
      key: int64 [n, 2]; of what it draws, else None.

    Returns:
      [n, B, *shape], and the new values of the buffers that have some.
    """
    run = GraphRun(forward, {"parameter": params, "buffer": buffers}, x, key)
    nodes = forward.graph.nodes
    for number, node in enumerate(nodes):
        value = run.leaf(node) if node.op in ("parameter", "buffer") else EAGER[node.op](run, number, node)
        lead = x.shape[:2] if node.by_sample else value.shape[:1]
        whole = (*lead, *node.shape)
        run.values[number] = value if value.shape == whole else value.reshape(whole)
    new = {_held(forward.graph, number): run.values[number] for number in forward.graph.buffers}
    return run.values[forward.graph.output], new


def _held(graph: Graph, number: int) -> str:
    """The buffer that a node gives a new value."""
    held = graph.nodes[graph.nodes[number].inputs[0]]
    return str(dict(held.attributes)["name"])


def _mean(run: Computing, number: int, node: Node) -> Tensor:
    """Over whole axes where these are the neighbours."""
    shape, kept = run.nodes[node.inputs[0]].shape, len(node.shape)
    if kept == len(shape) or shape[:kept] != node.shape:
        return GRAPH_RULES["mean"](run, number, node)
    return run.values[node.inputs[0]].mean(tuple(range(kept - len(shape), 0)))


def _normalise(run: Computing, number: int, node: Node) -> Tensor:
    shape, each = run.nodes[node.inputs[0]].shape, node.number("each")
    if shape[-1:] == (each,):
        return F.layer_norm(run.values[node.inputs[0]], (each,), eps=node.real("eps"))
    return GRAPH_RULES["normalise"](run, number, node)


def _paired(op: str, function: Callable[[Tensor, Tensor], Tensor]) -> EagerRule:
    """Of equal shapes; or of y along the first axes of x, or along the last, by broadcasting."""

    def rule(run: Computing, number: int, node: Node) -> Tensor:
        x, y = (run.nodes[source].shape for source in node.inputs)
        values = [_among_samples(run, source, node.by_sample) for source in node.inputs]
        repeats, rest = node.number("repeats", 1), len(x) - len(y)
        if x != y and repeats == 1 and x[: len(y)] == y:
            values[1] = values[1][(..., *(None,) * rest)]
        elif x != y and repeats == math.prod(x[:rest]) and x[rest:] == y:
            lead = values[1].dim() - len(y)
            values[1] = values[1][(*(slice(None),) * lead, *(None,) * rest)]
        elif x != y:
            return GRAPH_RULES[op](run, number, node)
        return function(*values)

    return rule


def _among_samples(run: Computing, source: int, by_sample: bool) -> Tensor:
    value = run.values[source]
    return value.unsqueeze(1) if by_sample and not run.nodes[source].by_sample else value


def _layer_norm(run: Computing, number: int, node: Node) -> Tensor:
    x, width = run.values[node.inputs[0]], node.shape[-1]
    return layers.layer_norm(x, *(run.weight(row, width) for row in node.inputs[1:]))


def _norm(run: Computing, number: int, node: Node) -> Tensor:
    x, channels = run.values[node.inputs[0]], node.shape[0]
    rows = [run.weight(row, channels) for row in node.inputs[1:]]
    if node.op == "group_norm":
        return layers.group_norm(x, rows[0], rows[1], node.number("groups"))
    if node.op == "affine_norm":
        return layers.apply_batch_norm(x, *rows)
    out, *statistics = layers.batch_norm(x, *rows)
    run.statistics[number] = tuple(statistics)
    return out


def _fade(run: Computing, number: int, node: Node) -> Tensor:
    x, y = (_among_samples(run, source, node.by_sample) for source in node.inputs[:2])
    return layers.tanh_mix(x, y, run.weight(node.inputs[2], 1))


def _attention(run: Computing, number: int, node: Node) -> Tensor:
    return layers.causal_attention(run.values[node.inputs[0]], node.number("heads"))


def _dropout(run: Computing, number: int, node: Node) -> Tensor:
    assert isinstance(run, GraphRun) and run.key is not None
    key = rng.fold_in(run.key, run.drawn)
    run.drawn += 1
    return layers.dropout(run.values[node.inputs[0]], key, node.real("share"), bool(node.number("whole", 0)))


EAGER: dict[str, EagerRule] = {
    **GRAPH_RULES,
    "mean": _mean,
    "normalise": _normalise,
    "add": _paired("add", torch.add),
    "multiply": _paired("multiply", torch.mul),
    **dict.fromkeys(("group_norm", "batch_norm", "affine_norm"), _norm),
    "fade": _fade,
    "layer_norm": _layer_norm,
    "silu": lambda run, number, node: F.silu(run.values[node.inputs[0]]),
    "transpose": lambda run, number, node: run.values[node.inputs[0]].mT,
    "attention": _attention,
    "dropout": _dropout,
}
"""By the name of an operation."""
