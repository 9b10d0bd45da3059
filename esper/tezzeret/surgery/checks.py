"""What must hold of a body and what its networks have learned, before an operation and behind it."""

import torch
from torch import Tensor
from torch.func import grad

from esper.tezzeret.native.graph import Graph
from esper.tezzeret.surgery.anatomy import Anatomy, Impossible, Learned, before, part
from esper.tezzeret.surgery.forward import Computed, Forward
from esper.tezzeret.surgery.measure import losses
from esper.tezzeret.surgery.orders import Operand

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""How far outputs may move, as a share of the largest, where an operation promises that they stay."""


def check_structure(body: Anatomy, learned: Learned) -> None:
    """Acyclic, connected, and every tensor there, in its shape and of one floating type.

    Raises:
      Impossible: the first thing that is wrong.
    """
    graph = body.graph
    for number, node in enumerate(graph.nodes):
        if any(source >= number or source < 0 for source in node.inputs):
            raise Impossible(f"structure: node {number}, {node.op}, reads one that is not before it; expected no cycle")
    used = before(graph, [graph.output, *graph.buffers])
    idle = [node.op for number, node in enumerate(graph.nodes) if number not in used]
    if idle:
        raise Impossible(f"structure: nothing reads {idle[0]}; expected a connected graph")
    if graph.nodes[0].op != "input" or 0 not in before(graph, [graph.output]):
        raise Impossible("structure: the output does not depend on the input")
    _check_tensors(graph, learned, body)


def _check_tensors(graph: Graph, learned: Learned, body: Anatomy) -> None:
    count, dtypes = len(learned.steps), {value.dtype for table in learned[:3] for value in table.values()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        raise Impossible(f"dtype: {sorted(map(str, dtypes))}; expected one floating type")
    for kind, nodes in (("params", body.params), ("moments", body.params), ("buffers", body.buffers)):
        table = getattr(learned, kind)
        if table.keys() != nodes.keys():
            odd = sorted(table.keys() ^ nodes.keys())
            raise Impossible(f"structure: {kind} and graph differ in {odd[0]!r}")
        for name, node in nodes.items():
            shape = tuple(table[name].shape)
            lead = 1 + (kind == "moments")
            if shape[0] != count or shape[lead:] != (node.shape or (1,)):
                raise Impossible(
                    f"shapes: {kind} {name!r} is {list(shape)}; expected {list(node.shape)} for {count} networks"
                )


def check_fake(body: Anatomy, learned: Learned) -> None:
    """A forward pass of one network and one made-up sample: every node gives what the graph says.

    Raises:
      Impossible: shapes that do not fit.
    """
    one = part(learned, torch.arange(1, device=learned.steps.device))
    like = next(iter(one.params.values()))
    x = like.new_zeros(1, 1, *body.input_shape, dtype=torch.int64 if body.takes_tokens else None)
    try:
        Forward(body.graph)(one.params, one.buffers, x)
    except RuntimeError as error:  # torch's word for shapes
        raise Impossible(f"shapes: {' '.join(str(error).split())[:200]}") from error


def check_outputs(body: Anatomy, learned: Learned, inputs: Tensor) -> Computed:
    """A forward pass of the samples: finite logits of the right shape.

    Raises:
      Impossible: other ones.
    """
    computed = Forward(body.graph)(learned.params, learned.buffers, inputs)
    wanted = (*inputs.shape[: 2 + body.takes_tokens], body.num_outputs)
    if tuple(computed.output.shape) != wanted:
        raise Impossible(f"outputs: {list(computed.output.shape)}; expected {list(wanted)}")
    if not bool(computed.output.isfinite().all()):
        raise Impossible("outputs: not finite")
    return computed


def check_gradients(body: Anatomy, learned: Learned, case: Operand) -> dict[str, Tensor]:
    """Gradients of the loss [E, *shape] of every trained tensor: there and finite.

    Raises:
      Impossible: the first that is not.
    """
    forward = Forward(body.graph)

    def total(params: dict[str, Tensor]) -> Tensor:
        return losses(forward(params, learned.buffers, case.inputs).output, case.samples.targets).sum()

    found = grad(total)(dict(learned.params))
    for name, value in found.items():
        if not bool(value.isfinite().all()):
            raise Impossible(f"gradients: that of {name!r} is not finite")
    return found


def check_kept(old: Tensor, new: Tensor, preserves: bool) -> float:
    """How far outputs moved, as a share of the largest.

    Raises:
      Impossible: they did where they must not.
    """
    moved = float((new - old).abs().max() / old.abs().max().clamp(min=1e-6))
    if preserves and not moved <= CLOSE.get(old.dtype, 1e-2):
        raise Impossible(f"outputs moved by {moved:.2g} of the largest; expected them to stay")
    return moved
