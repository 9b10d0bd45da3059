"""The arenas: flat rows of parameters, and reading and writing the parts that belong to stages and seeds.

Per environment one row of host parameters [E, P] (stages side by side) and one of seed parameters [E, Q] (slots side
by side; within a slot the blueprint's numbers first, the gate's last). Germinate, cull and roll back are row writes.

Between a blueprint's numbers and the gate lies padding up to the length of the slot's widest blueprint. It is 0 while a
seed is there: sowing writes 0, its gradient is 0, and no optimizer moves a 0 whose gradient and moments are 0 (Adam's
epsilon must not be 0). So a slot's seeds train as rows of one length, that of the widest of them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from esper.kasmina.forward import SeedParams
from esper.kasmina.layout import Layout
from esper.kasmina.network import Network
from esper.kasmina.plan import Plan, SlotPlan
from esper.leyline.state import Bank, State
from esper.leyline.streams import Stream
from esper.utils import rng


def split_stages(network: Network, flat: Tensor) -> tuple[Tensor, ...]:
    """Host rows [E, P] -> per stage the row it reads [E, P_i]: a view of its own numbers, then what is tied to it.

    Differentiable: the gradient with respect to ``flat`` sums over all uses of a tied tensor.
    """
    stages = network.host.stages
    own = flat.split([stage.layout.size for stage in stages], dim=-1)
    tied = [[own[tie.stage][:, stages[tie.stage].layout.columns(tie.param.name)] for tie in s.ties] for s in stages]
    return tuple(torch.cat((row, *more), dim=-1) if more else row for row, more in zip(own, tied, strict=True))


def split_buffers(network: Network, flat: Tensor) -> tuple[Tensor, ...]:
    """Buffer rows [E, N] -> per stage [E, N_i], views."""
    return flat.split([stage.buffer_layout.size for stage in network.host.stages], dim=-1)


def blueprint_columns(network: Network, slot: int, blueprint: int) -> slice:
    """Columns of the seed arena that a blueprint uses in a slot."""
    layout = network.layouts[slot][blueprint]
    assert layout is not None, "the codec offers only blueprints that fit"
    return slice(network.offsets[slot], network.offsets[slot] + layout.size)


def seed_columns(network: Network, slot: int, plan: SlotPlan) -> slice:
    """Columns of the seed arena that hold the seeds of a slot's plan: as many as the widest of them needs."""
    layouts = (network.layouts[slot][group.blueprint] for group in plan.groups)
    width = max((layout.size for layout in layouts if layout), default=0)
    return slice(network.offsets[slot], network.offsets[slot] + width)


def gate_columns(network: Network, slot: int) -> slice:
    """Columns of the seed arena that a slot's gate uses."""
    start = network.gate_offset(slot)
    return slice(start, start + network.gates[slot].size)


def slot_columns(network: Network, slot: int) -> slice:
    """All columns of the seed arena that belong to a slot."""
    return slice(network.offsets[slot], network.offsets[slot] + network.widths[slot])


def slot_params(network: Network, arena: Tensor, slot: int, plan: SlotPlan) -> SeedParams:
    """Gather the parameters of one slot's plan from the arena [E, Q]."""
    rows, gates = arena[:, seed_columns(network, slot, plan)], arena[:, gate_columns(network, slot)]
    return SeedParams(rows.index_select(0, plan.envs), gates.index_select(0, plan.gate_rows))


def init_host(network: Network, key: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Fresh hosts.

    Args:
      network: the host.
      key: int64 [E, 2]; one per environment.
      dtype: floating type.

    Returns:
      parameters [E, P] and buffers [E, N]. Stage i draws from ``fold_in(key, HOST, i)``.
    """
    stages = network.host.stages
    params = [s.layout.init(rng.fold_in(key, int(Stream.HOST), i), dtype) for i, s in enumerate(stages)]
    buffers = [s.buffer_layout.init(key, dtype) for s in stages]
    return torch.cat(params, dim=1), torch.cat(buffers, dim=1)


def sow(network: Network, state: State, plan: Plan) -> State:
    """Write fresh parameters into the rows of seeds that have just germinated.

    Args:
      network: layouts.
      state: [E]; slots in GERMINATED are fresh (they leave that stage within the step).
      plan: made from the same slots.

    Returns:
      the state with those parts of the arena drawn anew and their moments and steps 0. A seed's numbers depend on
      its environment's key, the epoch and the slot only.
    """
    if not any(plan.fresh):
        return state
    params, moments, steps = state.seeds.params.clone(), state.seeds.moments.clone(), state.seeds.steps.clone()
    for slot, groups in enumerate(plan.fresh):
        columns = slot_columns(network, slot)
        for group in groups:
            key = rng.fold_in(state.key[group.rows], int(Stream.SOW), state.epoch[group.rows], slot)
            params[group.rows, columns] = _fresh_row(network, slot, group.blueprint, key, params.dtype)
            moments[group.rows, :, columns] = 0
            steps[group.rows, slot] = 0
    return state.replace(seeds=Bank(params=params, moments=moments, steps=steps, batch_size=state.batch_size))


def _fresh_row(network: Network, slot: int, blueprint: int, key: Tensor, dtype: torch.dtype) -> Tensor:
    layout, gate = network.layouts[slot][blueprint], network.gates[slot]
    assert layout is not None, "the codec offers only blueprints that fit"
    padding = network.widths[slot] - layout.size - gate.size
    return torch.cat(
        (
            layout.init(key, dtype),
            key.new_zeros((key.shape[0], padding), dtype=dtype),
            gate.init(rng.fold_in(key, int(Stream.GATE)), dtype),
        ),
        dim=1,
    )


def slot_of_column(network: Network, device: torch.device) -> Tensor:
    """int64 [Q]: the slot each column of the seed arena belongs to."""
    slots = [slot for slot, width in enumerate(network.widths) for _ in range(width)]
    return torch.tensor(slots, dtype=torch.int64, device=device)


def tensor_norms(layout: Layout, flat: Tensor) -> Tensor:
    """L2 norm of every named tensor of flat rows: [n, size] -> [n, number of tensors]."""
    pieces: Iterable[Tensor] = flat.split([param.size for param in layout.params], dim=1)
    return torch.stack([torch.linalg.vector_norm(piece, dim=1) for piece in pieces], dim=1)
