"""What is operated on: a host as one graph, and what its networks have learned, both values.

A ``Anatomy`` says what all networks of a batch compute; ``Learned`` holds the numbers of each. An operation on a body
gives another one to all networks of its ``Learned``: whoever wants it for some takes these out first (``part``), and
the others keep structure and bits.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.site import Site
from esper.tezzeret.native.graph import Draft, Graph, Node

LEAVES = ("parameter", "buffer")
"""Operations that read a named tensor."""


class Impossible(Exception):
    """An operation cannot be done; the message is one line that names layer and reason."""


class End(NamedTuple):
    """Where a block of the host ends.

    Attributes:
      node: whose features leave it.
      site: what a slot behind it sees.
      block: its number in the host that was read.
    """

    node: int
    site: Site
    block: int


class Anatomy(NamedTuple):
    """A host as one graph.

    Attributes:
      name: for people.
      graph: what is computed in training; named tensors are those of the host's blocks, behind ``blockN.`` where two
        blocks have one of the same name.
      ends: of all blocks but the last, in order.
      input_shape: of one sample.
      num_outputs: classes C.
      takes_tokens: whether inputs are int64 tokens.
    """

    name: str
    graph: Graph
    ends: tuple[End, ...]
    input_shape: tuple[int, ...]
    num_outputs: int
    takes_tokens: bool

    @property
    def params(self) -> dict[str, Node]:
        """Trained tensors by name, in order."""
        return leaves(self.graph, "parameter")

    @property
    def buffers(self) -> dict[str, Node]:
        """Running statistics by name, in order."""
        return leaves(self.graph, "buffer")

    @property
    def num_params(self) -> int:
        """Trained numbers of a network."""
        return sum(node.size for node in self.params.values())


class Learned(NamedTuple):
    """What E networks of one body have learned; nobody writes into it.

    Attributes:
      params: name -> [E, *shape].
      moments: name -> [E, M, *shape]; the optimizer's.
      buffers: name -> [E, *shape].
      steps: int64 [E]; the optimizer's.
    """

    params: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    steps: Tensor


def part(learned: Learned, rows: Tensor) -> Learned:
    """Some networks: rows int64 [n], or bool [E]. An operation on them leaves the others as they are."""
    params, moments, buffers = ({name: value[rows] for name, value in table.items()} for table in learned[:3])
    return Learned(params, moments, buffers, learned.steps[rows])


def leaves(graph: Graph, kind: str) -> dict[str, Node]:
    """Parameters or buffers by name, in the order of their rows."""
    found = sorted((node for node in graph.nodes if node.op == kind), key=lambda node: node.number("place"))
    return {name_of(node): node for node in found}


def name_of(node: Node) -> str:
    """The name of a parameter or buffer."""
    return str(dict(node.attributes)["name"])


def with_attributes(node: Node, **changed: object) -> Node:
    """A node with other attributes."""
    table = dict(node.attributes) | changed
    return node._replace(attributes=tuple(sorted(table.items())))  # type: ignore[arg-type]


def users_of(graph: Graph) -> dict[int, list[int]]:
    """Node -> those that read it."""
    found: dict[int, list[int]] = {number: [] for number in range(len(graph.nodes))}
    for number, node in enumerate(graph.nodes):
        for source in dict.fromkeys(node.inputs):
            found[source].append(number)
    return found


def behind(graph: Graph, starts: Iterable[int], stops: Iterable[int] = ()) -> set[int]:
    """Nodes that depend on some, these included; not beyond the stops."""
    users, found, waiting = users_of(graph), set[int](), list(starts)
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += [] if number in set(stops) else users[number]
    return found


def before(graph: Graph, ends: Iterable[int], stops: Iterable[int] = ()) -> set[int]:
    """Nodes that some depend on, these included; not beyond the stops."""
    found, waiting = set[int](), list(ends)
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += [] if number in set(stops) else graph.nodes[number].inputs
    return found


class Rewritten(NamedTuple):
    """A graph in its one canonical order, and where old nodes went."""

    graph: Graph
    places: dict[int, int]


def rewritten(nodes: Mapping[int, Node] | tuple[Node, ...], output: int, buffers: tuple[int, ...]) -> Rewritten:
    """A graph of what output and buffers need, each input before its use, leaves placed one behind the other.

    Args:
      nodes: by number; the numbers need no order.
      output, buffers: numbers.

    Raises:
      Impossible: a node depends on itself.
    """
    table = nodes if isinstance(nodes, Mapping) else dict(enumerate(nodes))
    order = _ordered(table, [output, *buffers])
    draft, places, ends = Draft(), dict[int, int](), dict.fromkeys(LEAVES, 0)
    for number in order:
        node = table[number]
        if node.op in LEAVES:
            node = with_attributes(node, place=ends[node.op])
            ends[node.op] += node.size
        given = tuple(places[source] for source in node.inputs)
        places[number] = draft.add(node.op, given, node.shape, node.by_sample, **dict(node.attributes))
    graph = Graph(tuple(draft.nodes), places[output], tuple(places[number] for number in buffers))
    return Rewritten(graph, places)


def _ordered(table: Mapping[int, Node], ends: list[int]) -> list[int]:
    """Numbers of what the ends need, depth first; the order depends on the graph alone."""
    done, open_, order = set[int](), set[int](), list[int]()
    waiting = [(number, False) for number in reversed(ends)]
    while waiting:
        number, is_back = waiting.pop()
        if is_back:
            open_.discard(number)
            done.add(number)
            order.append(number)
        elif number in open_:
            raise Impossible("a node would depend on itself; expected a graph without cycles")
        elif number not in done:
            open_.add(number)
            waiting.append((number, True))
            waiting += [(source, False) for source in reversed(table[number].inputs) if source not in done]
    return order


def rows_of(tensors: Mapping[str, Tensor], names: Iterable[str], lead: int = 1) -> Tensor:
    """Named tensors [E, ..., *shape] as rows [E, ..., P], one behind the other; ``lead`` dimensions come first."""
    return torch.cat([tensors[name].flatten(lead) for name in names], dim=-1)
