"""What a graph computes, in ordinary tensor operations: for n networks and B samples, differentiable, no place written
to. It is the blocks' function of a host that was operated on, and a backend that captures it sees the same graph.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina import layers
from esper.tezzeret.native.graph import Graph, Node
from esper.tezzeret.surgery.anatomy import LEAVES, name_of

Tensors = Mapping[str, Tensor]


class Computed(NamedTuple):
    """What a graph gives.

    Attributes:
      output: [n, B, *shape].
      buffers: name -> [n, *shape]; the new values of those that change.
      values: node -> [n, B, *shape], or [n, *shape] of what is by network, [1, *shape] of a constant.
    """

    output: Tensor
    buffers: dict[str, Tensor]
    values: dict[int, Tensor]


class Forward:
    """A graph, ready to run."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tables = {number: _table(node) for number, node in enumerate(graph.nodes) if node.op in TABLES}

    def __call__(self, params: Tensors, buffers: Tensors, x: Tensor) -> Computed:
        """Computing it.

        Args:
          params, buffers: name -> [n, *shape].
          x: [n, B, *input_shape]; int64 where it takes tokens.
        """
        run = Computing(self, {"parameter": params, "buffer": buffers}, x)
        for number, node in enumerate(self.graph.nodes):
            value = run.leaf(node) if node.op in LEAVES else RULES[node.op](run, number, node)
            lead = x.shape[:2] if node.by_sample else value.shape[:1]  # of constants, 1
            run.values[number] = value.reshape(*lead, *node.shape)
        new = {self._held(number): run.values[number] for number in self.graph.buffers}
        return Computed(run.values[self.graph.output], new, run.values)

    def _held(self, number: int) -> str:
        return name_of(self.graph.nodes[self.graph.nodes[number].inputs[0]])


TABLES = ("take", "constant")
"""Operations that have many numbers of their own."""


def _table(node: Node) -> Tensor:
    name, dtype = ("index", torch.int64) if node.op == "take" else ("values", torch.float64)
    return torch.tensor(node.row(name), dtype=dtype)


class Computing:
    """A graph on its way."""

    def __init__(self, forward: Forward, named: Mapping[str, Tensors], x: Tensor) -> None:
        self.nodes, self.tables, self.named, self.x = forward.graph.nodes, forward.tables, named, x
        self.values: dict[int, Tensor] = {}
        self.statistics: dict[int, tuple[Tensor, ...]] = {}

    def leaf(self, node: Node) -> Tensor:
        """A parameter or a buffer, [n, *shape]."""
        return self.named[node.op][name_of(node)]

    def flat(self, number: int, by_sample: bool) -> Tensor:
        """A value's numbers [n, B, size] or [n, size]; of what is by network, [n, 1, size] among samples."""
        own = self.nodes[number].by_sample
        value = self.values[number].flatten(1 + own) if self.nodes[number].shape else self.values[number].unsqueeze(-1)
        return value.unsqueeze(1) if by_sample and not own else value

    def weight(self, number: int, *shape: int) -> Tensor:
        """A value by network, in a shape."""
        return self.values[number].reshape(self.x.shape[0], *shape)


def _input(run: Computing, number: int, node: Node) -> Tensor:
    return run.x


def _constant(run: Computing, number: int, node: Node) -> Tensor:
    like = next((value for value in run.values.values() if value.is_floating_point()), run.x)
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return run.tables[number].to(run.x.device, dtype).unsqueeze(0)


def _reshape(run: Computing, number: int, node: Node) -> Tensor:
    return run.values[node.inputs[0]]


def _take(run: Computing, number: int, node: Node) -> Tensor:
    parts = [run.flat(source, node.by_sample) for source in node.inputs]
    lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    joined = torch.cat([part.expand(*lead, -1) for part in parts], dim=-1) if len(parts) > 1 else parts[0]
    index = run.tables[number].to(run.x.device)
    if -1 in node.row("index"):  # one more number, which is 0
        index = torch.where(index < 0, joined.shape[-1], index)
        joined = F.pad(joined, (0, 1))
    return joined[..., index]


def _mapped(function: Callable[[Tensor], Tensor]) -> "Rule":
    return lambda run, number, node: function(run.values[node.inputs[0]])


def _paired(function: Callable[[Tensor, Tensor], Tensor]) -> "Rule":
    def rule(run: Computing, number: int, node: Node) -> Tensor:
        x, y = (run.flat(source, node.by_sample) for source in node.inputs)
        if x.shape[-1] == y.shape[-1]:
            return function(x, y)
        x = x.unflatten(-1, (node.number("repeats", 1), y.shape[-1], -1))
        return function(x, y.unsqueeze(-2).unsqueeze(-1)).flatten(-3)

    return rule


