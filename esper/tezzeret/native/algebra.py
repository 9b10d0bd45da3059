"""Arithmetic of values that are being captured: from known values to the nodes of what follows from them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.tezzeret.native.graph import Attribute, Shape
from esper.tezzeret.native.observe import NotCaptured, Observer, Value

Number = int | float
Pair = tuple[int, int]


def moved(o: Observer, move: Callable[[Tensor], Tensor], value: Value) -> Value:
    """What a function gives that only carries numbers about."""
    return moved_from(o, move(o.indices(value)), value, value.lead)


def moved_from(o: Observer, index: Tensor, value: Value, lead: Shape) -> Value:
    """The same, from what it made of the value's indices."""
    (table,) = o.places(index, [value], lead)
    return Value(o.draft.take((value.node,), table, tuple(index.shape[len(lead) :])), lead)


def joined(o: Observer, join: Callable[[list[Tensor]], Tensor], values: Sequence[Value]) -> Value:
    """What a function gives that puts several tensors together."""
    parts, first, lead = list[Tensor](), 0, max((value.lead for value in values), key=len)
    for value in values:
        parts.append(o.indices(value) + first)
        first += parts[-1].numel()
    index = join(parts)
    tables, table, begin = o.places(index, list(values), lead), list[int](), 0
    for number, each in enumerate(tables):
        table = [old if new < 0 else begin + new for old, new in zip(table or [-1] * len(each), each, strict=True)]
        begin += o.node(values[number]).size
    return Value(o.draft.take(tuple(v.node for v in values), tuple(table), tuple(index.shape[len(lead) :])), lead)


def paired(o: Observer, op: str, x: Value, y: Value) -> Value:
    """``add`` or ``multiply``, with torch's broadcasting."""
    lead = max(x.lead, y.lead, key=len)
    if x.lead == y.lead and o.node(x).shape == o.node(y).shape:
        return Value(o.draft.add(op, (x.node, y.node), o.node(x).shape), lead)
    parts = torch.broadcast_tensors(o.indices(x), o.indices(y))
    shape = tuple(parts[0].shape[len(lead) :])
    tables = [o.places(part, [value], lead)[0] for part, value in zip(parts, (x, y), strict=True)]
    whole = tuple(range(math.prod(shape)))
    nodes = [x.node, y.node]
    if tables[0] != whole or (o.node(y).by_sample and not o.node(x).by_sample and tables[1] == whole):
        nodes, tables = nodes[::-1], tables[::-1]
    first = o.draft.take((nodes[0],), tables[0], shape)
    repeats = _repeats(o.draft.nodes[nodes[1]].size, tables[1])
    if repeats is None:
        return Value(o.draft.add(op, (first, o.draft.take((nodes[1],), tables[1], shape)), shape), lead)
    second = o.draft.reshape(nodes[1], shape) if tables[1] == whole else nodes[1]
    marks = {"repeats": repeats} if repeats > 1 else {}
    return Value(o.draft.add(op, (first, second), shape, None, **marks), lead)


