"""How units pass through each operation of a graph, forward and back; and what of an operation changes with their
number. ``RELATIONS`` says the first, ``CHANGES`` the second.
"""

from collections.abc import Callable

import torch

from esper.tezzeret.native.graph import Attribute, Node
from esper.tezzeret.surgery.takes import take, taken
from esper.tezzeret.surgery.units import Found, Relation, Tracing, Units, placed


def _same(found: Tracing, number: int, node: Node) -> Found:
    """What acts on every number."""
    yield from _alike(found, number, *node.inputs)


def _alike(found: Tracing, *numbers: int) -> Found:
    known = next((found.units[number] for number in numbers if number in found.units), None)
    if known is not None:
        yield from ((number, known) for number in numbers)


def _pair(found: Tracing, number: int, node: Node) -> Found:
    """``add`` and ``multiply``."""
    x, y = node.inputs
    few, size = found.node(y).size, node.size
    if few == size:
        yield from _alike(found, number, x, y)
        return
    yield from _alike(found, number, x)
    repeats = node.number("repeats", 1)
    each = size // (repeats * few)
    units = found.units.get(number) or found.units.get(x)
    if units is None and y in found.units:
        own = found.units[y]
        units = Units(own.pre * repeats, own.post * each, own.reads)
        yield from ((number, units), (x, units))
    elif units is not None and units.pre % repeats == 0 and units.post % each == 0:
        yield y, Units(units.pre // repeats, units.post // each, units.reads)
    elif units is not None and not _is_outside(found, units, few, repeats, each):
        raise found.refusal(f"meets numbers that repeat otherwise, {few} at {node.op}")


def _is_outside(found: Tracing, units: Units, few: int, repeats: int, each: int) -> bool:
    """Whether the fewer numbers of a pair are the same for all units."""
    return units.post % (few * each) == 0 or each % (found.count * units.post) == 0


def _over(found: Tracing, number: int, node: Node) -> Found:
    """``mean`` and ``largest``, which leave one number of each group."""
    each, (x,) = node.number("each"), node.inputs
    if number in found.units:
        own = found.units[number]
        yield x, own._replace(post=own.post * each)
    elif x in found.units:
        units = found.units[x]
        if units.post % each:
            raise found.refusal(f"is lost in a {node.op} over units")
        yield number, units._replace(post=units.post // each)


def _softmax(found: Tracing, number: int, node: Node) -> Found:
    for known in (number, *node.inputs):
        if known in found.units and found.units[known].post % node.number("each"):
            raise found.refusal("is lost in a softmax over units")
    yield from _same(found, number, node)


def _matmul(found: Tracing, number: int, node: Node) -> Found:
    x, y = node.inputs
    groups, inner = node.number("groups"), node.number("inner")
    rows, columns = found.node(x).size // (groups * inner), found.node(y).size // (groups * inner)
    shapes = {x: (groups, rows, inner), y: (groups, inner, columns), number: (groups, rows, columns)}
    axes = {x: (0, 1, 3), y: (0, 3, 2), number: (0, 1, 2)}  # of groups, rows, columns; 3: the inner one
    for known, shape in shapes.items():
        along = found.along(known, shape)
        if along is None:
            continue
        meaning = axes[known][along.axis]
        for other, own in axes.items():
            if meaning in own:
                place = own.index(meaning)
                yield other, placed(shapes[other], along._replace(axis=place))


def _linear(found: Tracing, number: int, node: Node) -> Found:
    x, weight, *biases = node.inputs
    inputs, outputs, last = found.node(x).shape[-1], node.shape[-1], len(node.shape) - 1
    shape, source = (outputs, inputs), found.node(x).shape
    along = found.along(x)
    if along is not None:
        if along.axis == last:
            yield weight, placed(shape, along._replace(axis=1), reads=True)
        else:
            yield number, placed(node.shape, along)
    along = found.along(number)
    if along is not None and along.axis < last:
        yield x, placed(source, along)
    along = found.along(weight, shape)
    if along is not None:
        yield (
            (number, placed(node.shape, along._replace(axis=last)))
            if along.axis == 0
            else (
                x,
                placed(source, along._replace(axis=last)),
            )
        )
    along = found.along(number)
    if along is not None and along.axis == last:
        yield weight, placed(shape, along._replace(axis=0))
        yield from ((bias, placed((outputs,), along._replace(axis=0))) for bias in biases)


def _convolve(found: Tracing, number: int, node: Node) -> Found:
    groups, kernel = node.number("groups", 1), node.number("kernel", 1)
    if groups > 1:
        yield from _depthwise(found, number, node)
        return
    x, weight, *biases = node.inputs
    shape = (node.shape[0], found.node(x).shape[0], kernel**2)
    into, out, own = found.along(x), found.along(number), found.along(weight, shape)
    for along, other in ((into, number), (out, x)):
        if along is not None and along.axis > 0:
            if kernel > 1:
                raise found.refusal("lies along the positions of a convolution")
            yield other, placed(found.node(other).shape, along)
    if into is not None and into.axis == 0:
        yield weight, placed(shape, into._replace(axis=1), reads=True)
    if out is not None and out.axis == 0:
        yield weight, placed(shape, out)
        yield from ((bias, placed((shape[0],), out)) for bias in biases)
    if own is not None and own.axis < 2:
        target = number if own.axis == 0 else x
        yield target, placed(found.node(target).shape, own._replace(axis=0))


def _depthwise(found: Tracing, number: int, node: Node) -> Found:
    """A convolution of every channel alone."""
    x, weight, *biases = node.inputs
    groups, shape = node.number("groups"), (node.shape[0], node.number("kernel", 1) ** 2)
    known = [along for along in (found.along(x), found.along(number)) if along is not None]
    channel = next(iter(known), found.along(weight, shape))
    if channel is None:
        return
    if channel.axis or not groups == shape[0] == found.node(x).shape[0]:
        raise found.refusal(f"reaches a convolution in {groups} groups; expected depthwise, or one group")
    yield from ((each, placed(found.node(each).shape, channel)) for each in (x, number))
    yield weight, placed(shape, channel)
    yield from ((bias, placed((shape[0],), channel)) for bias in biases)


def _embed(found: Tracing, number: int, node: Node) -> Found:
    tokens, table = node.inputs
    shape, count = found.node(table).shape, len(found.node(tokens).shape)
    along = found.along(table, shape)
    if along is not None and along.axis == 0:
        raise found.refusal("is that of the vocabulary")
    if along is not None:
        yield number, placed(node.shape, along._replace(axis=along.axis - 1 + count))
    along = found.along(number)
    if along is not None and along.axis >= count:
        yield table, placed(shape, along._replace(axis=along.axis - count + 1))
    elif along is not None:
        raise found.refusal("lies along the positions of tokens")


def _norm(found: Tracing, number: int, node: Node) -> Found:
    x, *rows = node.inputs
    yield from _alike(found, number, x)
    positions = node.size // node.shape[0]
    known = found.units.get(number)
    if known is None:
        row = next((found.units[row] for row in rows if row in found.units), None)
        known = None if row is None else Units(row.pre, row.post * positions)
        if known is not None:
            yield number, known
    if known is not None:
        if known.post % positions:
            raise found.refusal(f"lies along the positions of a {node.op}")
        yield from ((row, Units(known.pre, known.post // positions)) for row in rows)


def _statistic(found: Tracing, number: int, node: Node) -> Found:
    (norm,) = node.inputs
    positions = found.node(norm).size // node.size
    if norm in found.units:
        own = found.units[norm]
        yield number, Units(own.pre, own.post // positions)
    elif number in found.units:
        own = found.units[number]
        yield norm, Units(own.pre, own.post * positions)


def _pool(found: Tracing, number: int, node: Node) -> Found:
    (x,) = node.inputs
    for known, other in ((x, number), (number, x)):
        along = found.along(known)
        if along is not None:
            if along.axis:
                raise found.refusal("lies along the positions of a pool")
            yield other, placed(found.node(other).shape, along)


def _fade(found: Tracing, number: int, node: Node) -> Found:
    yield from _alike(found, number, *node.inputs[:2])


UNARY = (
    *("relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "softplus", "exp", "log", "sqrt", "reciprocal", "abs"),
    *("plus", "times"),
)
"""What acts on every number alone."""

RELATIONS: dict[str, Relation] = {
    **dict.fromkeys((*UNARY, "reshape", "normalise", "running"), _same),
    **dict.fromkeys(("add", "multiply"), _pair),
    **dict.fromkeys(("mean", "largest"), _over),
    "softmax": _softmax,
    "take": take,
    "matmul": _matmul,
    "linear": _linear,
    "convolve": _convolve,
    "embed": _embed,
    **dict.fromkeys(("group_norm", "batch_norm", "affine_norm"), _norm),
    **dict.fromkeys(("batch_mean", "batch_variance"), _statistic),
    "pool": _pool,
    "fade": _fade,
}
"""By operation; leaves have none."""

Change = Callable[[Tracing, int, Node, int], dict[str, Attribute]]
"""(what is known, a node's number, the node, the new number of units) -> attributes that change."""


def _group_size(found: Tracing, number: int, node: Node, count: int) -> dict[str, Attribute]:
    """``normalise`` over units is over all of them."""
    each = node.number("each")
    return {} if found.units[number].post % each == 0 else {"each": each // found.count * count}


def _repeats(found: Tracing, number: int, node: Node, count: int) -> dict[str, Attribute]:
    """Fewer numbers that all units share stand beside each of them."""
    (_, y), repeats = node.inputs, node.number("repeats", 1)
    few = found.node(y).size
    inside = number in found.units and y not in found.units and few < node.size
    is_shared = inside and found.units[number].post % (node.size // repeats) == 0
    return {"repeats": repeats // found.count * count} if is_shared else {}


def _grouped(found: Tracing, number: int, node: Node, count: int) -> dict[str, Attribute]:
    """Depthwise, each unit is a group."""
    groups = node.number("groups", 1)
    return {"groups": groups // found.count * count} if groups > 1 and number in found.units else {}


def _whole_groups(found: Tracing, number: int, node: Node, count: int) -> dict[str, Attribute]:
    groups, channels = node.number("groups"), node.shape[0]
    if channels // found.count * count % groups:
        raise found.refusal(f"would be {count}, which a group_norm in {groups} groups cannot part")
    return {}


def _products(found: Tracing, number: int, node: Node, count: int) -> dict[str, Attribute]:
    groups, inner = node.number("groups"), node.number("inner")
    along = found.along(node.inputs[0], (groups, found.node(node.inputs[0]).size // (groups * inner), inner))
    names = {0: "groups", 2: "inner"}
    if along is None or along.axis not in names:
        return {}
    name = names[along.axis]
    return {name: node.number(name) // found.count * count}


def _numbers(found: Tracing, number: int, node: Node, count: int) -> dict[str, Attribute]:
    """Constants that are the same for all units."""
    if number not in found.units:
        return {}
    units = found.units[number]
    values = torch.tensor(node.row("values"), dtype=torch.float64).reshape(units.pre, found.count, units.post)
    if bool((values != values[:, :1]).any()):
        raise found.refusal("meets constants that differ from unit to unit")
    return {"values": tuple(values[:, :1].expand(-1, count, -1).flatten().tolist())}


CHANGES: dict[str, Change] = {
    "normalise": _group_size,
    **dict.fromkeys(("add", "multiply"), _repeats),
    "convolve": _grouped,
    "group_norm": _whole_groups,
    "matmul": _products,
    "constant": _numbers,
    "take": taken,
}
"""By operation; what is not here has no attribute that depends on the number of units."""
