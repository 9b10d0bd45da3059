"""A plan and the numbers of its rows in few tensors: two for a group, where every field would have a symbolic size.

Compiled code reasons about each symbolic size on its own; a dozen tensors of one group would be a dozen sizes that must
then be found equal.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure
from esper.leyline.learners import Weights
from esper.tezzeret.learn import LearnerRows
from esper.tezzeret.plan import EvaluationPlan, Group, ObjectivePass, SlotRows
from esper.tezzeret.walk import PassInputs
from esper.utils.torch_private import mark_rows
from esper.utils.tree import leaves_of


class PackedSlot(NamedTuple):
    """A slot's rows."""

    groups: tuple[Tensor, ...]  # per blueprint that fits, int64 [n, 5 or more]: lanes, rows, training, isolated, gated
    lanes: Tensor  # int64 [L, 2 or 3]: index, present, and parents where lanes may fork


class PackedSeeds(NamedTuple):
    """A slot's rows with their numbers."""

    slot: PackedSlot  # the sixth column of groups: steps
    real: tuple[Tensor, ...]  # per group [n, W + M W + R + 1]: parameters, moments, buffers, alpha


class PackedObjective(NamedTuple):
    """An objective pass."""

    lanes: Tensor  # int64 [n, 4]: environments, picks, gated, alive
    slots: tuple[PackedSlot, ...]


class PackedLanes(NamedTuple):
    """An evaluation with its numbers."""

    blocks: tuple[Tensor, ...]  # per block [L, P_i + N_i]
    slots: tuple[PackedSlot, ...]
    real: tuple[tuple[Tensor, ...], ...]  # per slot and group [n, W + R + 1]: parameters, buffers, alpha


def mark(tree: Any) -> None:
    """Let dimension 0 of every tensor be symbolic."""
    for leaf in leaves_of(tree):
        mark_rows(leaf)


def _columns(fields: Sequence[Tensor]) -> Tensor:
    return torch.stack([field.long() for field in fields], dim=1)


def _groups(listed: SlotRows, rows: Tensor) -> tuple[Tensor, ...]:
    """LearnerRows by group, each in memory of its own: compiled code would be specialised on where a view begins."""
    return tuple(part.clone(memory_format=torch.contiguous_format) for part in rows.split(listed.sizes))


def pack_slot(listed: SlotRows, *more: Tensor) -> PackedSlot:
    """Pack a slot's rows, and further integers of them."""
    fields = (listed.lanes, listed.rows, listed.training, listed.isolated, listed.gated, *more)
    lanes = [listed.row_of, listed.present] + ([] if listed.parents is None else [listed.parents])
    return PackedSlot(_groups(listed, _columns(fields)), _columns(lanes))


def unpack_slot(slot: Slot, packed: PackedSlot) -> SlotRows:
    """The inverse of ``pack_slot``; further integers are left alone."""
    lanes, rows, training, isolated, gated = torch.cat(packed.groups).unbind(1)[:5]
    groups = tuple(Group(kind, part.shape[0]) for kind, part in zip(slot.offers, packed.groups, strict=True))
    index, present, *parents = packed.lanes.unbind(1)
    flags = (training != 0, isolated != 0, gated != 0)
    return SlotRows(groups, lanes, rows, *flags, index, present != 0, parents[0] if parents else None)


def pack_seeds(slots: Sequence[SlotRows], rows: LearnerRows, alphas: Sequence[Tensor]) -> tuple[PackedSeeds, ...]:
    """Pack what a training pass needs of its seeds."""
    packed = []
    for listed, seeds, held, alpha in zip(slots, rows.seeds, rows.seed_buffers, alphas, strict=True):
        real = torch.cat((seeds.params, seeds.moments.flatten(1), held, alpha.unsqueeze(1)), dim=1)
        packed.append(PackedSeeds(pack_slot(listed, seeds.steps), _groups(listed, real)))
    mark([(each.slot.groups, each.real) for each in packed])
    return tuple(packed)


