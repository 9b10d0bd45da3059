"""What could be asked for: every operation at every place that it could mean. Trying them says which are legal."""

from collections.abc import Iterator

from esper.tezzeret.surgery.anatomy import Anatomy
from esper.tezzeret.surgery.layers import layers_of, width_of
from esper.tezzeret.surgery.operations import NOT_NEGATIVE
from esper.tezzeret.surgery.orders import (
    AddSkip,
    InsertLayer,
    ModifyLayer,
    Operation,
    RemoveLayer,
    Rewire,
)


def inserted(body: Anatomy, after: str, name: str = "") -> InsertLayer:
    """A new layer behind another; a relu comes with it where it changes nothing.

    Args:
      body: what the networks compute.
      after: the layer before it.
      name: of the new one; "" = one that is free.
    """
    end = body.graph.nodes[layers_of(body)[after].end]
    taken, number = {*body.params, *body.buffers}, 0
    while not name or any(each.startswith(f"{name}.") for each in taken):
        name, number = f"{after}.next{number or ''}", number + 1
    return InsertLayer(name, after, "relu" if end.op in NOT_NEGATIVE else "none")


def candidates(body: Anatomy) -> Iterator[Operation]:
    """What could be asked for, at every layer and between any two: as wide again and half as wide, the next kernels."""
    found = layers_of(body)
    for name, each in found.items():
        width, shape = width_of(body, each), body.params[each.weight].shape
        yield inserted(body, name)
        yield RemoveLayer(name)
        yield ModifyLayer(name, width=2 * width)
        yield ModifyLayer(name, width=max(1, width // 2))
        if len(shape) == 4:
            yield ModifyLayer(name, kernel=shape[-1] + 2)
        if len(shape) == 4 and shape[-1] > 2:
            yield ModifyLayer(name, kernel=shape[-1] - 2)
    for source in found:
        yield from (AddSkip(source, target, "zero") for target in found if target != source)
    for name, each in found.items():
        reads = body.graph.nodes[each.node].inputs[0]
        ends = {"input": 0} | {source: layer.end for source, layer in found.items() if source != name}
        yield from (Rewire(name, source) for source, end in ends.items() if end != reads)
