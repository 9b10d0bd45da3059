"""From a graph to instructions: what follows from parameters alone is computed once per network, the rest per sample.

Numbers that follow from parameters are appended to the row of parameters that the instructions read (``Code.setup``).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from esper.tezzeret.native.graph import Graph, Node, Shape
from esper.tezzeret.native.observe import NotCaptured
from esper.tezzeret.native.programs import Code, Instruction, Op
from esper.tezzeret.native.writer import Writer

NORMS = (Op.GROUP_NORM, Op.BATCH_NORM, Op.AFFINE)


class Emitted(NamedTuple):
    """A graph as instructions.

    Attributes:
      code: the module.
      shape: of its result, per sample.
      tracked: per number of the row of buffers, the place in ``aux`` that it follows; empty where they stay.
    """

    code: Code
    shape: Shape
    tracked: tuple[int, ...]


def emit(graph: Graph, num_params: int, num_buffers: int = 0) -> Emitted:
    """A module's instructions.

    Raises:
      NotCaptured: an operation that there is no instruction for where it stands.
    """
    writer = Writer(graph, num_params)
    for number in _needed(graph, (graph.output, *graph.buffers), lambda node: node.by_sample):
        writer.emit(number)
    output = writer.registers[graph.output]
    if output == 0:  # what goes out is no register that comes in
        output = writer.take(graph.nodes[graph.output].shape, 0, range(writer.size(0)))
    _check_norms(writer.instructions)
    code = Code(
        registers=tuple(writer.shapes),
        instructions=tuple(fuse_relus(writer.instructions, output)),
        output=output,
        num_params=num_params,
        num_buffers=num_buffers,
        tables=tuple(writer.tables),
        setup=_setup(graph, num_params, writer.derived),
    )
    return Emitted(code, graph.nodes[graph.output].shape, _followed(graph, writer))


def _needed(graph: Graph, ends: Iterable[int], counts: Callable[[Node], bool]) -> list[int]:
    """The nodes that some follow from, in order, themselves included."""
    found = set(ends)
    for number in range(len(graph.nodes) - 1, -1, -1):
        if number in found:
            found.update(graph.nodes[number].inputs)
    return [number for number in sorted(found) if counts(graph.nodes[number])]


def _setup(graph: Graph, num_params: int, derived: list[int]) -> Code | None:
    """From the row of parameters to the numbers that follow, one behind the other."""
    if not derived:
        return None
    writer = Writer(graph, num_params, from_row=True)
    for number in _needed(graph, derived, lambda node: True):
        writer.emit(number)
    total, first, parts = sum(graph.nodes[number].size for number in derived), 0, list[int]()
    for number in derived:
        size = graph.nodes[number].size
        places = [-1] * first + list(range(size)) + [-1] * (total - first - size)
        parts.append(writer.take((total,), writer.registers[number], places))
        first += size
    output = writer.total(parts, (total,))
    return Code(tuple(writer.shapes), tuple(writer.instructions), output, 0, 0, tuple(writer.tables))


def _followed(graph: Graph, writer: Writer) -> tuple[int, ...]:
    """Which statistic every buffer follows."""
    places: list[int] = []
    for number in graph.buffers:
        node = graph.nodes[number]
        buffer = graph.nodes[node.inputs[0]] if node.op == "running" else node
        if node.op != "running" or buffer.op != "buffer" or buffer.number("place") != len(places):
            raise NotCaptured("buffers that are no running averages of themselves")
        statistic = graph.nodes[node.inputs[1]]
        if statistic.op not in ("batch_mean", "batch_variance"):
            raise NotCaptured(f"a running average of {statistic.op}")
        begin = writer.statistics[statistic.inputs[0]]
        begin += statistic.size if statistic.op == "batch_variance" else 0
        places += range(begin, begin + statistic.size)
    return tuple(places)


def _check_norms(instructions: list[Instruction]) -> None:
    """A batch norm adds up what its backward needs where its weights' gradients are: they are its own."""
    places = [place for i in instructions for place in (i.weight, i.bias) if place >= 0]
    if any(places.count(place) > 1 for i in instructions if i.op is Op.BATCH_NORM for place in (i.weight, i.bias)):
        raise NotCaptured("a batch norm whose weights another layer uses, too")


def fuse_relus(instructions: list[Instruction], output: int) -> list[Instruction]:
    """A relu that is the only reader of a norm becomes part of it."""
    readers = [register for i in instructions for register in (i.source, i.other)]
    fused: list[Instruction] = []
    for each in instructions:
        norm = next((n for n, i in enumerate(fused) if i.to == each.source and i.op in NORMS), None)
        alone = readers.count(each.source) == 1 and each.source != output
        if each.op is Op.RELU and norm is not None and alone:
            fused[norm] = fused[norm]._replace(to=each.to, rectify=True)
        else:
            fused.append(each)
    return fused
