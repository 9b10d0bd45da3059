"""The arenas: flat rows of parameters, and reading and writing the parts that belong to blocks and seeds.

Per environment one row of host parameters [E, P] (blocks side by side) and one of seed parameters [E, Q] (slots side
by side; within a slot the blueprint's numbers first, the gate's last, zeros between). Buffers likewise. Germinate, cull
and roll back are row writes.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.kasmina.host import Host
from esper.kasmina.layout import Layout
from esper.kasmina.slot_table import SlotTable
from esper.kasmina.sowing import FreshRows, draw_rows, list_rows
from esper.kasmina.structure import Structure
from esper.leyline.learners import Learners, Weights
from esper.leyline.stages import Stage
from esper.leyline.streams import Stream
from esper.utils import rng
from esper.utils.upload import upload


def split_blocks(host: Host, flat: Tensor) -> tuple[Tensor, ...]:
    """Host rows [E, P] -> per block the row it reads [E, P_i]: a view of its own numbers, then what is tied to it.

    Differentiable: the gradient with respect to ``flat`` sums over all uses of a tied tensor.
    """
    blocks = host.blocks
    own = flat.split([block.layout.size for block in blocks], dim=-1)
    tied = [[own[tie.block][:, blocks[tie.block].layout.columns(tie.param.name)] for tie in b.ties] for b in blocks]
    return tuple(torch.cat((row, *more), dim=-1) if more else row for row, more in zip(own, tied, strict=True))


def split_buffers(host: Host, flat: Tensor) -> tuple[Tensor, ...]:
    """Buffer rows [E, N] -> per block [E, N_i], views."""
    return flat.split([block.buffer_layout.size for block in host.blocks], dim=-1)


def init_host(host: Host, key: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Fresh hosts.

    Args:
      host: its blocks.
      key: int64 [E, 2]; one per environment.
      dtype: floating type.

    Returns:
      parameters [E, P] and buffers [E, N]. Block i draws from ``fold_in(key, HOST, i)``.
    """
    blocks = host.blocks
    params = [b.layout.init(rng.fold_in(key, int(Stream.HOST), i), dtype) for i, b in enumerate(blocks)]
    buffers = [b.buffer_layout.init(key, dtype) for b in blocks]
    return torch.cat(params, dim=1), torch.cat(buffers, dim=1)


class FreshSeeds(NamedTuple):
    """The n seeds that have just germinated; arrays of the host, or tensors of the device.

    Attributes:
      envs, slots: int64 [n]; where they are.
      params, buffers: what is drawn for them.
    """

    envs: Any
    slots: Any
    params: FreshRows
    buffers: FreshRows


def list_seeds(structure: Structure, table: SlotTable) -> FreshSeeds | None:
    """The seeds in GERMINATED, slot by slot (they leave that stage within the step); None where there is none."""
    fresh = table.within((Stage.GERMINATED,))
    if not fresh.any():
        return None
    slots, envs = (np.ascontiguousarray(each) for each in fresh.T.nonzero())
    groups = slots * len(structure.blueprints) + table.blueprint[envs, slots]
    kinds = structure.param_kinds, structure.buffer_kinds
    return FreshSeeds(envs, slots, *(list_rows(each, envs, groups) for each in kinds))


def init_seeds(structure: Structure, table: SlotTable, learners: Learners, key: Tensor, epoch: Tensor) -> Learners:
    """List the seeds that have just germinated and ``write_seeds`` of them; ``table``: of all environments."""
    return write_seeds(structure, learners, key, epoch, upload(list_seeds(structure, table), key.device))


def write_seeds(
    structure: Structure, learners: Learners, key: Tensor, epoch: Tensor, fresh: FreshSeeds | None
) -> Learners:
    """Write fresh parameters into the rows of seeds that have just germinated.

    Args:
      structure: layouts.
      learners: [E].
      key: int64 [E, 2]; the environments' keys.
      epoch: int64 [E].
      fresh: ``list_seeds``, on the device already; None where there is none.

    Returns:
      the learners with those parts of the arenas drawn anew and their moments and steps 0. A seed's numbers depend on
      its environment's key, the epoch and the slot only.
    """
    if fresh is None:
        return learners
    (env, slot, own, held), kinds = fresh, (structure.param_kinds, structure.buffer_kinds)
    keys = rng.fold_in(key[env], int(Stream.SOW), epoch[env], slot)
    (params, moments, steps), buffers = learners.seeds, learners.seed_buffers
    drawn, kept = (draw_rows(each, rows, keys, params.dtype) for each, rows in zip(kinds, (own, held), strict=True))
    each_moment = own.envs.unsqueeze(1), torch.arange(moments.shape[1], device=env.device), own.columns.unsqueeze(1)
    seeds = Weights(
        params.index_put((own.envs, own.columns), drawn),
        moments.index_put(each_moment, moments.new_zeros(())),
        steps.index_put((env, slot), steps.new_zeros(())),
    )
    return learners._replace(seeds=seeds, seed_buffers=buffers.index_put((held.envs, held.columns), kept))


def tensor_norms(layout: Layout, flat: Tensor) -> Tensor:
    """L2 norm of every named tensor of flat rows: [n, size] -> [n, number of tensors]."""
    pieces = flat.split([param.size for param in layout.params], dim=1)
    return torch.stack([torch.linalg.vector_norm(piece, dim=1) for piece in pieces], dim=1)
