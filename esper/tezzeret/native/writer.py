"""Writing the instructions of a graph's nodes."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from esper.tezzeret.native.graph import Graph, Node, Shape
from esper.tezzeret.native.observe import NotCaptured
from esper.tezzeret.native.programs import Instruction, Op, float_bits

PLAIN = {
    "relu": Op.RELU,
    "sigmoid": Op.SIGMOID,
    "tanh": Op.TANH,
    "gelu": Op.GELU,
    "gelu_tanh": Op.GELU_TANH,
    "softplus": Op.SOFTPLUS,
    "exp": Op.EXP,
    "log": Op.LOG,
    "sqrt": Op.SQRT,
    "reciprocal": Op.RECIPROCAL,
    "abs": Op.ABS,
    "mean": Op.MEAN,
}
"""Operations of one value that are one instruction without more."""

PAIRS = {"add": (Op.ADD, Op.SHIFT), "multiply": (Op.SCALE, Op.GAIN)}
"""With a second one of every sample, and of the network."""


def map_shape(shape: Shape) -> tuple[int, int, int]:
    """A register's shape: channels, then two axes of positions."""
    if len(shape) > 3:
        return shape[0], math.prod(shape[1:-1]), shape[-1]
    channels, height, width = (*shape, 1, 1, 1)[:3]
    return channels, height, width


class Writer:
    """Instructions written so far, for nodes of a graph in order.

    Values by sample are registers. What is by network is read from the row of parameters, which goes on with the nodes
    in ``derived``. Where that row is the input (``from_row``), every value is a register.
    """

    def __init__(self, graph: Graph, num_params: int, from_row: bool = False) -> None:
        self.nodes, self.from_row = graph.nodes, from_row
        first = next(node for node in graph.nodes if node.op == "input")
        self.shapes = [(num_params, 1, 1) if from_row else map_shape(first.shape)]
        self.instructions: list[Instruction] = []
        self.tables: list[int] = []
        self.registers: dict[int, int] = {}  # by node
        self.derived: list[int] = []
        self.statistics: dict[int, int] = {}  # by batch norm: where its mean is in ``aux``
        self._places: dict[int, int] = {}  # by node: where it begins in the row
        self._end, self._num_aux = num_params, 0

    def size(self, register: int) -> int:
        """Numbers of a register."""
        return math.prod(self.shapes[register])

    def write(self, op: Op, shape: Shape, source: int = 0, other: int = -1, **fields: Any) -> int:
        """Add an instruction; returns the register that it writes."""
        self.instructions.append(Instruction(op, len(self.shapes), source, other, **fields))
        self.shapes.append(map_shape(shape))
        return len(self.shapes) - 1

    def take(self, shape: Shape, source: int, places: Iterable[int]) -> int:
        """Numbers of a register."""
        self.tables += places
        size = math.prod(shape)
        return self.write(Op.TAKE, shape, source, constant=len(self.tables) - size)

    def total(self, parts: list[int], shape: Shape) -> int:
        """The sum of some registers."""
        first, *rest = parts
        for part in rest:
            first = self.write(Op.ADD, shape, first, part)
        return first

    def emit(self, number: int) -> None:
        """Write a node."""
        node = self.nodes[number]
        if node.op in PLAIN:
            self.registers[number] = self.write(PLAIN[node.op], node.shape, self.register(node.inputs[0]))
        elif node.op in PAIRS:
            self.registers[number] = self._pair(node)
        elif node.op in EMITTERS:
            self.registers[number] = EMITTERS[node.op](self, node)
        else:
            raise NotCaptured(f"arithmetic on a {node.op}")
        if node.op == "batch_norm":
            self.statistics[number], self._num_aux = self._num_aux, self._num_aux + 2 * node.shape[0]

    def _pair(self, node: Node) -> int:
        of_sample, of_network = PAIRS[node.op]
        (first, second), repeats = node.inputs, node.number("repeats", 1)
        other, source = self.nodes[second], self.register(first)
        if other.by_sample or self.from_row or other.op == "constant":
            return self.write(of_sample, node.shape, source, self.register(second), groups=repeats)
        place = self.place(second)
        return self.write(of_network, node.shape, source, weight=place, groups=repeats, kernel=other.size)

    def register(self, number: int) -> int:
        """The register of a node; what is by network is loaded from the row."""
        if number not in self.registers:
            node = self.nodes[number]
            if node.op == "constant":
                self.registers[number] = EMITTERS["constant"](self, node)
            else:
                place = self.place(number)
                self.registers[number] = self.write(Op.LOAD, node.shape, weight=place)
        return self.registers[number]

    def place(self, number: int, size: int | None = None) -> int:
        """Where a node by network begins in the row; ``size``: how many numbers there must be."""
        node = self.nodes[number]
        if node.by_sample or self.from_row or size not in (None, node.size):
            raise NotCaptured(f"a layer with a tensor of shape {node.shape} where a parameter is expected")
        if number not in self._places:
            place = self._origin(number)
            if place is None:
                place, self._end = self._end, self._end + node.size
                self.derived.append(number)
            self._places[number] = place
        return self._places[number]

    def _origin(self, number: int) -> int | None:
        """Where a parameter, or an unbroken part of one, begins; None for everything else."""
        node = self.nodes[number]
        if node.op == "parameter":
            return node.number("place")
        if node.op not in ("reshape", "take") or len(node.inputs) != 1:
            return None
        index = node.row("index") if node.op == "take" else tuple(range(node.size))
        begin, first = self._origin(node.inputs[0]), int(index[0])
        unbroken = first >= 0 and index == tuple(range(first, first + node.size))
        return begin + first if begin is not None and unbroken else None

    def weights(self, node: Node, *sizes: int) -> dict[str, int]:
        """Places of a layer's weight and bias."""
        places = [self.place(each, size) for each, size in zip(node.inputs[1:3], sizes, strict=False)]
        return dict(zip(("weight", "bias"), places, strict=False))


