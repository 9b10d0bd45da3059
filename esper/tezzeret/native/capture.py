"""From a module's Python function to a graph: the function is called, and what it does to features is written down.

It runs twice, with other numbers of networks and samples: a graph that depends on them is none.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from esper.kasmina.layout import Layout
from esper.tezzeret.native.graph import Graph, Shape
from esper.tezzeret.native.layer_rules import OWN, TORCH
from esper.tezzeret.native.module_norms import NORMS
from esper.tezzeret.native.observe import NotCaptured, Observer, Value
from esper.tezzeret.native.rules import ARITHMETIC

SIZES = ((2, 3), (3, 5))
"""Networks and samples of the two runs."""

RULES = ARITHMETIC | TORCH | NORMS


def capture(
    function: Callable[..., Any],
    shape: Shape,
    layout: Layout,
    buffers: Layout | None = None,
    vocabulary: int = 0,
) -> Graph:
    """Write down a module.

    Args:
      function: (params, x) -> y; with ``buffers``, (params, buffers, x) -> y or (y, new buffers).
      shape: of x, per sample.
      layout: its row of parameters.
      buffers: its row of buffers.
      vocabulary: x is int64 tokens, so many; 0: it is features.

    Raises:
      NotCaptured: it does what no operation of a graph can say.
    """
    first, second = (
        _watch(Observer(sizes, RULES, OWN, vocabulary), function, shape, layout, buffers) for sizes in SIZES
    )
    if first != second:
        raise NotCaptured("operations that depend on the number of networks or samples")
    return first


def _watch(
    observer: Observer, function: Callable[..., Any], shape: Shape, layout: Layout, buffers: Layout | None
) -> Graph:
    sizes = observer.sizes
    x = torch.zeros(*sizes, *shape, dtype=torch.int64 if observer.vocabulary else torch.get_default_dtype())
    observer.tell(x, Value(observer.draft.add("input", (), shape, by_sample=True), sizes))
    rows = [_rows(observer, "parameter", layout), *([_rows(observer, "buffer", buffers)] if buffers else [])]
    try:
        with torch.no_grad(), warnings.catch_warnings(), observer:
            warnings.simplefilter("ignore")  # what is to be said is said where the function runs for its result
            result = function(*rows, x)
    except Exception as error:  # a function may fail in any way when its shapes are not those it expects
        reason = NotCaptured(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise observer.refusal or reason from error
    if observer.refusal:
        raise observer.refusal
    y, new = result if isinstance(result, tuple) else (result, {})
    if not isinstance(y, Tensor) or not observer.knows(y) or observer.value(y).lead != sizes:
        raise NotCaptured("no features as the result")
    kept = buffers.params if buffers is not None and new else ()
    nodes = observer.draft.nodes
    return Graph(tuple(nodes), observer.value(y).node, tuple(observer.value(new[param.name]).node for param in kept))


def _rows(observer: Observer, kind: str, layout: Layout) -> dict[str, Tensor]:
    """Zeros for every named tensor of a row."""
    found, place = {}, 0
    for param in layout.params:
        shape = param.shape or (1,)
        found[param.name] = torch.zeros(observer.sizes[0], *shape)
        node = observer.draft.add(kind, (), shape, by_sample=False, name=param.name, place=place)
        observer.tell(found[param.name], Value(node, observer.sizes[:1]))
        place += param.size
    return found
