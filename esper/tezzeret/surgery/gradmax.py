"""GradMax (Evci et al. 2022): new units that change nothing, read so that their gradient is as large as can be.

A new unit's own weights are 0. For readers v the gradient of these weights is M^T v, where M is the gradient at what
reads, times the features that the unit sees; of all orthonormal v the left singular vectors of M make it largest. M is
measured: one unit for each possible reader is tried at once, with readers that are unit vectors.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import grad

from esper.tezzeret.native.graph import Graph
from esper.tezzeret.surgery.anatomy import Anatomy, Impossible, Learned, name_of
from esper.tezzeret.surgery.edit import source_of
from esper.tezzeret.surgery.forward import Forward
from esper.tezzeret.surgery.layers import Layer
from esper.tezzeret.surgery.measure import losses
from esper.tezzeret.surgery.orders import Operand
from esper.tezzeret.surgery.resize import Reach, resized, widths

LARGEST = 1024
"""Readers that are tried at once."""

REST = 0.1
"""What silent units are lifted to where nothing passes at 0, as in relu; the readers' bias takes up what they give."""


def gradmax(
    case: Operand, found: Layer, reach: Reach, more: int, silent: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Learned]:
    """Numbers of new units.

    Args:
      case: what lies on the table.
      found: the layer.
      reach: where its units are.
      more: how many are new.
      silent: name -> [E, pre, m, post]; units that have no weights and that nothing reads.

    Returns:
      their numbers, and what networks have learned, with biases that take up what the units give at rest.

    Raises:
      Impossible: several tensors read the units, nothing can take up what they give, or no gradient passes.
    """
    if len(reach.readers) != 1:
        raise Impossible(f"gradmax: {len(reach.readers)} tensors read {found.name!r}; expected one")
    ((reader, units),) = reach.readers.items()
    tap = _middle(case.body, reader, units.post)
    taps = [tap] if tap is not None else list(range(units.post))
    count = units.pre * len(taps)
    if count > LARGEST:
        raise Impossible(f"gradmax: {count} numbers read each unit of {found.name!r}; expected {LARGEST} or fewer")
    for rest in (0.0, REST):
        lifted = _lifted(case.body, found, reach, silent, rest)
        gradients, still = _measure(case, found, reach, lifted, (taps, count))
        if bool((gradients.flatten(1).norm(dim=1) > 0).all()):
            break
    else:
        raise Impossible(f"gradmax: no gradient reaches {found.name!r}; expected an activation that passes some")
    return _chosen(case, reach, more, lifted, (gradients, still, taps))


def _chosen(
    case: Operand,
    reach: Reach,
    more: int,
    lifted: Mapping[str, Tensor],
    measured: tuple[Tensor, Tensor, list[int]],
) -> tuple[dict[str, Tensor], Learned]:
    """The readers that the measured gradients ask for, as long as old ones are on average."""
    gradients, still, taps = measured
    ((reader, units),) = reach.readers.items()
    left = torch.linalg.svd(gradients, full_matrices=False).U[..., :more]  # [E, readers, m]
    weight = case.learned.params[reader]
    parts = weight.reshape(len(weight), units.pre, reach.width, units.post)
    length = parts.square().sum((1, 3)).sqrt().mean(1)
    chosen = (left * length[:, None, None]).unflatten(1, (units.pre, len(taps))).transpose(2, 3)  # [E, pre, m, taps]
    read = weight.new_zeros(len(weight), units.pre, more, units.post)
    read[:, :, : chosen.shape[2], taps] = chosen
    learned = case.learned
    if bool((still != 0).any()):
        learned = _taken_up(case, reader, read.sum((2, 3)) * still[:, None])
    new = {name: value[:, :, :1].expand(-1, -1, more, -1) for name, value in lifted.items()}
    return new | {reader: read}, learned


def _taken_up(case: Operand, reader: str, given: Tensor) -> Learned:
    """Biases less what silent units give, [E, outputs]."""
    bias = _bias_of(case.body, reader)
    if bias is None or given.shape[1] != case.learned.params[bias][0].numel():
        raise Impossible(f"gradmax: no bias behind {reader!r} can take up what new units give at rest; expected one")
    old = case.learned.params[bias]
    return case.learned._replace(params={**case.learned.params, bias: old - given.reshape(old.shape)})


def _reading(graph: Graph, reader: str) -> int:
    """The node that computes with a weight."""
    nodes = dict(enumerate(graph.nodes))
    for number, node in nodes.items():
        if node.op in ("convolve", "linear"):
            weight = nodes[source_of(nodes, node.inputs[1])]
            if weight.op == "parameter" and name_of(weight) == reader:
                return number
    raise Impossible(f"gradmax: {reader!r} reads in another way; expected a linear layer or a convolution")


