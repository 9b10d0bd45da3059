"""Stage 2: shapes, parameters, FLOPs and memory of a document at a site, before anything is allocated."""

from typing import NamedTuple

from esper.kasmina.site import Site
from esper.tezzeret.blueprints.document import Document, SiteCase, source_sizes, target_sizes
from esper.tezzeret.blueprints.operations import OPERATIONS
from esper.tezzeret.blueprints.refusals import GRAPH, LIMITS, DocumentError, DocumentLimits
from esper.tezzeret.blueprints.resolving import Resolver, case_at, case_told, expect_values, graph_of
from esper.tezzeret.native.graph import Graph, Node, Shape

BYTES = 4
"""Of a number in float32."""


class NodeCost(NamedTuple):
    """What a node gives.

    Attributes:
      name: of the node.
      op: its operation.
      shape: per sample, or per network.
      by_sample: which of these.
      flops: multiply-adds per sample.
    """

    name: str
    op: str
    shape: Shape
    by_sample: bool
    flops: int


class Costs(NamedTuple):
    """What a document needs at a site.

    Attributes:
      nodes: of the training form, in order.
      params: trained numbers of one network.
      buffers: its numbers that are not trained.
      flops: multiply-adds per sample of one forward pass in inference.
      bytes: in float32, of parameters, buffers and every node of one sample in training.
    """

    nodes: tuple[NodeCost, ...]
    params: int
    buffers: int
    flops: int
    bytes: int


def infer(document: Document, source: Site, target: Site, limits: DocumentLimits = LIMITS) -> Costs:
    """Find shapes and costs.

    Args:
      document: what was parsed.
      source, target: sites; of a document that is no bypass twice the same.
      limits: what it may not exceed.

    Raises:
      DocumentError: it is not for these sites, shapes do not fit, or a limit is exceeded; stage "graph".
    """
    place = document.name
    found = case_at(document, source, target)
    if found is None:
        _expect_values(document, source, target, limits)
        raise DocumentError(place, GRAPH, "", f"no case for {_words(source, target)}", _wanted(document))
    case, names = found
    resolver = Resolver(place, names, limits)
    shapes = {row.name: resolver.shape(row.name, row.shape) or (1,) for row in case.parameters}
    told = case_told(document, source.kind, source.shape, shapes)
    if told is None or told[0] is not case:
        resolver.refuse("", "a case that features and parameters do not tell from another", "cases of other tensors")
    for row in (*case.parameters, *case.buffers):
        resolver.real(row.name, row.scale)
    train, inference = (graph_of(case, form, resolver, (source.kind, source.shape)) for form in (True, False))
    for form, graph in ((True, train), (False, inference)):
        _check_output(resolver, case, form, graph, target)
    _check_tables(resolver, case, train, source, target)
    nodes, first = _node_costs(case, True, train), 1 + len(case.parameters) + len(case.buffers)
    params, buffers = (sum(n.size for n in train.nodes[1:first] if n.op == op) for op in ("parameter", "buffer"))
    flops = sum(cost.flops for cost in _node_costs(case, False, inference))
    activations = sum(node.size for node in train.nodes[first:])
    for what, value, most in (
        ("parameters", params, limits.parameters),
        ("buffers", buffers, limits.buffers),
        ("FLOPs per sample", flops, limits.flops),
    ):
        if value > most:
            resolver.refuse("", f"{value} {what}", f"at most {most}")
    return Costs(nodes, params, buffers, flops, BYTES * (params + buffers + activations))


def _expect_values(document: Document, source: Site, target: Site, limits: DocumentLimits) -> None:
    """Say why a case has no sizes, rather than that there is none."""
    sites = source_sizes(source.kind, source.shape) | (target_sizes(target) if document.bypass else {})
    for case in document.cases:
        if source.kind in case.source and (not document.bypass or target.kind in case.target):
            Resolver(document.name, {}, limits).of("case", lambda case=case: expect_values(case, sites))  # type: ignore[misc]


def _words(source: Site, target: Site) -> str:
    first = f"{source.kind} {list(source.shape)}"
    return first if source == target else f"{first} to {target.kind} {list(target.shape)}"


def _wanted(document: Document) -> str:
    """For which sites a document is."""
    found = []
    for case in document.cases:
        kinds = " or ".join(case.source) + (f" to {' or '.join(case.target)}" if case.target else " at one point")
        found.append(kinds + (f" with {' and '.join(case.where)}" if case.where else ""))
    return "; or ".join(found)


def _check_output(resolver: Resolver, case: SiteCase, is_training: bool, graph: Graph, target: Site) -> None:
    name, node = case.form(is_training).output, graph.nodes[graph.output]
    if node.shape != target.shape or not node.by_sample:
        resolver.refuse(name, f"the result's shape {list(node.shape)}", f"features {list(target.shape)} of the target")


def _check_tables(resolver: Resolver, case: SiteCase, graph: Graph, source: Site, target: Site) -> None:
    """Tables have a row for every token."""
    first = len(graph.nodes) - len(case.train.nodes)
    for call, node in zip(case.train.nodes, graph.nodes[first:], strict=True):
        rows = graph.nodes[node.inputs[1]].shape[0] if node.op == "embed" else target.channels
        if source.kind == "tokens" and rows < target.channels:
            resolver.refuse(call.name, f"a table of {rows} rows", f"one per token, {target.channels}")


def _node_costs(case: SiteCase, is_training: bool, graph: Graph) -> tuple[NodeCost, ...]:
    calls = case.form(is_training).nodes
    own = graph.nodes[len(graph.nodes) - len(calls) :]
    return tuple(_cost(call.name, node, graph) for call, node in zip(calls, own, strict=True))


def _cost(name: str, node: Node, graph: Graph) -> NodeCost:
    inputs, attributes = tuple(graph.nodes[number] for number in node.inputs), dict(node.attributes)
    flops = OPERATIONS[node.op].flops(inputs, node.shape, attributes)
    return NodeCost(name, node.op, node.shape, node.by_sample, flops)
