"""From an ordinary ``torch.nn.Module`` of one network to a document: traced, lifted over networks, captured."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from esper.kasmina.host import OneNetwork
from esper.kasmina.layout import Given, Layout, Param, Params, constant
from esper.kasmina.site import Site, conv_site, token_site, vector_site
from esper.tezzeret.blueprints.document import Document
from esper.tezzeret.blueprints.eager_form import blueprint_of
from esper.tezzeret.blueprints.from_graph import Captured, of_graphs
from esper.tezzeret.blueprints.refusals import GRAPH, DocumentError
from esper.tezzeret.modules.cuts import flow
from esper.tezzeret.modules.host import COUNTER, lift
from esper.tezzeret.modules.refusals import expect_known
from esper.tezzeret.modules.segment import Segment, compute, why_not
from esper.tezzeret.modules.trace import trace
from esper.tezzeret.native.capture import capture
from esper.tezzeret.native.graph import Graph
from esper.tezzeret.native.observe import NotCaptured
from esper.utils import rng

CLOSE = 1e-4
"""How far the document's results may be from the module's, in units of the largest."""

Start = Literal["given", "shuffled"]


Parts = Mapping[bool, Segment]


class Own(NamedTuple):
    """What a module reads: features' shape per sample, tensors, and of how many tokens."""

    shape: tuple[int, ...]
    params: Layout
    buffers: Layout
    vocabulary: int


def of_module(
    module: nn.Module, name: str, example: Tensor, bypass: bool | None = None, start: Start = "given", text: str = ""
) -> Document:
    """Make a document of a module. It is for features of the example's shape alone; the module is not changed.

    Args:
      module: takes a batch and returns one; in float32, without dropout.
      name: of the blueprint.
      example: [B, C, H, W] maps, [B, T, D] token features, [B, D] vectors, or int64 [B, T] tokens, of which there are
        as many as the module's last axis.
      bypass: whether it acts at another point than it reads from; None: if the shapes differ.
      start: what seeds start from: the module's own numbers, or these with the numbers of every weight of two or more
        axes in another order.
      text: the description.

    Raises:
      DocumentError: the module does what no document can say; one line.
      ConfigError: it cannot be traced; one line.
    """
    place = f"of_module({type(module).__name__})"
    if not isinstance(example, Tensor) or example.dim() not in (2, 3, 4) or 0 in example.shape:
        found = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise DocumentError(place, GRAPH, "", f"example {found}", "a batch [B, C, H, W], [B, T, D], [B, D] or [B, T]")
    expect_known(place, module, ())
    example = torch.cat((example, example, example)) if len(example) == 1 else example
    parts = {form: _part(place, module, form, example) for form in (True, False)}
    shape = _result(place, module, example)
    params, buffers, held = _tensors(place, module, parts, start)
    source = _source(example)
    own = Own(source.shape, Layout(params), Layout(buffers), shape[-1] if source.kind == "tokens" else 0)
    graphs = _captured(place, module, parts, held, own)
    is_bypass = shape != source.shape or not example.is_floating_point() if bypass is None else bypass
    target = _target(shape, source) if is_bypass else None
    document = of_graphs(name, Captured(*graphs, params, buffers), source, target, text)
    _expect_agreement(place, document, module, example, (source, target or source))
    return document


def _refuse(place: str, node: str, found: str, expected: str) -> NoReturn:
    raise DocumentError(place, GRAPH, node, found, expected)


def _part(place: str, module: nn.Module, is_training: bool, example: Tensor) -> Segment:
    """The whole module as one stretch."""
    traced = trace(place, copy.deepcopy(module).train(is_training), example)
    reason, part = why_not(traced), Segment(traced, tuple(flow(traced)), traced.inputs, traced.output)
    if reason is not None or part.draws:
        _refuse(place, "", reason or "a dropout that draws random numbers", "a module without dropout")
    return part


def _inferred(part: Segment, tensors: Params, x: Tensor) -> Tensor:
    return compute(part, tensors, x, None)[0]


def _result(place: str, module: nn.Module, example: Tensor) -> tuple[int, ...]:
    with torch.no_grad():
        y = copy.deepcopy(module).eval()(example)
    if not isinstance(y, Tensor) or len(y) != len(example) or not 2 <= y.dim() <= 4 or not y.is_floating_point():
        found = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        _refuse(place, "", f"a result {found}", "features of every sample, of one to three axes")
    return tuple(y.shape[1:])


