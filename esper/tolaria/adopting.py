"""A further blueprint for a batch of environments: between two steps, a structure and a state become others.

The blueprint comes behind those that there are, so theirs keep their numbers. Where it is the widest at a slot, the
slot's part of the arenas widens: a row then holds what it held, zeros, and the gate's numbers last, as before.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure, build_structure
from esper.leyline.config import ConfigError
from esper.leyline.learners import Holder, Learners, Weights, learners_of, parts
from esper.leyline.state import Snapshot, State, lock


class Widened(NamedTuple):
    """A structure with a state of it."""

    structure: Structure
    state: State


def adopt(structure: Structure, state: State, blueprint: Blueprint) -> Widened:
    """A structure with one blueprint more, and the state as it is of that structure.

    Args:
      structure: what the networks are.
      state: [E].
      blueprint: fits at least one slot.

    Returns:
      laws: every number of the state is in the new one, bit for bit, and the rest of its arenas is 0; whatever never
      plants the new blueprint goes on as it would have: on ``native`` to the bit, on others up to the rounding of the
      norm by which a seed's gradient is clipped, which they sum over the whole of a row.

    Raises:
      ConfigError: no slot takes it, or its name is taken.
    """
    old = structure
    names = [known.name for known in old.blueprints]
    if blueprint.name in names:
        raise ConfigError(f"blueprint {blueprint.name!r}: known already; expected another name than {', '.join(names)}")
    kinds = (*old.blueprints, blueprint)
    new = build_structure(old.config, old.host, kinds, old.objective, old.sizes.device, old.augment)
    if not any(len(names) in slot.offers for slot in new.slots):
        raise ConfigError(f"blueprint {blueprint.name!r}: {fits_nowhere(old)}")
    snapshot = Snapshot(**parts(_widened(old, new, state.snapshot)), batch_size=state.batch_size)
    wider = state.replace(**parts(_widened(old, new, state)), snapshot=snapshot)
    return Widened(new, lock(wider))


def fits_nowhere(structure: Structure) -> str:
    """What a message says of a blueprint that no slot takes."""
    pairs = zip(structure.slot_names, structure.slots, strict=True)
    sites = [f"{name} ({_site(slot)})" for name, slot in pairs]
    return f"fits no slot; expected one for {', '.join(dict.fromkeys(sites)) or 'a host with slots'}"


def _site(slot: Slot) -> str:
    reads, acts = (f"{site.kind} {'x'.join(map(str, site.shape))}" for site in (slot.reads, slot.acts))
    return f"{reads} to {acts}" if slot.is_bypass else reads


def _widened(old: Structure, new: Structure, held: Holder) -> Learners:
    found = learners_of(held)
    params, moments, steps = found.seeds
    seeds = Weights(_spread(old, new, params), _spread(old, new, moments), steps)
    return found._replace(seeds=seeds, seed_buffers=_spread_buffers(old, new, found.seed_buffers))


def _spread(old: Structure, new: Structure, rows: Tensor) -> Tensor:
    """Seeds' rows [E, ..., Q] as rows of the wider arena; a gate's numbers stay the last ones of its slot."""
    pieces = [rows[..., :0]]
    for before, after in zip(old.slots, new.slots, strict=True):
        own = rows[..., before.start : before.gate_columns.start]
        zeros = rows.new_zeros(*rows.shape[:-1], after.width - before.width)
        pieces += [own, zeros, rows[..., before.gate_columns]]
    return torch.cat(pieces, dim=-1)


def _spread_buffers(old: Structure, new: Structure, rows: Tensor) -> Tensor:
    """Seeds' buffers [E, R] as rows of the wider arena."""
    pieces = [rows[:, :0]]
    for before, after in zip(old.slots, new.slots, strict=True):
        zeros = rows.new_zeros(len(rows), after.buffer_width - before.buffer_width)
        pieces += [rows[:, before.buffer_columns], zeros]
    return torch.cat(pieces, dim=-1)
