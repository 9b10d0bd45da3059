"""New units: how they begin, by name. Old numbers and their moments stay; moments of new ones are 0."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.layers import EPSILON, moments
from esper.tezzeret.native.graph import Graph
from esper.tezzeret.surgery.anatomy import Anatomy, Learned
from esper.tezzeret.surgery.forward import Forward
from esper.tezzeret.surgery.gradmax import gradmax
from esper.tezzeret.surgery.layers import Layer
from esper.tezzeret.surgery.orders import Operand
from esper.tezzeret.surgery.resize import Reach, widths
from esper.utils import rng

Computing = Callable[[Operand, Layer, Reach, Anatomy, int], Learned]
"""(what lies on the table, the layer, where its units are, the new body, how many more) -> what networks know then."""


class Start(NamedTuple):
    """A way to begin.

    Attributes:
      run: what does it.
      note: a line on it.
    """

    run: Computing
    note: str

    def preserves(self, body: Anatomy, reach: Reach) -> bool:
        """Whether outputs stay as they are: where nothing norms over units."""
        return not any(_joins(body.graph, number, reach) for number in reach.nodes)


def _joins(graph: Graph, number: int, reach: Reach) -> bool:
    """Whether a node lets units change each other."""
    node = graph.nodes[number]
    if node.op == "normalise":
        return reach.nodes[number].post % node.number("each") != 0
    return node.op == "group_norm"


def everyone(reach: Reach, count: int) -> Tensor:
    """All units there are, int64 [E, units]."""
    return torch.arange(reach.width).expand(count, -1)


def fresh(case: Operand, reach: Reach, more: int, is_zero: bool = False) -> dict[str, Tensor]:
    """Numbers of new units, name -> [E, pre, m, post].

    Weights are drawn uniformly within 1 / sqrt(numbers of a unit), or are 0; what has one number per unit, as norms,
    biases and statistics have, begins at the mean of the old; weights that read them are 0.
    """
    found = {}
    everything = {**case.learned.params, **case.learned.buffers}
    for index, (name, units) in enumerate(reach.tensors.items()):
        value = everything[name]
        parts = value.reshape(len(value), units.pre, reach.width, units.post)
        shape = (units.pre, more, units.post)
        fan = units.pre * units.post
        if fan == 1 and not units.reads:
            found[name] = parts.mean(2, keepdim=True).expand(-1, -1, more, -1)
        elif units.reads or is_zero:
            found[name] = value.new_zeros(len(value), *shape)
        else:
            bound = fan**-0.5
            found[name] = rng.uniform(rng.fold_in(case.key, index), shape, -bound, bound, value.dtype)
    return found


def zero(case: Operand, found: Layer, reach: Reach, body: Anatomy, more: int) -> Learned:
    """Units drawn anew, which nothing reads yet."""
    new = fresh(case, reach, more)
    return widths(case.learned, reach, body, everyone(reach, len(case.key)), new, more)


def net2net(case: Operand, found: Layer, reach: Reach, body: Anatomy, more: int) -> Learned:
    """Copies of units (Chen, Goodfellow & Shlens 2016), drawn so that none is copied twice before all are once.

    A unit and its copies share out what read it in uneven parts, whose sum is 1, so that they learn different things.
    """
    key = case.key
    order = torch.stack([rng.permutation(rng.fold_in(each, 0), reach.width) for each in key])
    origins = order[:, torch.arange(more) % reach.width]
    owners = torch.cat((everyone(reach, len(key)).to(origins.device), origins), dim=1)
    times = torch.zeros_like(order).scatter_add(1, owners, torch.ones_like(owners)).gather(1, owners)
    like = next(iter(case.learned.params.values()))
    shares = (1 + 0.5 * rng.uniform(rng.fold_in(key, 1), owners.shape[1:], -1.0, 1.0, like.dtype)) * (times > 1)
    totals = torch.zeros_like(order, dtype=like.dtype).scatter_add(1, owners, shares).gather(1, owners)
    shares = torch.where(times > 1, shares / totals.clamp(min=0.5), torch.ones_like(shares))
    learned = _shared(case.learned, reach, shares[:, : reach.width])
    new = {}
    for name, units in reach.tensors.items():
        value = case.learned.params.get(name, case.learned.buffers.get(name))
        assert value is not None
        parts = value.reshape(len(value), units.pre, reach.width, units.post)
        index = origins.reshape(len(origins), 1, -1, 1).expand(-1, units.pre, -1, units.post)
        copies = parts.gather(2, index)
        new[name] = copies * shares[:, None, reach.width :, None] if units.reads else copies
    return widths(learned, reach, body, everyone(reach, len(key)).to(origins.device), new, more)


def _shared(learned: Learned, reach: Reach, shares: Tensor) -> Learned:
    """What reads units reads a share of each; shares [E, units]."""
    params = dict(learned.params)
    for name, units in reach.readers.items():
        value = params[name]
        parts = value.reshape(len(value), units.pre, reach.width, units.post)
        params[name] = (parts * shares[:, None, :, None]).reshape(value.shape)
    return learned._replace(params=params)


def steepest(case: Operand, found: Layer, reach: Reach, body: Anatomy, more: int) -> Learned:
    """Silent units whose readers make the gradient as large as it can be; see ``gradmax``."""
    silent = fresh(case, reach, more, is_zero=True)
    new: Mapping[str, Tensor]
    new, learned = gradmax(case, found, reach, more, silent)
    return widths(learned, reach, body, everyone(reach, len(case.key)), new, more)


def undone(case: Operand, source: int, name: str) -> dict[str, Tensor]:
    """A batch norm that passes on what it sees: name -> [E, C].

    Its statistics are those of the samples, and weight and bias are their deviation and mean: in inference every input
    passes, in training these samples; other ones are off by what their batch's statistics differ.

    Args:
      case: what lies on the table.
      source: the node that it reads, in the old body; channels are the first axis.
      name: of the norm.
    """
    computed = Forward(case.body.graph)(case.learned.params, case.learned.buffers, case.inputs)
    x = computed.values[source]
    mean, variance = (each.flatten(1) for each in moments(x, (1, *range(3, x.dim()))))
    tensors = {"weight": (variance + EPSILON).sqrt(), "bias": mean, "mean": mean, "variance": variance}
    return {f"{name}.{each}": value for each, value in tensors.items()}


STARTS: dict[str, Start] = {
    "zero": Start(zero, "drawn anew; nothing reads them yet"),
    "net2net": Start(net2net, "copies of old units, which share out what read them"),
    "gradmax": Start(steepest, "silent, with readers that maximise the norm of their gradient"),
}
"""By name."""