def _grouped(function: Callable[[Tensor, Node], Tensor]) -> "Rule":
    """Over ``each`` neighbours."""

    def rule(run: Computing, number: int, node: Node) -> Tensor:
        return function(run.flat(node.inputs[0], node.by_sample).unflatten(-1, (-1, node.number("each"))), node)

    return rule


def _largest(x: Tensor, node: Node) -> Tensor:
    return layers.largest(x) if dict(node.attributes)["first"] else x.amax(-1)


def _normalise(x: Tensor, node: Node) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=node.real("eps"))


def _matmul(run: Computing, number: int, node: Node) -> Tensor:
    x, y = (run.flat(source, node.by_sample) for source in node.inputs)
    groups, inner = node.number("groups"), node.number("inner")
    return torch.matmul(x.unflatten(-1, (groups, -1, inner)), y.unflatten(-1, (groups, inner, -1)))


def _linear(run: Computing, number: int, node: Node) -> Tensor:
    x, outputs = run.values[node.inputs[0]], node.shape[-1]
    weight = run.weight(node.inputs[1], outputs, x.shape[-1])
    return layers.linear(x, weight, *(run.weight(bias, outputs) for bias in node.inputs[2:]))


def _embed(run: Computing, number: int, node: Node) -> Tensor:
    tokens, table = run.values[node.inputs[0]], run.values[node.inputs[1]]
    return layers.embed(tokens.flatten(2), table.flatten(2))


def _convolve(run: Computing, number: int, node: Node) -> Tensor:
    x, kernel, groups = run.values[node.inputs[0]], node.number("kernel", 1), node.number("groups", 1)
    channels, rest = x.shape[2], tuple(x.shape[3:])
    if not rest and groups == 1:
        biases = (run.weight(bias, node.shape[0]) for bias in node.inputs[2:])
        return layers.linear(x, run.weight(node.inputs[1], node.shape[0], channels), *biases)
    x = x.reshape(*x.shape[:3], *(rest if len(rest) == 2 else (x[0, 0, 0].numel(), 1)))
    weight = run.weight(node.inputs[1], node.shape[0], channels // groups, kernel, kernel)
    out = layers.conv2d(x, weight)
    for bias in node.inputs[2:]:
        out = out + layers.per_channel(run.weight(bias, node.shape[0]), out)
    return out


def _norm(run: Computing, number: int, node: Node) -> Tensor:
    x, *rows = (run.values[source] for source in node.inputs)
    rows = [row.flatten(1) for row in rows]
    if node.op == "group_norm":
        return layers.group_norm(x, rows[0], rows[1], node.number("groups"))
    if node.op == "affine_norm":
        return layers.apply_batch_norm(x, *rows)
    out, *statistics = layers.batch_norm(x, *rows)
    run.statistics[number] = tuple(statistics)
    return out


def _statistic(place: int) -> "Rule":
    return lambda run, number, node: run.statistics[node.inputs[0]][place]


def _running(run: Computing, number: int, node: Node) -> Tensor:
    return layers.track(*(run.values[source] for source in node.inputs))


def _pool(run: Computing, number: int, node: Node) -> Tensor:
    return layers.max_pool2(run.values[node.inputs[0]])


def _fade(run: Computing, number: int, node: Node) -> Tensor:
    x, y, openness = (run.values[source] for source in node.inputs)
    return layers.tanh_mix(x, y, openness.reshape(-1, 1))


Rule = Callable[[Computing, int, Node], Tensor]
"""(the run, a node's number, the node) -> its numbers."""

RULES: dict[str, Rule] = {
    "input": _input,
    "constant": _constant,
    "reshape": _reshape,
    "take": _take,
    **{
        op: _mapped(getattr(torch, op)) for op in ("relu", "sigmoid", "tanh", "exp", "log", "sqrt", "reciprocal", "abs")
    },
    "gelu": _mapped(F.gelu),
    "gelu_tanh": _mapped(lambda x: F.gelu(x, approximate="tanh")),
    "softplus": _mapped(F.softplus),
    "plus": lambda run, number, node: run.values[node.inputs[0]] + node.real("value"),
    "times": lambda run, number, node: run.values[node.inputs[0]] * node.real("value"),
    "add": _paired(torch.add),
    "multiply": _paired(torch.mul),
    "mean": _grouped(lambda x, node: x.mean(-1)),
    "largest": _grouped(_largest),
    "softmax": _grouped(lambda x, node: torch.softmax(x, -1)),
    "normalise": _grouped(_normalise),
    "matmul": _matmul,
    "linear": _linear,
    "embed": _embed,
    "convolve": _convolve,
    **dict.fromkeys(("group_norm", "batch_norm", "affine_norm"), _norm),
    "batch_mean": _statistic(0),
    "batch_variance": _statistic(1),
    "running": _running,
    "pool": _pool,
    "fade": _fade,
}
"""Every operation of a graph."""