class Unpacked(NamedTuple):
    """What ``pack_seeds`` packed, of one slot."""

    listed: SlotRows
    weights: Weights
    buffers: Tensor
    alpha: Tensor


def unpack_seeds(slot: Slot, packed: PackedSeeds, moments: int) -> Unpacked:
    """The inverse of ``pack_seeds``; ``moments`` M per parameter."""
    width, steps = slot.width, torch.cat(packed.slot.groups)[:, 5]
    parts = torch.cat(packed.real).split((width, moments * width, slot.buffer_width, 1), dim=1)
    weights = Weights(parts[0], parts[1].unflatten(1, (moments, width)), steps)
    return Unpacked(unpack_slot(slot, packed.slot), weights, parts[2], parts[3].squeeze(1))


def repack_seeds(packed: PackedSeeds, listed: SlotRows, weights: Weights, buffers: Tensor) -> PackedSeeds:
    """The same rows with other numbers."""
    whole, alpha = torch.cat(packed.slot.groups)[:, :5], torch.cat(packed.real)[:, -1:]
    whole = torch.cat((whole, weights.steps.unsqueeze(1)), dim=1)
    real = torch.cat((weights.params, weights.moments.flatten(1), buffers, alpha), dim=1)
    return PackedSeeds(packed.slot._replace(groups=_groups(listed, whole)), _groups(listed, real))


def pack_objective(passage: ObjectivePass | None) -> PackedObjective | None:
    """Pack an objective pass."""
    if passage is None:
        return None
    lanes = _columns((passage.envs, passage.picks, passage.gated, passage.alive))
    packed = PackedObjective(lanes, tuple(pack_slot(listed) for listed in passage.slots))
    mark(packed)
    return packed


def unpack_objective(slots: Sequence[Slot], packed: PackedObjective | None) -> ObjectivePass | None:
    """The inverse of ``pack_objective``."""
    if packed is None:
        return None
    envs, picks, gated, alive = packed.lanes.unbind(1)
    listed = tuple(unpack_slot(slot, each) for slot, each in zip(slots, packed.slots, strict=True))
    return ObjectivePass(envs, picks, gated != 0, alive != 0, listed)


def pack_lanes(tree: EvaluationPlan, numbers: PassInputs) -> PackedLanes:
    """Pack an evaluation. Before the first slot lanes are environments, whose number does not vary."""
    blocks = tuple(torch.cat(pair, dim=1).contiguous() for pair in zip(numbers.blocks, numbers.buffers, strict=True))
    real = []
    for listed, seeds, held, alpha in zip(tree.slots, numbers.seeds, numbers.seed_buffers, numbers.alphas, strict=True):
        real.append(_groups(listed, torch.cat((seeds, held, alpha.unsqueeze(1)), dim=1)))
    packed = PackedLanes(blocks, tuple(pack_slot(listed) for listed in tree.slots), tuple(real))
    forked = [block for block, envs in zip(blocks, tree.envs, strict=True) if envs is not None]
    mark((forked, packed.slots, packed.real))
    return packed


def unpack_lanes(structure: Structure, packed: PackedLanes) -> tuple[tuple[SlotRows, ...], PassInputs]:
    """The rows of the slots, and the numbers of all lanes."""
    sizes = [(block.reads.size, block.buffer_layout.size) for block in structure.host.blocks]
    blocks = [rows.split(pair, dim=1) for rows, pair in zip(packed.blocks, sizes, strict=True)]
    slots = tuple(unpack_slot(slot, each) for slot, each in zip(structure.slots, packed.slots, strict=True))
    real = [
        torch.cat(groups).split((slot.width, slot.buffer_width, 1), dim=1)
        for slot, groups in zip(structure.slots, packed.real, strict=True)
    ]
    seeds, held, alphas = zip(*real, strict=True) if real else ((), (), ())
    rows = tuple(pair[0] for pair in blocks), tuple(pair[1] for pair in blocks)
    return slots, PassInputs(*rows, seeds, held, tuple(alpha.squeeze(1) for alpha in alphas))
