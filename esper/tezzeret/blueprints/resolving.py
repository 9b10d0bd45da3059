"""A document at a site: every size a number, every form a graph, nothing allocated."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch

from esper.kasmina.layout import Given, Param
from esper.kasmina.site import Site
from esper.tezzeret.blueprints.document import (
    INPUT,
    RANKS,
    TARGET_NAMES,
    Call,
    Document,
    Real,
    Setting,
    SiteCase,
    TensorRow,
    sizes_at,
    source_sizes,
    target_sizes,
)
from esper.tezzeret.blueprints.operations import BY_NETWORK, CARRIES, OPERATIONS
from esper.tezzeret.blueprints.refusals import GRAPH, DocumentError, DocumentLimits
from esper.tezzeret.blueprints.shapes import ShapeError
from esper.tezzeret.blueprints.sizes import Size, SizeError, evaluate, names_in
from esper.tezzeret.native.graph import Attribute, Graph, Node, Shape

Result = TypeVar("Result")


def sizes_between(case: SiteCase, source: Site, target: Site) -> dict[str, int] | None:
    """The sizes of a case at two sites (or twice the same one); None where it is not for them."""
    acts = target_sizes(target) if case.target else {}
    if not _is_kind(source, case.source) or (case.target and not _is_kind(target, case.target)):
        return None
    return holding(case, source_sizes(source.kind, source.shape) | acts)


def holding(case: SiteCase, sites: Mapping[str, int]) -> dict[str, int] | None:
    """The sites' sizes and the case's; None where a condition does not hold or has no value."""
    try:
        names = sizes_at(case, sites)
        return names if all(evaluate(condition, names) for condition in case.where) else None
    except SizeError:
        return None


def expect_values(case: SiteCase, sites: Mapping[str, int]) -> None:
    """Check that a case's sizes and conditions have values wherever the sites have what these name.

    Raises:
      SizeError: a division by 0, or too many bits.
    """
    names = dict(sites)
    for name, text in (*case.sizes, *(("", condition) for condition in case.where)):
        if names_in(text) <= set(names):
            value = evaluate(text, names)
            names |= {name: value} if name else {}


def _is_kind(site: Site, kinds: tuple[str, ...]) -> bool:
    return site.kind in kinds and len(site.shape) in RANKS[site.kind] and all(side > 0 for side in site.shape)


def case_at(document: Document, source: Site, target: Site) -> tuple[SiteCase, dict[str, int]] | None:
    """The first case that is for two sites, and its sizes there."""
    if not document.bypass and source != target:
        return None
    for case in document.cases:
        if (names := sizes_between(case, source, target)) is not None:
            return case, names
    return None


def case_told(
    document: Document, kind: str, shape: Shape, shapes: Mapping[str, Shape]
) -> tuple[SiteCase, dict[str, int]] | None:
    """The first case that tensors can be of, and the sizes that follow from them.

    Args:
      document: the document.
      kind, shape: of the features.
      shapes: parameter -> its shape, in order.
    """
    for case in document.cases:
        if (sizes := _sizes_told(case, kind, shape, shapes)) is not None:
            return case, sizes
    return None


def _sizes_told(case: SiteCase, kind: str, shape: Shape, shapes: Mapping[str, Shape]) -> dict[str, int] | None:
    """Sizes of a case, if tensors of these shapes can be its own; those that follow from none of them are left out."""
    if kind not in case.source or list(shapes) != [row.name for row in case.parameters]:
        return None
    found = source_sizes(kind, shape)
    for row in case.parameters:
        found |= {
            name: side
            for name, side in zip(row.shape, shapes[row.name], strict=False)
            if isinstance(name, str) and name in TARGET_NAMES
        }
    for name, other in (("classes", "target_channels"), ("target_channels", "classes")):
        if name in found:
            found.setdefault(other, found[name])
    for name, text in case.sizes:
        if (value := _value(text, found)) is not None:
            found[name] = value
    if any(_value(condition, found) == 0 for condition in case.where):
        return None
    wanted = {row.name: tuple(_value(side, found) for side in row.shape) or (1,) for row in case.parameters}
    return found if all(_agree(wanted[name], own) for name, own in shapes.items()) else None


def _value(text: Size, names: dict[str, int]) -> int | None:
    try:
        return evaluate(text, names)
    except SizeError:
        return None


def _agree(wanted: tuple[int | None, ...], shape: Shape) -> bool:
    return len(wanted) == len(shape) and all(side in (None, own) for side, own in zip(wanted, shape, strict=True))


class Resolver(NamedTuple):
    """What turns sizes into numbers, and says of what node it could not.

    Attributes:
      place: what messages call the document.
      names: sizes.
      limits: what may not be exceeded.
    """

    place: str
    names: Mapping[str, int]
    limits: DocumentLimits

    def refuse(self, node: str, found: str, expected: str) -> NoReturn:
        """Raise ``DocumentError``."""
        raise DocumentError(self.place, GRAPH, node, found, expected)

    def of(self, node: str, compute: Callable[[], Result]) -> Result:
        """A result, or why there is none."""
        try:
            return compute()
        except SizeError as error:
            found, _, expected = str(error).partition("; expected ")
            self.refuse(node, found, expected or "a size")
        except ShapeError as error:
            self.refuse(node, error.found, error.expected)

    def size(self, node: str, what: str, text: Size) -> int:
        """A size from 1."""
        value = self.of(node, lambda: evaluate(text, self.names))
        if value < 1:
            self.refuse(node, f"{what} {value}" + (f" = {text}" if isinstance(text, str) else ""), "at least 1")
        return value

    def shape(self, node: str, shape: tuple[Size, ...]) -> Shape:
        """Sizes of axes."""
        return tuple(self.size(node, "an axis of", side) for side in shape)

    def real(self, node: str, value: Real) -> float:
        """A number."""
        if not isinstance(value, tuple):
            return value
        size = self.size(node, value[0], value[1])
        return float(size**-0.5 if value[0] == "over_root" else 1 / size)

    def param(self, row: TensorRow) -> Param:
        """A parameter or a buffer."""
        given = _given(row.values) if row.init in ("given", "shuffled") else None
        shape = self.shape(row.name, row.shape)
        return Param(row.name, shape, row.init, self.real(row.name, row.scale), given)  # type: ignore[arg-type]

    def attributes(self, call: Call) -> dict[str, Attribute]:
        """A node's attributes as numbers."""
        kinds = OPERATIONS[call.op].attributes
        return {name: self.setting(call.name, name, kinds[name].kind, value) for name, value in call.attributes}

    def setting(self, node: str, name: str, kind: str, value: Setting) -> Attribute:
        """An attribute."""
        given: Any = value
        if kind == "size":
            return self.size(node, name, given)
        if kind == "shape":
            return self.shape(node, given)
        return self.real(node, given) if kind == "real" else given


