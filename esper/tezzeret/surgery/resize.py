"""Another number of units: of a graph, and of the numbers that networks have learned."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from esper.tezzeret.native.graph import Graph
from esper.tezzeret.surgery.anatomy import LEAVES, Anatomy, Learned, Rewritten, name_of, rewritten, with_attributes
from esper.tezzeret.surgery.relations import CHANGES, RELATIONS
from esper.tezzeret.surgery.units import Tracing, Units, spread


class Reach(NamedTuple):
    """What the units of a layer reach.

    Attributes:
      width: units there are.
      nodes: node -> how they lie.
      tensors: named tensor -> how they lie.
    """

    width: int
    nodes: dict[int, Units]
    tensors: dict[str, Units]

    @property
    def makers(self) -> dict[str, Units]:
        """Tensors that make the units."""
        return {name: units for name, units in self.tensors.items() if not units.reads}

    @property
    def readers(self) -> dict[str, Units]:
        """Tensors that read them."""
        return {name: units for name, units in self.tensors.items() if units.reads}


def reach_of(graph: Graph, layer: str, node: int) -> Reach:
    """What the units of a layer reach.

    Raises:
      Impossible: its width cannot change.
    """
    nodes = spread(layer, graph, node, RELATIONS)
    tensors = {
        name_of(graph.nodes[number]): units for number, units in nodes.items() if graph.nodes[number].op in LEAVES
    }
    shape = graph.nodes[node].shape
    return Reach(shape[0 if graph.nodes[node].op == "convolve" else -1], nodes, tensors)


def resized(body: Anatomy, layer: str, reach: Reach, count: int) -> tuple[Anatomy, Rewritten]:
    """A body whose layer has another number of units."""
    found = Tracing(layer, body.graph, reach.width)
    found.units = reach.nodes
    nodes = {}
    for number, node in enumerate(body.graph.nodes):
        touched = number in reach.nodes or any(source in reach.nodes for source in node.inputs)
        changed = CHANGES[node.op](found, number, node, count) if touched and node.op in CHANGES else {}
        along, shape = found.along(number), list(node.shape)
        if along is not None:
            shape[along.axis] = along.outer * count * along.inner
        nodes[number] = with_attributes(node, **changed)._replace(shape=tuple(shape))
    found_graph = rewritten(nodes, body.graph.output, body.graph.buffers)
    return moved(body, found_graph), found_graph


def moved(body: Anatomy, graph: Rewritten) -> Anatomy:
    """The body with another graph; its ends go where their nodes went."""
    ends = tuple(end._replace(node=graph.places[end.node]) for end in body.ends)
    shapes = [graph.graph.nodes[end.node].shape for end in ends]
    sites = tuple(end._replace(site=end.site._replace(shape=shape)) for end, shape in zip(ends, shapes, strict=True))
    return body._replace(graph=graph.graph, ends=sites)


def regrown(value: Tensor, units: Units, count: int, kept: Tensor, new: Tensor, lead: int = 1) -> Tensor:
    """A tensor with other units.

    Args:
      value: [E, ..., *shape]; ``lead`` dimensions come before the shape.
      units: how they lie in the shape.
      count: units there are.
      kept: int64 [E, k]; which stay, in their order.
      new: [E, ..., pre, m, post]; the units behind them, 0 or more.

    Returns:
      [E, ..., pre * (k + m) * post].
    """
    ahead = value.shape[:lead]
    parts = value.reshape(*ahead, units.pre, count, units.post)
    index = kept.reshape(len(kept), *(1,) * lead, -1, 1).expand(*ahead, units.pre, -1, units.post)
    return torch.cat((parts.gather(-2, index), new), dim=-2).flatten(lead)


def widths(
    learned: Learned, reach: Reach, body: Anatomy, kept: Tensor, new: Mapping[str, Tensor], more: int
) -> Learned:
    """What networks have learned, with other units.

    Args:
      learned: of E networks.
      reach: where the units are.
      body: the new one.
      kept: int64 [E, k]; units that stay.
      new: name -> [E, pre, m, post]; the numbers of new units.
      more: m, how many are new; their moments are 0.
    """
    shapes = {name: node.shape for name, node in (body.params | body.buffers).items()}

    def table(values: Mapping[str, Tensor], lead: int) -> dict[str, Tensor]:
        found = dict(values)
        for name in set(values) & set(reach.tensors):
            units, value = reach.tensors[name], values[name]
            zeros = value.new_zeros(*value.shape[:lead], units.pre, more, units.post)
            fresh = new[name] if lead == 1 and more else zeros
            grown = regrown(value, units, reach.width, kept, fresh, lead)
            found[name] = grown.reshape(*value.shape[:lead], *shapes[name])
        return found

    return Learned(table(learned.params, 1), table(learned.moments, 2), table(learned.buffers, 1), learned.steps)
