"""Seeding: states that hold given seeds, for measuring and checking. Training grows its own, by ``engine.step``.

A state is a value, so whatever starts from it does the same work every time, whatever the clock would do next.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.arena import init_seeds
from esper.kasmina.lifecycle import empty_slots
from esper.kasmina.slot_table import take_table
from esper.kasmina.structure import Structure
from esper.leyline.actions import NONE, Blend
from esper.leyline.learners import learners_of, with_learners
from esper.leyline.stages import MERGED, Stage, is_in
from esper.leyline.state import State
from esper.utils import rng

SEEDING = 0x5EED
"""Folded into keys, apart from the engine's streams."""

HALFWAY = 0.5
"""Alpha that a seed in BLENDING has when drawn."""


class Seeds(NamedTuple):
    """What every slot holds, [E, S] each; where ``blueprint`` is ``NONE`` there is no seed."""

    stage: Tensor  # int64
    blueprint: Tensor  # int64; of those that fit the slot
    blend: Tensor  # int64
    alpha: Tensor


def place_seeds(structure: Structure, state: State, seeds: Seeds, shake: float = 0.0) -> State:
    """A state with these seeds in place of all it had.

    Args:
      structure: their slots.
      state: [E].
      seeds: [E, S].
      shake: standard deviation of what is added to their fresh numbers. These start near the identity, and little that
        is computed could tell whether they take part.

    Returns:
      state. Seeds have fresh numbers, moments and steps 0, as the engine would draw them at this key and epoch; the
      slots' other fields are those of a slot that was never used.
    """
    held = seeds.blueprint != NONE
    stage = torch.where(held, int(Stage.GERMINATED), int(Stage.DORMANT))
    slots = empty_slots(held.shape[0], held.shape[1], state.slots.alpha.dtype, held.device)
    slots = slots.replace(stage=stage, blueprint=seeds.blueprint, blend=torch.where(held, seeds.blend, NONE))
    learners = init_seeds(structure, take_table(slots), learners_of(state), state.key, state.epoch)
    if shake:
        params = learners.seeds.params
        noise = rng.normal(rng.fold_in(state.key, SEEDING), (params.shape[1],), params.dtype)
        params = params + shake * noise * own_columns(structure, seeds.blueprint)
        learners = learners._replace(seeds=learners.seeds._replace(params=params))
    slots = slots.replace(stage=seeds.stage, alpha=torch.where(held, seeds.alpha, 0.0))
    return with_learners(state.replace(slots=slots), learners).lock_()


def own_columns(structure: Structure, blueprint: Tensor) -> Tensor:
    """Columns of the seed arena that seeds and their gates use: int64 [E, S], ``NONE`` without one -> bool [E, Q]."""
    parts = [torch.zeros((blueprint.shape[0], 0), dtype=torch.bool, device=blueprint.device)]
    for number, slot in enumerate(structure.slots):
        kind, column = blueprint[:, number].unsqueeze(1), torch.arange(slot.width, device=blueprint.device)
        seed = column < structure.sizes[number][kind.clamp(min=0)]
        parts.append((kind != NONE) & (seed | (column >= slot.width - slot.gate.size)))
    return torch.cat(parts, dim=1)


def draw_seeds(
    structure: Structure,
    share: float,
    kinds: tuple[int, ...],
    stages: tuple[Stage, ...],
    blends: tuple[Blend, ...],
    seed: int,
) -> Seeds:
    """Draw seeds at random over environments and slots.

    Args:
      structure: environments, slots, and which blueprints fit.
      share: of all slots, 0 to 1; round(share E S) seeds are drawn.
      kinds: blueprints; one that does not fit its slot is replaced by one that does.
      stages, blends: like ``kinds`` drawn each by itself, every entry as often as any other.
      seed: of the draw.

    Returns:
      seeds; alpha is 1, ``HALFWAY`` in BLENDING, and 0 in stages that change no output.
    """
    shape, device = (structure.config.num_envs, structure.config.num_slots), structure.sizes.device
    key, count = rng.fold_in(rng.key(seed), SEEDING).to(device), round(share * shape[0] * shape[1])
    place = rng.permutation(rng.fold_in(key, 0), shape[0] * shape[1]).reshape(shape).clamp(max=count)

    def drawn(number: int, choices: tuple[int, ...], empty: int) -> Tensor:
        order = rng.permutation(rng.fold_in(key, number), count) % len(choices)
        table = torch.tensor([*map(int, choices), empty], device=device)
        return table[torch.cat((order, order.new_full((1,), len(choices))))[place]]

    stage = drawn(1, stages, int(Stage.DORMANT))
    alpha = torch.where(
        stage == int(Stage.BLENDING), HALFWAY, is_in(stage, MERGED).to(structure.config.precision.dtype)
    )
    return Seeds(stage, _fitting(structure, drawn(2, kinds, NONE)), drawn(3, blends, NONE), alpha)


def _fitting(structure: Structure, kinds: Tensor) -> Tensor:
    """The blueprints [E, S], each replaced by one that fits its slot if it does not."""
    count = len(structure.blueprints)
    rows = [[k if k in s.offers else s.offers[k % len(s.offers)] for k in range(count)] for s in structure.slots]
    table = torch.tensor([[*row, NONE] for row in rows], dtype=torch.int64, device=kinds.device)
    return table.reshape(-1, count + 1)[torch.arange(len(rows), device=kinds.device), kinds]