def _source(example: Tensor) -> Site:
    shape = tuple(example.shape[1:])
    if not example.is_floating_point():
        return Site("tokens", shape, 0)
    if len(shape) == 3:
        return conv_site(*shape)
    return vector_site(*shape) if len(shape) == 1 else token_site(*shape)


def _target(shape: tuple[int, ...], source: Site) -> Site:
    if len(shape) == 3:
        return conv_site(*shape)
    return Site("logits", shape, len(shape) - 1, None if len(shape) == 1 else 0)


def _tensors(
    place: str, module: nn.Module, parts: Mapping[bool, Segment], start: Start
) -> tuple[tuple[Param, ...], tuple[Param, ...], dict[str, Tensor]]:
    """What is trained, what is tracked, and what stays."""
    trained = {name: value for name, value in module.named_parameters(remove_duplicate=False) if value.requires_grad}
    values: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    values |= dict(module.named_buffers(remove_duplicate=False))
    for part in parts.values():
        values |= part.traced.constants
    reads = dict.fromkeys((*parts[True].reads, *parts[False].reads))
    changes = [name for name in parts[True].changes if not name.endswith(COUNTER)]
    params = tuple(_param(name, values[name], start) for name in reads if name in trained)
    if not params:
        _refuse(place, "", "no parameter that learns", "one at least")
    for name in changes:
        if len(set(values[name].flatten().tolist())) != 1 or not values[name].is_floating_point():
            _refuse(place, name, "a buffer that starts at different numbers", "one number, as in a module that is new")
    tracked = [name for name in reads if name in changes]
    buffers = tuple(
        constant(name, tuple(values[name].shape), float(values[name].flatten()[0].detach())) for name in tracked
    )
    held = {name: values[name].detach() for name in reads if name not in trained and name not in tracked}
    return params, buffers, held


def _param(name: str, value: Tensor, start: Start) -> Param:
    init: Start = "shuffled" if start == "shuffled" and value.dim() > 1 else "given"
    return Param(name, tuple(value.shape), init, 0.0, Given(value.detach().double().clone()))


def _captured(place: str, module: nn.Module, parts: Parts, held: Params, own: Own) -> tuple[Graph, Graph]:
    """The module's graphs: as it is called, else, where it writes statistics or in place, as it was traced."""
    train, infer = lift(OneNetwork(partial(compute, parts[True]), partial(_inferred, parts[False]), held), False)
    traced = (lambda params, buffers, x: train(params, buffers, x, None)), infer
    called = _called(module, held, True), _called(module, held, False)
    routes: list[tuple[Callable[..., Any], Callable[..., Any]]] = [traced] if own.buffers.params else [called, traced]
    reasons = []
    for functions in routes:
        try:
            first, second = (
                capture(function, own.shape, own.params, own.buffers, own.vocabulary) for function in functions
            )
            return first, second
        except NotCaptured as reason:
            reasons.append(str(reason))
    _refuse(place, "", reasons[0], "operations that a graph can say")


def _called(module: nn.Module, held: Params, is_training: bool) -> Callable[[Params, Params, Tensor], Tensor]:
    """The module as a function of many networks' parameters."""
    form = copy.deepcopy(module).train(is_training)

    def one(params: Params, x: Tensor) -> Tensor:
        return cast(Tensor, functional_call(form, {**held, **params}, (x,), tie_weights=True))

    return lambda params, buffers, x: vmap(one)(params, x)


def _expect_agreement(
    place: str, document: Document, module: nn.Module, example: Tensor, sites: tuple[Site, Site]
) -> None:
    """The document computes what the module does, in both forms."""
    blueprint, keys = blueprint_of(document), rng.split(rng.key(0), 2)
    rows, held = blueprint.layout(*sites), blueprint.buffer_layout(*sites)
    own = Layout(tuple(row._replace(init="given") if row.given else row for row in rows.params))
    dtype = next(module.parameters()).dtype
    params, buffers = own.views(own.init(keys, dtype)), held.views(held.init(keys, dtype))
    x = example.expand(2, *example.shape)
    for is_training in (True, False):
        with torch.no_grad():
            wanted = copy.deepcopy(module).train(is_training)(example)
            y = blueprint.train(params, buffers, x, None)[0] if is_training else blueprint.infer(params, buffers, x)
        gap = float((y - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3))
        if not gap <= CLOSE:
            words = "training" if is_training else "inference"
            _refuse(place, "", f"results in {words} that differ by {gap:.2g} of the largest", f"at most {CLOSE}")
