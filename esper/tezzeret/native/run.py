"""Running a whole network of programs, for every environment in one call.

Training takes each network's minibatches forward, through the cross-entropy, and backward, and steps its parameters,
while its features stay in the cache. Inference takes every network's samples through all its lanes, copies that differ
in which seeds take part.

Laws: a network's result depends on nothing but its own numbers and samples, to the bit; results and gradients equal
the definition's up to rounding.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.tezzeret.native.learning import Learning, learning_call
from esper.tezzeret.native.library import address, inner, library
from esper.tezzeret.native.programs import NetworkProgram


class RowIndex(NamedTuple):
    """Which rows of a slot belong to whom."""

    kinds: Tensor  # int64 [n]; which of the slot's programs each row runs
    rows: Tensor  # int64 [L]; row of each network or lane, -1 if it has no seed there
    gates: Tensor | None  # int64 [n]; row of ``gate_params`` of each seed, -1 without a gate; None if there are none


class SeedRows(NamedTuple):
    """The seeds of a slot, n rows.

    Attributes:
      rows: whose they are.
      alpha: [n]; weight of the seed's output.
      params: [m, W]; rows may be further apart than W.
      buffers: [m, R].
      owners: int64 [n]; row of ``params`` and ``buffers`` of each seed; None: its own number.
      gate_params: [m', G].
      training: bool [n] or None; seeds that the network does not see, while they learn.
      isolated: bool [n] or None; seeds that give no gradient to what they read.
      merged: bool [n] or None; seeds that take part where another learns its own objective.
    """

    rows: RowIndex
    alpha: Tensor
    params: Tensor
    buffers: Tensor
    owners: Tensor | None
    gate_params: Tensor
    training: Tensor | None = None
    isolated: Tensor | None = None
    merged: Tensor | None = None


class Lanes(NamedTuple):
    """Lanes by network; lane e < E is network e as it is.

    Attributes:
      first: int64 [E + 1]; where each network's lanes begin in ``lanes``.
      lanes: int64 [L]; lanes of a network in the order in which they fork.
      forks: int64 [L]; slot at which a lane leaves its parent, -1 for the first E.
      parents: int64 [L].
    """

    first: Tensor
    lanes: Tensor
    forks: Tensor
    parents: Tensor


class BatchIndex(NamedTuple):
    """Minibatches as places in a dataset, not copied.

    Attributes:
      dataset: [N, *input].
      rows: int64 [k, E, B]; which samples, of k minibatches one after the other; may be expanded.
    """

    dataset: Tensor
    rows: Tensor


class NetworkGradients(NamedTuple):
    """What training gives; of k minibatches all losses and hits, else what the last of them gave.

    Attributes:
      losses: [k, E, B]; nats, the mean over a sample's predictions.
      hits: [k, E, B]; the share of them whose largest logit is the target's.
      aux: [E, A]; per batch norm of the host the batch mean, then the unbiased variance.
      host: [E, P]; gradients of every network's mean loss.
      seeds: per slot [n, W].
      gates: per slot [g, G].
      seed_aux: per slot [n, A']; as ``aux``, of the seeds.
    """

    losses: Tensor
    hits: Tensor
    aux: Tensor
    host: Tensor
    seeds: tuple[Tensor, ...]
    gates: tuple[Tensor, ...]
    seed_aux: tuple[Tensor, ...]


def _structure(name: str, fields: str) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": [(field, ctypes.c_int64) for field in fields.split()]})


_Block = _structure("_Block", "program params buffers aux num_ties ties")
_Slot = _structure(
    "_Slot",
    "source programs kinds rows alpha params params_row buffers buffers_row owners gate gate_params gate_row gates "
    "training isolated merged grad_params grad_gates aux aux_row",
)
_Call = _structure(
    "_Call",
    "networks batch threads length points route blocks slots x x_network x_sample picks picks_network picks_sample "
    "host host_row buffers buffers_row "
    "targets targets_network targets_sample positions own losses hits aux aux_row grad_host first lanes forks parents "
    "logits steps picks_step targets_step learning",
)
"""``Block``, ``Slot`` and ``Call`` of ``kernels/network.h``, field by field."""


def _numbers(values: Sequence[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def _slots(network: NetworkProgram, seeds: Sequence[SeedRows], keep: list[Any]) -> Any:
    slots = []
    for programs, each in zip(network.slots, seeds, strict=True):
        handles = _numbers([program.handle if program else 0 for program in programs.kinds])
        keep.append(handles)
        slots.append(
            _Slot(
                *(programs.source, ctypes.addressof(handles), address(each.rows.kinds), address(each.rows.rows)),
                *(address(each.alpha), address(each.params), each.params.stride(0)),
                *(address(each.buffers), each.buffers.stride(0), address(each.owners)),
                *(programs.gate.handle if programs.gate else 0, address(each.gate_params), each.gate_params.stride(0)),
                *(address(each.rows.gates), address(each.training), address(each.isolated), address(each.merged)),
            )
        )
    return (_Slot * len(slots))(*slots)


def _blocks(network: NetworkProgram, keep: list[Any]) -> Any:
    blocks = []
    for each in network.blocks:
        ties = _numbers([number for tie in each.ties for number in tie])
        keep.append(ties)
        parts = (each.program.handle, each.params, each.buffers, each.aux)
        blocks.append(_Block(*parts, len(each.ties), ctypes.addressof(ties)))
    return (_Block * len(blocks))(*blocks)


def _inputs(x: Tensor | BatchIndex) -> tuple[int, ...]:
    """Batch size; and of inputs, then of picks: address and strides."""
    if isinstance(x, Tensor):
        return x.shape[1], address(x), x.stride(0), x.stride(1), 0, 0, 0
    assert x.dataset.is_contiguous()
    return x.rows.shape[2], address(x.dataset), 0, x.dataset.stride(0), address(x.rows), *x.rows.stride()[1:]


def _call(
    network: NetworkProgram, inputs: tuple[int, ...], host: Tensor, buffers: Tensor | None, seeds: Sequence[SeedRows]
) -> tuple[Any, Any]:
    """The arguments of one call, but for what it writes; and the slots among them."""
    route = _numbers(network.route)
    keep: list[Any] = []
    blocks, slots = _blocks(network, keep), _slots(network, seeds, keep)
    call = _Call(
        *(host.shape[0], inputs[0], torch.get_num_threads(), len(network.route), len(network.blocks) + 1),
        *(ctypes.addressof(route), ctypes.addressof(blocks), ctypes.addressof(slots), *inputs[1:]),
        *(address(host), host.shape[1], address(buffers), 0 if buffers is None else buffers.shape[1]),
    )
    call.keeps_alive = (route, blocks, keep)
    return call, slots


def train(
    network: NetworkProgram,
    x: Tensor | BatchIndex,
    targets: Tensor,
    host: Tensor,
    seeds: Sequence[SeedRows],
    own: Tensor | None = None,
    learning: Learning | None = None,
) -> NetworkGradients:
    """Minibatches of every network one after the other: losses and gradients, and what is learned from them.

    Args:
      network: E networks' structure.
      x: [E, B, *input] of one minibatch, or k of them from a contiguous dataset; float32, tokens too.
      targets: int64 [k, E, B], or [k, E, B, T] of a prediction at every position.
      host: [E, P]; contiguous, as the parameters of the seeds.
      seeds: per slot.
      own: [E]; the alpha as if at which seeds in TRAINING learn; None: they learn by the gradient of the slot's output.
      learning: the rows of ``host`` and ``seeds``, stepped in place after every minibatch; None: they stay.
    """
    found = library()
    targets = targets if targets.dim() == 3 or targets.stride(-1) == 1 else targets.contiguous()
    x = inner(x) if isinstance(x, Tensor) else x
    assert found is not None
    result = _results(network, targets, host, seeds)
    call, slots = _call(network, _inputs(x), host, None, seeds)
    for slot, grad, gate, aux in zip(slots, result.seeds, result.gates, result.seed_aux, strict=True):
        slot.grad_params, slot.params_row = address(grad), grad.shape[1]
        slot.grad_gates, slot.gate_row = address(gate), gate.shape[1]
        slot.aux, slot.aux_row = address(aux), aux.shape[1]
    call.steps, call.picks_step = targets.shape[0], 0 if isinstance(x, Tensor) else x.rows.stride(0)
    call.targets, call.positions = address(targets), targets.shape[3:].numel()
    call.targets_step, call.targets_network, call.targets_sample = targets.stride()[:3]
    call.losses, call.hits, call.aux = address(result.losses), address(result.hits), address(result.aux)
    call.aux_row, call.grad_host, call.own = network.num_aux, address(result.host), address(own)
    learns = learning and learning_call(learning, result.host, result.seeds, result.gates)
    call.learning = ctypes.addressof(learns) if learns else 0
    found.esper_train(ctypes.addressof(call))
    return result


def _results(network: NetworkProgram, targets: Tensor, host: Tensor, seeds: Sequence[SeedRows]) -> NetworkGradients:
    shape = targets.shape[:3]
    return NetworkGradients(
        losses=host.new_empty(shape),
        hits=host.new_empty(shape),
        aux=host.new_empty(shape[1], network.num_aux),
        host=torch.empty_like(host),
        seeds=tuple(torch.empty_like(each.params) for each in seeds),
        gates=tuple(torch.empty_like(each.gate_params) for each in seeds),
        seed_aux=tuple(
            host.new_zeros(each.params.shape[0], slot.num_aux) for slot, each in zip(network.slots, seeds, strict=True)
        ),
    )


def infer(
    network: NetworkProgram, x: Tensor, host: Tensor, buffers: Tensor, seeds: Sequence[SeedRows], lanes: Lanes
) -> Tensor:
    """Logits [L, B, C] of every lane; ``buffers`` [E, N], the rest as in ``train``, rows of ``seeds`` by lane."""
    found, x = library(), inner(x)
    assert found is not None and not network.num_aux, "batch statistics have no inference form"
    last = network.blocks[-1].program.code
    logits = x.new_empty(lanes.lanes.shape[0], x.shape[1], math.prod(last.registers[last.output]))
    call, _ = _call(network, _inputs(x), host, buffers, seeds)
    call.first, call.lanes, call.forks, call.parents = map(address, lanes)
    call.logits = address(logits)
    found.esper_infer(ctypes.addressof(call))
    return logits
