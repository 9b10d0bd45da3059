"""What a host with slots computes: the stages in order, and at every slot the seeds that exist.

Shapes: lanes n (rows of the features; in training they are the environments), samples B.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.network import Network
from esper.kasmina.plan import SlotPlan


class SeedParams(NamedTuple):
    """Parameters of one slot's active seeds, in the order of its plan."""

    rows: Tensor  # [n, W]; a blueprint's numbers first, then zeros up to the widest one's length W
    gate: Tensor  # [g, G]


def split_groups(network: Network, slot: int, plan: SlotPlan, rows: Tensor) -> tuple[Tensor, ...]:
    """Per group of a slot's plan, the numbers of its blueprint: rows [n, W] -> [n_g, P_k] each, views."""
    chunks = rows.split([group.rows.shape[0] for group in plan.groups])
    layouts = [network.layouts[slot][group.blueprint] for group in plan.groups]
    return tuple(chunk[:, : layout.size] for chunk, layout in zip(chunks, layouts, strict=True) if layout)


def _rowwise(vector: Tensor, features: Tensor) -> Tensor:
    return vector.reshape(vector.shape + (1,) * (features.dim() - vector.dim()))


def blend(h: Tensor, s: Tensor, weight: Tensor, training: Tensor) -> Tensor:
    """Output of a slot from host features and seed features.

    Args:
      h: [n, B, ...]; the host's features.
      s: like h; the seed's.
      weight: [n, 1], [n, B] or [n, B, T]; alpha, times the gate if there is one.
      training: bool [n]; straight-through rows.

    Returns:
      like h. TRAINING: forward is h, bit for bit, whatever s is; the host's gradient is as if no seed were there,
      and the seed receives the full gradient. Otherwise lerp(h, s, weight).

    A silent row is lerp(h, h, 0) minus a zero that carries the seed's gradient. Both operands are selected *before*
    the lerp: selecting its result instead would leave a gradient of 0 * inf in a gate behind a non-finite seed.
    """
    silent = _rowwise(training, h)
    mixed = torch.where(silent, h.detach(), s)
    faded = torch.where(_rowwise(training, weight), 0.0, weight)
    echo = torch.where(silent & torch.isfinite(s), s.detach() - s, 0.0)
    return torch.lerp(h, mixed, _rowwise(faded, h)) - echo


def through_slot(network: Network, slot: int, plan: SlotPlan, seeds: SeedParams, alpha: Tensor, h: Tensor) -> Tensor:
    """Pass the features of one site through one slot.

    Args:
      network: units.
      slot: which slot.
      plan: its rows.
      seeds: their parameters.
      alpha: [n]; weight of each row of the plan.
      h: [L, B, ...]; features of all lanes.

    Returns:
      like h; rows outside the plan are returned bit for bit.
    """
    if not plan.groups:
        return h
    weight = alpha.unsqueeze(1)
    if plan.gated.shape[0]:
        weight = _gated(network, slot, plan, seeds.gate, alpha, h)
    unit = network.units.slots[slot]
    if unit is not None:
        return unit(plan, seeds.rows, weight, h)
    x = h.index_select(0, plan.lanes)
    out = blend(x, _grow(network, slot, plan, seeds.rows, _seen(plan.isolated, x)), weight, plan.training)
    return h.index_copy(0, plan.lanes, out)


def _seen(isolated: Tensor, x: Tensor) -> Tensor:
    """What seeds see of the features: in isolation, numbers without a gradient."""
    return torch.where(_rowwise(isolated, x), x.detach(), x)


def _gated(network: Network, slot: int, plan: SlotPlan, gate: Tensor, alpha: Tensor, h: Tensor) -> Tensor:
    """Weights [n, B] or [n, B, T]: alpha, times the opening of the gate where there is one."""
    x = h.index_select(0, plan.lanes.index_select(0, plan.gated))
    opening = network.units.gates[slot](gate, _seen(plan.isolated.index_select(0, plan.gated), x))
    full = _rowwise(alpha, opening).expand(-1, *opening.shape[1:])
    return full.index_copy(0, plan.gated, full.index_select(0, plan.gated) * opening)


def _grow(network: Network, slot: int, plan: SlotPlan, rows: Tensor, seen: Tensor) -> Tensor:
    """Features of the seeds, blueprint by blueprint."""
    units = network.units.seeds[slot]
    chunks = seen.split([group.rows.shape[0] for group in plan.groups])
    outputs = []
    for group, params, chunk in zip(plan.groups, split_groups(network, slot, plan, rows), chunks, strict=True):
        apply = units[group.blueprint]
        assert apply is not None, "the codec offers only blueprints that fit"
        outputs.append(apply(params, chunk))
    return torch.cat(outputs)


def train_forward(
    network: Network,
    plans: Sequence[SlotPlan],
    host: tuple[Sequence[Tensor], Sequence[Tensor]],
    seeds: Sequence[SeedParams],
    alphas: Sequence[Tensor],
    inputs: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Forward pass in training form.

    Args:
      network: structure.
      plans: per slot, its rows.
      host: per stage, flat parameters [E, P_i] and flat buffers [E, N_i].
      seeds: per slot, parameters.
      alphas: per slot, [n].
      inputs: [E, B, *input_shape].

    Returns:
      logits [E, B, C] and the new buffers per stage.
    """
    h, fresh = inputs, []
    for index, (params, buffers) in enumerate(zip(*host, strict=True)):
        h, new = network.units.train[index](params, buffers, h)
        fresh.append(new)
        for slot in network.slots_after(index):
            h = through_slot(network, slot, plans[slot], seeds[slot], alphas[slot], h)
    return h, tuple(fresh)