def _bias_of(body: Anatomy, reader: str) -> str | None:
    nodes = dict(enumerate(body.graph.nodes))
    node = nodes[_reading(body.graph, reader)]
    bias = nodes[source_of(nodes, node.inputs[2])] if len(node.inputs) > 2 else None
    return name_of(bias) if bias is not None and bias.op == "parameter" else None


def _middle(body: Anatomy, reader: str, post: int) -> int | None:
    """The middle of a kernel: elsewhere borders would see other numbers than the rest."""
    node = body.graph.nodes[_reading(body.graph, reader)]
    kernel = node.number("kernel", 1)
    return post // 2 if kernel > 1 and post == kernel**2 else None


def _lifted(body: Anatomy, found: Layer, reach: Reach, silent: Mapping[str, Tensor], rest: float) -> dict[str, Tensor]:
    """Silent units with the last shift before their activation at a value, and other shifts at 0."""
    nodes = dict(enumerate(body.graph.nodes))
    shifts, number = list[str](), found.end
    while True:
        node = nodes[number]
        places = node.inputs[2:3] if node.op != "affine_norm" else ()
        names = [nodes[source_of(nodes, place)] for place in places]
        shifts += [name_of(each) for each in names if each.op == "parameter"]
        if number == found.node:
            break
        number = node.inputs[0]
    own = [name for name in shifts if name in reach.makers]
    if rest and not own:
        raise Impossible(f"gradmax: {found.name!r} has no bias that lifts new units from 0; expected one")
    values = {name: torch.full_like(silent[name], rest if name == own[0] else 0.0) for name in own}
    return {name: value for name, value in silent.items() if name not in reach.readers} | values


def _measure(
    case: Operand, found: Layer, reach: Reach, lifted: Mapping[str, Tensor], readers: tuple[list[int], int]
) -> tuple[Tensor, Tensor]:
    """Gradients [E, readers, numbers of a unit] of one new unit for each reader, and what units give at rest [E]."""
    taps, count = readers
    ((reader, units),) = reach.readers.items()
    weight = case.learned.params[reader]
    basis = torch.eye(count).to(weight).unflatten(0, (units.pre, len(taps))).transpose(1, 2)  # [pre, readers, taps]
    read = weight.new_zeros(units.pre, count, units.post)
    read[:, :, taps] = basis
    new = {name: value[:, :, :1].expand(-1, -1, count, -1) for name, value in lifted.items()}
    body, _ = resized(case.body, found.name, reach, reach.width + count)
    kept = torch.arange(reach.width, device=weight.device).expand(len(weight), -1)
    quiet = widths(case.learned, reach, body, kept, new | {reader: read.new_zeros(len(weight), *read.shape)}, count)
    still = _at_rest(case, body, reader, reach, quiet)
    learned = widths(case.learned, reach, body, kept, new | {reader: read.expand(len(weight), *read.shape)}, count)
    if bool((still != 0).any()):
        shifted = _taken_up(case, reader, read.sum((1, 2)) * still[:, None])
        bias = _bias_of(case.body, reader)
        assert bias is not None
        learned = learned._replace(params={**learned.params, bias: shifted.params[bias]})
    own, forward = found.weight, Forward(body.graph)

    def total(value: Tensor) -> Tensor:
        computed = forward({**learned.params, own: value}, learned.buffers, case.inputs)
        return losses(computed.output, case.samples.targets).sum()

    slope = grad(total)(learned.params[own])
    makers = reach.makers[own]
    parts = slope.reshape(len(slope), makers.pre, reach.width + count, makers.post)[:, :, reach.width :]
    return parts.transpose(1, 2).flatten(2), still


def _at_rest(case: Operand, body: Anatomy, reader: str, reach: Reach, learned: Learned) -> Tensor:
    """What a new unit gives, [E]; the same for every sample and position."""
    number = _reading(body.graph, reader)
    node = body.graph.nodes[number]
    values = Forward(body.graph)(learned.params, learned.buffers, case.inputs).values[node.inputs[0]]
    axis = 2 if node.op == "convolve" else values.dim() - 1
    inner = reach.readers[reader].post // node.number("kernel", 1) ** 2
    outer = reach.readers[reader].pre // node.shape[0 if node.op == "convolve" else -1]
    new = values.movedim(axis, -1).unflatten(-1, (outer, -1, inner))[..., reach.width :, :].flatten(1)
    if not torch.allclose(new, new[:, :1].expand_as(new)):
        raise Impossible("gradmax: new units do not give the same everywhere; expected no norm over them")
    return new[:, 0]
