"""Another width or another kernel of a layer."""

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.tezzeret.surgery.anatomy import Anatomy, Impossible, Learned, with_attributes
from esper.tezzeret.surgery.edit import Edit, expect
from esper.tezzeret.surgery.layers import Layer, layer
from esper.tezzeret.surgery.orders import Altered, ModifyLayer, Operand
from esper.tezzeret.surgery.resize import Reach, reach_of, resized, widths
from esper.tezzeret.surgery.starts import STARTS


def modify(case: Operand, op: ModifyLayer) -> Altered:
    """``ModifyLayer``."""
    expect((op.width is None) != (op.kernel is None), f"width {op.width}, kernel {op.kernel}; expected one of the two")
    return _rewidth(case, op, op.width) if op.width is not None else _rekernel(case, op, op.kernel or 0)


def _rewidth(case: Operand, op: ModifyLayer, width: int) -> Altered:
    found = layer(case.body, op.name)
    reach = reach_of(case.body.graph, op.name, found.node)
    expect(width > 0 and width != reach.width, f"width {width} of {op.name!r}; expected another than {reach.width}")
    expect(op.start in STARTS, f"start {op.start!r}; expected {' or '.join(STARTS)}")
    body, _ = resized(case.body, op.name, reach, width)
    if width < reach.width:
        kept = weighty(case.learned, reach).topk(width, dim=1).indices.sort(dim=1).values
        return Altered(body, widths(case.learned, reach, body, kept, {}, 0), False)
    start = STARTS[op.start]
    return Altered(body, start.run(case, found, reach, body, width - reach.width), start.preserves(case.body, reach))


def weighty(learned: Learned, reach: Reach) -> Tensor:
    """What units weigh [E, units]: the norm of the trained numbers that make each, times that of those that read it."""
    products = []
    for tensors in (reach.makers, reach.readers):
        total = torch.zeros(())
        for name, units in tensors.items():
            if name in learned.params:
                value = learned.params[name]
                parts = value.reshape(len(value), units.pre, reach.width, units.post)
                total = total.to(value) + parts.square().sum((1, 3))
        products.append(total)
    return products[0] * products[1]


def _rekernel(case: Operand, op: ModifyLayer, kernel: int) -> Altered:
    """Zeros around the old kernel, or its middle."""
    found = layer(case.body, op.name)
    node, weight = case.body.graph.nodes[found.node], case.body.params[found.weight]
    if node.op != "convolve" or len(node.shape) != 3 or weight.shape[2:] != (node.number("kernel", 1),) * 2:
        raise Impossible(f"{op.name!r} has no kernel that can change; expected a convolution of stride 1")
    old = weight.shape[-1]
    expect(kernel % 2 == 1 and kernel != old, f"kernel {kernel} of {op.name!r}; expected an odd one other than {old}")
    more = (kernel - old) // 2

    def padded(value: Tensor) -> Tensor:
        return F.pad(value, (more,) * 4)  # fewer than none: cut

    tables = [dict(table) for table in case.learned[:2]]
    for table in tables:
        table[found.weight] = padded(table[found.weight])
    body = _with_kernel(case.body, found, kernel)
    return Altered(body, case.learned._replace(params=tables[0], moments=tables[1]), more > 0)


def _with_kernel(body: Anatomy, found: Layer, kernel: int) -> Anatomy:
    edit = Edit(body)
    for number, node in edit.nodes.items():
        if node.op == "parameter" and dict(node.attributes)["name"] == found.weight:
            edit.nodes[number] = node._replace(shape=(*node.shape[:2], kernel, kernel))
    edit.nodes[found.node] = with_attributes(edit.nodes[found.node], kernel=kernel)
    return edit.done()
