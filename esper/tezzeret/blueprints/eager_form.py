"""From a document to a blueprint of ``esper.kasmina``: the eager form, at every pair of sites that it is for.

A seed that runs is told its tensors, not its sites. Its case and sizes follow from what it is given: the features'
axes and type say the source, the axes of parameters what the document asks of the target by name.
"""

import math
from functools import partial
from typing import NamedTuple

from torch import Tensor

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.layout import Param, Params
from esper.kasmina.site import Site
from esper.tezzeret.blueprints.costs import infer
from esper.tezzeret.blueprints.document import Document
from esper.tezzeret.blueprints.eager_rules import apply_graph
from esper.tezzeret.blueprints.refusals import LIMITS
from esper.tezzeret.blueprints.resolving import Resolver, case_at, case_told, graph_of
from esper.tezzeret.native.graph import Shape
from esper.tezzeret.surgery.forward import Forward

KINDS = {(3, True): "conv", (2, True): "token", (1, True): "vector", (1, False): "tokens"}
"""Axes of a sample's features and whether these are floating -> the kind of their site."""

Told = tuple[str, Shape, tuple[Shape, ...]]
"""What tensors say: kind and shape of the features, shapes of the parameters."""


class Prepared(NamedTuple):
    """A document at a site, ready to run."""

    train: Forward
    infer: Forward


def blueprint_of(document: Document) -> Blueprint:
    """The eager form of a document.

    Its functions raise ``DocumentError`` at sites that it fits by its conditions and not by its shapes: ask ``infer``
    first.
    """
    find = _Finder(document)
    bound = math.inf if document.identity_bound is None else document.identity_bound

    def fits(source: Site, target: Site) -> bool:
        return case_at(document, source, target) is not None

    def rows(name: str, source: Site, target: Site) -> tuple[Param, ...]:
        found = case_at(document, source, target)
        infer(document, source, target)
        assert found is not None
        case, names = found
        made = tuple(Resolver(document.name, names, LIMITS).param(row) for row in getattr(case, name))
        if name == "parameters":  # now, so that whatever traces the seed finds it ready
            find.ready(source.kind, source.shape, {param.name: param.shape or (1,) for param in made})
        return made

    def inference(params: Params, buffers: Params, x: Tensor) -> Tensor:
        return apply_graph(find(params, x).infer, params, buffers, x, None)[0]

    return Blueprint(
        name=document.name,
        fits=fits,
        params=partial(rows, "parameters"),
        train=TrainDocument(document, find),
        infer=inference,
        flops=lambda source, target: infer(document, source, target).flops,
        identity_bound=bound,
        buffers=partial(rows, "buffers"),
        draws=document.draws,
        is_bypass=document.bypass,
    )


class TrainDocument:
    """The training form of a document's blueprint.

    Attributes:
      document: what it is.
    """

    def __init__(self, document: Document, find: "_Finder") -> None:
        self.document, self._find = document, find

    def __call__(self, params: Params, buffers: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
        """As ``Blueprint.train``."""
        y, new = apply_graph(self._find(params, x).train, params, buffers, x, key)
        return y, new or buffers


class _Finder:
    """Finds what a document is, given tensors; what was found once is known."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.known: dict[Told, Prepared] = {}

    def __call__(self, params: Params, x: Tensor) -> Prepared:
        kind = KINDS[x.dim() - 2, x.is_floating_point()]
        told = kind, tuple(x.shape[2:]), tuple(tuple(value.shape[1:]) for value in params.values())
        if told in self.known:
            return self.known[told]
        return self.ready(kind, told[1], dict(zip(params, told[2], strict=True)))

    def ready(self, kind: str, shape: Shape, shapes: dict[str, Shape]) -> Prepared:
        """What a document is, given the shapes of tensors."""
        told = kind, shape, tuple(shapes.values())
        if told not in self.known:
            self.known[told] = prepare(self.document, told, tuple(shapes))
        return self.known[told]


def prepare(document: Document, told: Told, names: tuple[str, ...]) -> Prepared:
    """A document's forms, from what tensors say; names are those of the parameters, in order."""
    kind, shape, shapes = told
    found = case_told(document, kind, shape, dict(zip(names, shapes, strict=True)))
    if found is None:
        raise ValueError(f"blueprint {document.name!r}: no case for {kind} {list(shape)} and parameters {list(shapes)}")
    case, sizes = found
    resolver = Resolver(document.name, sizes, LIMITS)
    graphs = (graph_of(case, form, resolver, (kind, shape)) for form in (True, False))
    return Prepared(*map(Forward, graphs))