def _input(writer: Writer, node: Node) -> int:
    return 0


def _parameter(writer: Writer, node: Node) -> int:
    first = node.number("place")
    return writer.take(node.shape, 0, range(first, first + node.size))


def _constant(writer: Writer, node: Node) -> int:
    writer.tables += map(float_bits, node.row("values"))
    return writer.write(Op.CONST, node.shape, constant=len(writer.tables) - node.size)


def _reshape(writer: Writer, node: Node) -> int:
    return writer.register(node.inputs[0])


def _take(writer: Writer, node: Node) -> int:
    index, first, parts = node.row("index"), 0, list[int]()
    for each in node.inputs:
        end = first + writer.nodes[each].size
        places = [int(place) - first if first <= place < end else -1 for place in index]
        parts.append(writer.take(node.shape, writer.register(each), places))
        first = end
    return writer.total(parts, node.shape)


def _with_number(op: Op) -> Callable[[Writer, Node], int]:
    def emitter(writer: Writer, node: Node) -> int:
        return writer.write(op, node.shape, writer.register(node.inputs[0]), constant=float_bits(node.real("value")))

    return emitter


def _softmax(writer: Writer, node: Node) -> int:
    return writer.write(
        Op.SOFTMAX, node.shape, writer.register(node.inputs[0]), groups=node.size // node.number("each")
    )


def _normalise(writer: Writer, node: Node) -> int:
    fields = {"groups": node.size // node.number("each"), "constant": float_bits(node.real("eps"))}
    return writer.write(Op.NORMALISE, node.shape, writer.register(node.inputs[0]), **fields)


def _largest(writer: Writer, node: Node) -> int:
    return writer.write(Op.LARGEST, node.shape, writer.register(node.inputs[0]), constant=int(node.number("first")))


def _matmul(writer: Writer, node: Node) -> int:
    first, second = map(writer.register, node.inputs)
    fields = {"groups": node.number("groups"), "kernel": node.number("inner")}
    return writer.write(Op.MATMUL, node.shape, first, second, **fields)


def _linear(writer: Writer, node: Node) -> int:
    inputs = writer.nodes[node.inputs[0]].shape[-1]
    places = writer.weights(node, node.shape[-1] * inputs, node.shape[-1])
    return writer.write(Op.LINEAR, node.shape, writer.register(node.inputs[0]), kernel=inputs, **places)


def _embed(writer: Writer, node: Node) -> int:
    tokens, table = (writer.nodes[each] for each in node.inputs)
    fields = {"weight": writer.place(node.inputs[1]), "kernel": table.size // table.shape[0]}
    assert node.size == tokens.size * fields["kernel"]
    return writer.write(Op.EMBED, node.shape, writer.register(node.inputs[0]), **fields)


def _convolve(writer: Writer, node: Node) -> int:
    groups, kernel = node.number("groups"), node.number("kernel")
    size = node.shape[0] * (writer.nodes[node.inputs[0]].shape[0] // groups) * kernel**2
    places = writer.weights(node, size, node.shape[0])
    return writer.write(Op.CONV, node.shape, writer.register(node.inputs[0]), groups=groups, kernel=kernel, **places)


def _group_norm(writer: Writer, node: Node) -> int:
    groups, places = node.number("groups"), writer.weights(node, node.shape[0], node.shape[0])
    if groups < 1 or node.shape[0] % groups:
        raise NotCaptured(f"{groups} groups of {node.shape[0]} channels")
    return writer.write(Op.GROUP_NORM, node.shape, writer.register(node.inputs[0]), groups=groups, **places)


def _batch_norm(writer: Writer, node: Node) -> int:
    places = writer.weights(node, node.shape[0], node.shape[0])
    return writer.write(Op.BATCH_NORM, node.shape, writer.register(node.inputs[0]), **places)


def _affine_norm(writer: Writer, node: Node) -> int:
    mean, variance = (writer.nodes[each] for each in node.inputs[3:])
    sound = mean.op == variance.op == "buffer" and mean.size == variance.size == node.shape[0]
    if not sound or variance.number("place") != mean.number("place") + mean.size:
        raise NotCaptured("a mean and a variance that are no buffers side by side")
    places = writer.weights(node, node.shape[0], node.shape[0])
    source = writer.register(node.inputs[0])
    return writer.write(Op.AFFINE, node.shape, source, constant=mean.number("place"), **places)


def _pool(writer: Writer, node: Node) -> int:
    shape, source = writer.nodes[node.inputs[0]].shape, writer.register(node.inputs[0])
    if writer.shapes[source] != map_shape(shape):
        source = writer.take(shape, source, range(writer.size(source)))
    return writer.write(Op.POOL, node.shape, source)


def _fade(writer: Writer, node: Node) -> int:
    first, second = map(writer.register, node.inputs[:2])
    return writer.write(Op.FADE, node.shape, first, second, weight=writer.place(node.inputs[2], 1))


EMITTERS: dict[str, Callable[[Writer, Node], int]] = {
    "input": _input,
    "parameter": _parameter,
    "constant": _constant,
    "reshape": _reshape,
    "take": _take,
    "plus": _with_number(Op.PLUS),
    "times": _with_number(Op.TIMES),
    "softmax": _softmax,
    "normalise": _normalise,
    "largest": _largest,
    "matmul": _matmul,
    "linear": _linear,
    "embed": _embed,
    "convolve": _convolve,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "affine_norm": _affine_norm,
    "pool": _pool,
    "fade": _fade,
}
"""By the name of an operation: (writer, node) -> its register."""
