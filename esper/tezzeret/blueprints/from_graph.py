"""From captured graphs to a document: the same nodes, whose numbers are all literal."""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from esper.kasmina.layout import Param
from esper.kasmina.site import Site
from esper.tezzeret.blueprints.document import (
    INPUT,
    Call,
    Document,
    Form,
    Setting,
    SiteCase,
    TensorRow,
    canonical,
    source_sizes,
    target_sizes,
)
from esper.tezzeret.blueprints.fields import NAME
from esper.tezzeret.blueprints.operations import OPERATIONS
from esper.tezzeret.blueprints.reading import parse
from esper.tezzeret.blueprints.refusals import GRAPH, LIMITS, DocumentError
from esper.tezzeret.blueprints.resolving import Resolver, case_at, graph_of
from esper.tezzeret.native.graph import Graph, Node

LEAVES = ("input", "parameter", "buffer")


class Captured(NamedTuple):
    """A module that was captured.

    Attributes:
      train: in training; its nodes begin with the input, the parameters and the buffers, in order.
      infer: in inference.
      params: its trained tensors.
      buffers: its other tensors.
    """

    train: Graph
    infer: Graph
    params: tuple[Param, ...]
    buffers: tuple[Param, ...]


def of_graphs(name: str, captured: Captured, source: Site, target: Site | None = None, text: str = "") -> Document:
    """A document of what was captured, for sites of these shapes alone.

    Args:
      name: of the blueprint.
      captured: graphs and tensors.
      source: where it reads.
      target: where it acts, if that is another point.
      text: its description.

    Raises:
      DocumentError: it exceeds a limit, or does what no document can say.
    """
    acts = source if target is None else target
    rows = [*captured.params, *captured.buffers]
    given = {param.name: NAME.fullmatch(param.name) is not None and param.name != INPUT for param in rows}
    names = {own: own if good else f"tensor{number}" for number, (own, good) in enumerate(given.items())}
    train, infer = (_form(graph, names, is_training) for graph, is_training in _forms(captured))
    case = SiteCase(
        (source.kind,),
        () if target is None else _targets(source, target),
        tuple(_conditions(source, target)),
        (),
        tuple(_row(param, names[param.name]) for param in captured.params),
        tuple(_row(param, names[param.name]) for param in captured.buffers),
        train,
        None if infer == train else infer,
    )
    document = parse(canonical(Document(name, text, target is not None, None, (case,))), name)
    _expect_same(document, captured, source, acts)
    return document


def _forms(captured: Captured) -> tuple[tuple[Graph, bool], tuple[Graph, bool]]:
    return (captured.train, True), (captured.infer, False)


def _targets(source: Site, target: Site) -> tuple[str, ...]:
    if source.kind == "tokens":  # whose number is that of the logits' classes
        return ("logits",)
    return {1: ("logits", "vector"), 2: ("logits", "token")}.get(len(target.shape), (target.kind,))


def _conditions(source: Site, target: Site | None) -> Iterable[str]:
    sites = [source_sizes(source.kind, source.shape)] + ([target_sizes(target)] if target is not None else [])
    for name, value in itertools.chain.from_iterable(site.items() for site in sites):
        if not name.endswith(("positions", "numbers", "causal", "classes")) and name != "axes":
            yield f"{name} == {value}"


def _row(param: Param, name: str) -> TensorRow:
    """A tensor; numbers that are all the same are a constant."""
    if param.given is None:
        return TensorRow(name, param.shape, param.init, float(param.scale))
    values = tuple(param.given.values.double().flatten().tolist())
    if len(set(values)) == 1:
        return TensorRow(name, param.shape, "constant", values[0])
    return TensorRow(name, param.shape, param.init, 0.0, values)


def _form(graph: Graph, names: dict[str, str], is_training: bool) -> Form:
    taken, said = set(names.values()), list[str]()
    for number, node in enumerate(graph.nodes):
        held = str(dict(node.attributes).get("name"))
        own = f"{node.op}{number}" if f"{node.op}{number}" not in taken else f"{node.op}{number}_node"
        said.append(INPUT if node.op == "input" else names[held] if node.op in LEAVES else own)
    calls = tuple(_call(graph, number, said) for number, node in enumerate(graph.nodes) if node.op not in LEAVES)
    kept = {said[graph.nodes[number].inputs[0]]: said[number] for number in graph.buffers}
    return Form(calls, said[graph.output], tuple(sorted(kept.items())) if is_training else ())


def _call(graph: Graph, number: int, said: list[str]) -> Call:
    node = graph.nodes[number]
    attributes: dict[str, Setting] = dict(node.attributes)
    if _needs_shape(graph, node):
        attributes["shape"] = node.shape
    return Call(said[number], node.op, tuple(said[each] for each in node.inputs), tuple(sorted(attributes.items())))


def _needs_shape(graph: Graph, node: Node) -> bool:
    """Whether the shape does not follow from what the node reads."""
    known = OPERATIONS[node.op].attributes.get("shape")
    if known is None or known.required:
        return known is not None
    inputs = tuple(graph.nodes[each] for each in node.inputs)
    try:
        return tuple(OPERATIONS[node.op].shape(inputs, dict(node.attributes))) != node.shape
    except ValueError:
        return True


def _expect_same(document: Document, captured: Captured, source: Site, target: Site) -> None:
    """The document's graphs are those that were captured."""
    found = case_at(document, source, target)
    if found is None:
        raise DocumentError(document.name, GRAPH, "", "conditions that do not hold", "those of its own sites")
    case, names = found
    resolver = Resolver(document.name, names, LIMITS)
    for graph, is_training in _forms(captured):
        own = graph_of(case, is_training, resolver, (source.kind, source.shape))
        for number, (node, wanted) in enumerate(zip(own.nodes, graph.nodes, strict=True)):
            if node.op not in LEAVES and node != wanted:
                raise DocumentError(document.name, GRAPH, f"{node.op}{number}", f"{node}"[:200], f"{wanted}"[:200])