@lru_cache(maxsize=1024)
def _given(values: tuple[float, ...]) -> Given:
    """Given numbers; one object for the same ones, so that parameters compare."""
    return Given(torch.tensor(values, dtype=torch.float64))


def graph_of(case: SiteCase, is_training: bool, resolver: Resolver, source: tuple[str, Shape]) -> Graph:
    """A form as a graph, whose nodes are the input, parameters, buffers, and the form's own, in order.

    Args:
      case: the case.
      is_training: which form.
      resolver: of its sizes.
      source: kind and shape of the features.

    Raises:
      DocumentError: shapes, sizes or types that do not fit; stage "graph".
    """
    form, kind = case.form(is_training), source[0]
    nodes, numbers = [Node("input", (), source[1], True)], {INPUT: 0}
    tokens = {0} if kind == "tokens" else set[int]()
    for op, rows in (("parameter", case.parameters), ("buffer", case.buffers)):
        place = 0
        for row in rows:
            shape = resolver.shape(row.name, row.shape) or (1,)
            numbers[row.name] = len(nodes)
            nodes.append(Node(op, (), shape, False, (("name", row.name), ("place", place))))
            place += nodes[-1].size
    for call in form.nodes:
        node = _node(call, nodes, numbers, tokens, resolver)
        numbers[call.name] = len(nodes)
        nodes.append(node)
    new = dict(form.buffers)
    kept = tuple(numbers[new[row.name]] for row in case.buffers if row.name in new)
    return Graph(tuple(nodes), numbers[form.output], kept)


def _node(call: Call, nodes: list[Node], numbers: Mapping[str, int], tokens: set[int], resolver: Resolver) -> Node:
    known, given = OPERATIONS[call.op], tuple(numbers[name] for name in call.inputs)
    inputs, attributes = tuple(nodes[number] for number in given), resolver.attributes(call)
    if call.op == "embed" and given[0] not in tokens:
        resolver.refuse(call.name, f"{call.inputs[0]!r}, which are features", "tokens first")
    for place, number in enumerate(given):
        if number in tokens and call.op not in CARRIES and (call.op != "embed" or place):
            resolver.refuse(call.name, f"{call.inputs[place]!r}, which are tokens, to {call.op}", "features")
    if tokens & set(given) and call.op in CARRIES:
        if len(given) > 1 or -1 in attributes.get("index", ()):  # type: ignore[operator]
            resolver.refuse(call.name, f"tokens and other numbers to {call.op}", "tokens alone, at places from 0")
        tokens.add(len(nodes))
    shape = resolver.of(call.name, lambda: known.shape(inputs, attributes))
    by_sample = call.op not in BY_NETWORK and any(node.by_sample for node in inputs)
    if call.op in ("constant", "reshape", "take"):
        attributes.pop("shape")
    node = Node(call.op, given, tuple(shape), by_sample, tuple(sorted(attributes.items())))
    if node.size > resolver.limits.activations:
        resolver.refuse(call.name, f"{node.size} numbers", f"at most {resolver.limits.activations}")
    return node
