"""What each operation does to a body; ``OPERATIONS`` is the one table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.tezzeret.surgery.anatomy import Anatomy, Impossible, users_of
from esper.tezzeret.surgery.edit import Edit, expect, eye, fitted, source_of
from esper.tezzeret.surgery.layers import Layer, layer, unnamed
from esper.tezzeret.surgery.orders import (
    AddSkip,
    Altered,
    InsertLayer,
    ModifyLayer,
    Operand,
    RemoveFossil,
    RemoveLayer,
    Rewire,
)
from esper.tezzeret.surgery.projection import brought, projected
from esper.tezzeret.surgery.sizes import modify
from esper.tezzeret.surgery.starts import undone

ACTIVATIONS = ("relu", "none")
NORMS = ("same", "batch", "none")
NOT_NEGATIVE = ("relu", "sigmoid", "softplus", "exp", "abs")
"""Operations behind which relu changes nothing."""


def insert(case: Operand, op: InsertLayer) -> Altered:
    """``InsertLayer``."""
    where, edit = layer(case.body, op.after), Edit(case.body)
    unnamed(case.body, op.name)
    before = edit.nodes[where.end]
    expect(op.activation in ACTIVATIONS, f"activation {op.activation!r}; expected {' or '.join(ACTIVATIONS)}")
    expect(op.kernel % 2 == 1 and op.kernel > 0, f"kernel {op.kernel}; expected an odd one")
    if op.activation == "relu" and before.op not in NOT_NEGATIVE:
        raise Impossible(f"relu behind {op.after!r} would cut what is negative; expected activation 'none'")
    is_sequence = len(before.shape) == 2
    channels, side = before.shape[-1 if is_sequence else 0], op.kernel if len(before.shape) == 3 else 1
    weight = eye(channels, channels, side)
    weight = weight if len(before.shape) == 3 else weight[..., 0, 0]
    numbers = {f"{op.name}.weight": weight}
    has_norm = _has_norm(case.body, where, op)
    bias = None if has_norm else edit.parameter(f"{op.name}.bias", (channels,))
    given = edit.parameter(f"{op.name}.weight", tuple(weight.shape)), bias
    new = edit.linear(where.end, *given) if is_sequence else edit.convolve(where.end, *given, side)
    if has_norm:
        new = edit.batch_norm(new, f"{op.name}.norm")
        numbers |= undone(case, where.end, f"{op.name}.norm")
    else:
        numbers[f"{op.name}.bias"] = torch.zeros(channels)
    new = edit.add("relu", (new,), before.shape) if op.activation == "relu" else new
    edit.redirect(where.end, new)
    body = edit.done()
    return Altered(body, fitted(case.learned, body, numbers), True)


def _has_norm(body: Anatomy, where: Layer, op: InsertLayer) -> bool:
    """Whether a new layer gets a batch norm."""
    expect(op.norm in NORMS, f"norm {op.norm!r}; expected {' or '.join(NORMS)}")
    is_sequence, number, found = len(body.graph.nodes[where.end].shape) == 2, where.end, False
    if op.norm == "batch" and is_sequence:
        raise Impossible(f"a batch norm behind {op.after!r}, which gives a sequence; expected maps or vectors")
    while op.norm == "same" and number != where.node and not found:
        node = body.graph.nodes[number]
        number, found = node.inputs[0], node.op == "batch_norm"
    return found or op.norm == "batch"


def remove(case: Operand, op: RemoveLayer) -> Altered:
    """``RemoveLayer``."""
    found, edit = layer(case.body, op.name), Edit(case.body)
    read, gives = edit.nodes[found.node].inputs[0], edit.nodes[found.end]
    expect(edit.nodes[found.node].op != "embed", f"{op.name!r} embeds tokens; expected a layer of features")
    around = _around(case.body, found)
    new: dict[str, Tensor] = {}
    if around is not None:
        edit.redirect(around, read)
    elif edit.nodes[read].shape == gives.shape:
        edit.redirect(found.end, read)
    else:
        name, value = f"{op.name}.bridge", _middle(case, found)
        unnamed(case.body, name)
        weight = edit.parameter(name, tuple(value.shape[1:]))
        edit.redirect(found.end, edit.convolve(read, weight, None))
        new[name] = value
    body = edit.done()
    lost = sorted({*case.body.params} - {*body.params})
    own = {found.weight, found.bias}
    beyond = [name for name in lost if name not in own and not _is_norm(case.body, found, name)]
    expect(
        not beyond, f"without {op.name!r} nothing would read {beyond[:1]}; expected a layer whose input stays in use"
    )
    return Altered(body, fitted(case.learned, body, new), False)


def _around(body: Anatomy, found: Layer) -> int | None:
    """The sum of what a layer reads and gives, if that is all that becomes of it."""
    nodes, users = dict(enumerate(body.graph.nodes)), users_of(body.graph)
    number = found.end
    while len(users[number]) == 1 and nodes[users[number][0]].op == "reshape":
        (number,) = users[number]
    if len(users[number]) != 1 or nodes[users[number][0]].op != "add":
        return None
    (total,) = users[number]
    others = [source_of(nodes, source) for source in nodes[total].inputs if source != number]
    read = source_of(nodes, nodes[found.node].inputs[0])
    return total if others == [read] and nodes[total].shape == nodes[nodes[found.node].inputs[0]].shape else None


def _middle(case: Operand, found: Layer) -> Tensor:
    """The middle of a kernel [E, out, in, 1, 1], which is smaller than the whole."""
    weight, node = case.learned.params[found.weight], case.body.graph.nodes[found.node]
    is_kernel = node.op == "convolve" and weight.dim() == 5 and node.number("kernel", 1) == weight.shape[-1] > 1
    if not is_kernel or node.number("groups", 1) > 1 or case.body.graph.nodes[found.end].shape != node.shape:
        raise Impossible(
            f"a bridge for {found.name!r} would be as large as it; expected as many channels before as behind"
        )
    side = weight.shape[-1] // 2
    return weight[..., side : side + 1, side : side + 1]


def _is_norm(body: Anatomy, found: Layer, name: str) -> bool:
    """Whether a tensor belongs to the norm behind a layer."""
    nodes, number = body.graph.nodes, found.end
    while number != found.node:
        inputs = [source_of(dict(enumerate(nodes)), source) for source in nodes[number].inputs[1:]]
        if any(dict(nodes[each].attributes).get("name") == name for each in inputs):
            return True
        number = nodes[number].inputs[0]
    return False


def skip(case: Operand, op: AddSkip) -> Altered:
    """``AddSkip``."""
    source, target, edit = layer(case.body, op.source), layer(case.body, op.target), Edit(case.body)
    expect(op.start in ("identity", "zero"), f"start {op.start!r}; expected 'identity' or 'zero'")
    expect(op.source != op.target, f"a way around from {op.source!r} to itself; expected two layers")
    shape, new = edit.nodes[target.end].shape, dict[str, Tensor]()
    carried = brought(edit, source.end, shape, f"from {op.source!r} to {op.target!r}")
    if op.start == "zero" or edit.nodes[carried].shape != shape:
        name = f"{op.target}.skip"
        unnamed(case.body, name)
        carried, value = projected(edit, carried, shape, name)
        new[f"{name}.weight"] = value * (op.start == "identity")
    total = edit.add("add", (target.end, carried), shape)
    edit.redirect(target.end, total)
    body = edit.done()
    return Altered(body, fitted(case.learned, body, new), op.start == "zero")


def rewire(case: Operand, op: Rewire) -> Altered:
    """``Rewire``."""
    found, edit = layer(case.body, op.name), Edit(case.body)
    source = 0 if op.source == "input" else layer(case.body, op.source).end
    old, shape = edit.nodes[found.node].inputs[0], edit.nodes[source].shape
    wanted = edit.nodes[old].shape
    expect(
        shape == wanted or (edit.nodes[old].op == "reshape" and edit.nodes[source].size == edit.nodes[old].size),
        f"{op.source!r} gives {list(shape)}, {op.name!r} reads {list(wanted)}; expected the same",
    )
    source = source if shape == wanted else edit.add("reshape", (source,), wanted)
    node = edit.nodes[found.node]
    edit.nodes[found.node] = node._replace(inputs=(source, *node.inputs[1:]))
    body = edit.done()
    lost = sorted({*case.body.params} - {*body.params})
    expect(not lost, f"nothing would read {lost[:1]} any more; expected all layers to stay connected")
    return Altered(body, fitted(case.learned, body, {}), False)


def fossil(case: Operand, op: RemoveFossil) -> Altered:
    """``RemoveFossil``."""
    raise Impossible(
        f"slot {op.slot}: a fossil lies in a state, not in a host; expected esper.tolaria.operating.excise"
    )


class Kind(NamedTuple):
    """What there is to say of an operation.

    Attributes:
      run: what it does.
      name: for people.
      flag: the capability that it needs.
      added, removed: layers.
    """

    run: Callable[[Operand, Any], Altered]
    name: str
    flag: str
    added: int = 0
    removed: int = 0


OPERATIONS: dict[type, Kind] = {
    InsertLayer: Kind(insert, "insert_layer", "topology", added=1),
    RemoveLayer: Kind(remove, "remove_layer", "topology", removed=1),
    ModifyLayer: Kind(modify, "modify_layer", "widths"),
    AddSkip: Kind(skip, "add_skip", "topology"),
    Rewire: Kind(rewire, "rewire", "topology"),
    RemoveFossil: Kind(fossil, "remove_fossil", "topology", removed=1),
}
"""All operations."""