def _repeats(size: int, table: tuple[int, ...]) -> int | None:
    """How often so many numbers, each for as many neighbours, follow one another; None where they do otherwise."""
    each = next((n for n, place in enumerate(table) if place), len(table))
    regular = len(table) % (each * size) == 0 and all(place == n // each % size for n, place in enumerate(table))
    return len(table) // (each * size) if regular else None


def number_of(o: Observer, argument: Any) -> Number | None:
    """An argument that is one number, known when capturing."""
    if isinstance(argument, Tensor):
        return argument.item() if argument.numel() == 1 and not o.knows(argument) else None
    return argument if isinstance(argument, (int, float)) else None


def added(o: Observer, x: Any, y: Any) -> Value:
    """The sum of values or numbers."""
    if isinstance(y, (int, float)):
        return Value(o.draft.plus(x.node, y), x.lead)
    return added(o, y, x) if isinstance(x, (int, float)) else paired(o, "add", x, y)


def multiplied(o: Observer, x: Any, y: Any) -> Value:
    """The product of values or numbers."""
    if isinstance(y, (int, float)):
        return Value(o.draft.times(x.node, y), x.lead)
    return multiplied(o, y, x) if isinstance(x, (int, float)) else paired(o, "multiply", x, y)


def inverse(o: Observer, x: Any) -> Any:
    """1 / x."""
    return 1 / x if isinstance(x, (int, float)) else mapped(o, "reciprocal", x)


def mapped(o: Observer, op: str, x: Value) -> Value:
    """An operation on every number."""
    return Value(o.draft.unary(op, x.node), x.lead)


def axes_of(o: Observer, value: Value, dims: int | Sequence[int] | None, what: str) -> list[int]:
    """Axes of a value's shape, from dimensions of its tensor."""
    rank = len(value.lead) + len(o.node(value).shape)
    wanted = range(rank) if dims is None or dims == () else [dims] if isinstance(dims, int) else dims
    axes = sorted(dim % rank - len(value.lead) for dim in wanted)
    if axes and axes[0] < 0:
        raise NotCaptured(f"operation {what} over networks or samples")
    return axes


def over(
    o: Observer, op: str, value: Value, axes: Sequence[int], keeps: bool = False, **attributes: Attribute
) -> Value:
    """``mean``, ``largest``, ``softmax`` or ``normalise`` over axes of the shape."""
    shape, drops = o.node(value).shape, op in ("mean", "largest")
    order = [axis for axis in range(len(shape)) if axis not in axes] + list(axes)
    node = o.draft.over_last(op, permuted(o, value.node, order), len(axes), **attributes)
    if drops:
        kept = tuple(1 if axis in axes else side for axis, side in enumerate(shape)) if keeps else None
        return Value(o.draft.reshape(node, kept) if kept is not None else node, value.lead)
    return Value(permuted(o, node, [order.index(axis) for axis in range(len(shape))]), value.lead)


def permuted(o: Observer, node: int, order: Sequence[int]) -> int:
    """A node with its axes in another order."""
    shape = o.draft.nodes[node].shape
    index = torch.arange(math.prod(shape)).reshape(shape).permute(*order)
    return o.draft.take((node,), tuple(index.flatten().tolist()), tuple(index.shape))


def linear(o: Observer, x: Value, weight: int, bias: int | None) -> Value:
    """An affine map of the last axis; weight [O, I], bias [O] by network."""
    shape, outputs = o.node(x).shape, o.draft.nodes[weight].shape[0]
    rest = shape[:-1]
    if not shape or o.draft.nodes[weight].size != outputs * shape[-1]:
        raise NotCaptured(f"a linear layer of weight {o.draft.nodes[weight].shape} on {shape}")
    if math.prod(rest) == 1:
        node = convolved(o, o.draft.reshape(x.node, shape[-1:]), weight, bias, 1, 1)
        return Value(o.draft.reshape(node, (*rest, outputs)), x.lead)
    given = (x.node, weight) if bias is None else (x.node, weight, bias)
    return Value(o.draft.add("linear", given, (*rest, outputs)), x.lead)


def convolved(o: Observer, x: int, weight: int, bias: int | None, kernel: int, groups: int) -> int:
    """``convolve`` as a node: x [I, ...] -> [O, ...]."""
    nodes = o.draft.nodes
    outputs, inputs = nodes[weight].shape[0], nodes[x].shape[0]
    sound = (
        not nodes[weight].by_sample
        and nodes[x].by_sample
        and nodes[weight].size * groups == (outputs * inputs * kernel**2)
    )
    if not sound or outputs % groups or inputs % groups:
        raise NotCaptured(f"a convolution of weight {nodes[weight].shape} on {nodes[x].shape}")
    given = (x, weight) if bias is None else (x, weight, bias)
    return o.draft.add("convolve", given, (outputs, *nodes[x].shape[1:]), kernel=kernel, groups=groups)


def embedded(o: Observer, x: Value, table: Value) -> Value:
    """Of every token its row of a table [V, ...] by network."""
    tokens, rows = o.node(x), o.node(table)
    source = tokens
    while source.op in ("take", "reshape") and len(source.inputs) == 1:
        source = o.draft.nodes[source.inputs[0]]
    if not o.vocabulary or source.op != "input":
        raise NotCaptured("rows of a table at computed numbers")
    if rows.by_sample or not rows.shape or len(table.lead) > 1 or rows.shape[0] < o.vocabulary:
        raise NotCaptured(f"rows of a tensor of shape {rows.shape} at {o.vocabulary} tokens")
    node = o.draft.add("embed", (x.node, table.node), (*tokens.shape, *rows.shape[1:]))
    return Value(node, x.lead)


def windows(shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Places in a map [C, H, W] of every window: int64 [C, k k', H', W']; -1 outside."""
    index = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(1, *shape)
    sides = [
        (side + 2 * pad - gap * (each - 1) - 1) // step + 1
        for side, each, step, pad, gap in zip(shape[1:], kernel, stride, padding, dilation, strict=True)
    ]
    found = F.unfold(index, kernel, dilation, padding, stride).long() - 1
    return found.reshape(shape[0], kernel[0] * kernel[1], *sides)


def product(o: Observer, x: Value, y: Value) -> Value:
    """The product of matrices, with torch's broadcasting."""
    a, b = o.node(x), o.node(y)
    if a.by_sample and not b.by_sample and len(b.shape) >= 2 and b.size == math.prod(b.shape[-2:]):
        return linear(o, x, permuted(o, o.draft.reshape(y.node, b.shape[-2:]), [1, 0]), None)
    lead = max(x.lead, y.lead, key=len)
    if min(len(x.lead) + len(a.shape), len(y.lead) + len(b.shape)) < 2 or min(len(a.shape), len(b.shape)) < 2:
        raise NotCaptured("operation matmul of vectors")
    (rows, inner), columns = a.shape[-2:], b.shape[-1]
    if b.by_sample and not a.by_sample and a.size == rows * inner and b.size == inner * columns:
        node = convolved(
            o, o.draft.reshape(y.node, (inner, columns)), o.draft.reshape(x.node, (rows, inner)), None, 1, 1
        )
        ahead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return Value(o.draft.reshape(node, (*ahead, rows, columns)), lead)
    parts = o.indices(x), o.indices(y)
    ahead = torch.broadcast_shapes(parts[0].shape[:-2], parts[1].shape[:-2])
    tables = [
        o.places(part.expand(*ahead, *part.shape[-2:]), [value], lead)[0]
        for part, value in zip(parts, (x, y), strict=True)
    ]
    ahead = ahead[len(lead) :]
    groups = math.prod(ahead)
    first = o.draft.take((x.node,), tables[0], (groups, rows, inner))
    second = o.draft.take((y.node,), tables[1], (groups, inner, columns))
    node = o.draft.add("matmul", (first, second), (groups, rows, columns), groups=groups, inner=inner)
    return Value(o.draft.reshape(node, (*ahead, rows, columns)), lead)
