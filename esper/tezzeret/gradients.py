"""Gradients of a minibatch: forward, loss, and the tape read backwards; and what seeds in TRAINING learn by."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from esper.kasmina import arena
from esper.kasmina.structure import Structure
from esper.leyline.config import Isolation
from esper.tezzeret.batches import Batch
from esper.tezzeret.learn import Gradients, RateTable, Rows, numbers_of, some
from esper.tezzeret.plan import ObjectivePass, Plan
from esper.tezzeret.walk import (
    BlockRecord,
    Flow,
    Grown,
    Mode,
    Numbers,
    SlotRecord,
    arrive,
    back_through_block,
    back_through_slot,
    depart,
    mix,
    per_row,
    plain,
    pulled,
    take_lanes,
    walk,
)

Tape = list[BlockRecord | SlotRecord]
Heed = Callable[[Tensor, Grown], Grown]
"""See ``back_through_slot``."""


def compute_gradients(
    structure: Structure,
    table: RateTable,
    plan: Plan,
    rows: Rows,
    alphas: tuple[Tensor, ...],
    batch: Batch,
) -> tuple[Gradients, tuple[Tensor, Tensor], Tape]:
    """Forward, loss, and the tape read backwards.

    Returns:
      gradients of every network's mean loss; loss and score [E]; and the tape, which holds the new buffers.
    """
    blocks, pull_blocks = vjp(partial(arena.split_blocks, structure), rows.host.params)
    numbers = numbers_of(structure, blocks, rows, alphas)
    flow, tape = walk_all(structure, plan, numbers, batch, Mode(True, pulled, batch.key))
    at_outputs, seen = grad(partial(_total, structure, batch.targets), has_aux=True)(flow.h)
    of_blocks: dict[int, Tensor] = {}
    of_seeds: dict[int, Tensor] = {}
    of_points: dict[int, Tensor] = {}
    backward: Tensor | None = at_outputs
    for number in reversed(range(len(structure.route))):
        place, record, point = structure.route[number], tape[number], structure.point_after(number)
        assert backward is not None
        backward = backward + of_points.pop(point) if point in of_points else backward
        if isinstance(record, BlockRecord):
            of_blocks[place.index], backward = back_through_block(structure, place, record, backward)
            continue
        if not record.pull_seeds:
            of_seeds[place.index] = numbers.seeds[place.index]
            continue
        heed = _heed(structure, table, plan, numbers, number, record, batch)
        found = back_through_slot(structure, place, plan.slots[place.index], record, backward, heed)
        of_seeds[place.index], backward = found.rows, found.h
        if found.source is not None:
            source = structure.slots[place.index].source
            of_points[source] = of_points[source] + found.source if source in of_points else found.source
    (host,) = pull_blocks(tuple(of_blocks[index] for index in range(len(blocks))))
    return Gradients(host, tuple(of_seeds[slot] for slot in range(len(structure.slots)))), seen, tape


def walk_all(structure: Structure, plan: Plan, numbers: Numbers, batch: Batch, mode: Mode) -> tuple[Flow, Tape]:
    """All places of the route, in training."""
    start = depart(structure, batch.inputs)
    return walk(structure, plan.slots, numbers, start, range(len(structure.route)), mode)


def mean_loss(structure: Structure, targets: Tensor, outputs: Tensor) -> Tensor:
    """Mean loss of every network's minibatch: targets [n, B, ...], outputs [n, B, ..., C] -> [n]."""
    return structure.objective.loss(outputs, targets).flatten(1).mean(1)


def _total(structure: Structure, targets: Tensor, outputs: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    loss = mean_loss(structure, targets, outputs)
    score = structure.objective.score(outputs, targets).flatten(1).mean(1)
    return loss.sum(), (loss, score)


def _heed(
    structure: Structure, table: RateTable, plan: Plan, numbers: Numbers, number: int, record: SlotRecord, batch: Batch
) -> Heed:
    """What seeds in TRAINING learn by, in place of the network's own gradient, which does not reach them."""
    slot = structure.route[number].index
    training = plan.slots[slot].training
    if structure.config.isolation is not Isolation.OBJECTIVE:
        return partial(_straight_through, training, record.grown[0])
    passage = plan.objectives[slot]
    if passage is None:
        return lambda out, own: own
    context = ObjectiveContext(structure, passage, _lane_numbers(numbers, passage), number, batch)
    alpha = some(table.alpha_target, passage.envs).expand(passage.envs.shape[0], 1).squeeze(1)
    mine = grad(partial(_own_objective, context, alpha, take_lanes(record.before, passage.envs)))(record.grown)
    return partial(_own, training, mine)


def _own(training: Tensor, mine: Grown, out: Tensor, network: Grown) -> Grown:
    """The gradient of a seed's own objective."""
    del out
    pairs = zip(mine, network, strict=True)
    return tuple(torch.where(per_row(training, own), own, other) for own, other in pairs)


def _straight_through(training: Tensor, s: Tensor, out: Tensor, network: Grown) -> Grown:
    """The gradient at the host's output, as if the seed's features were it."""
    seen = torch.where(torch.isfinite(s), out, 0.0)
    return (torch.where(per_row(training, out), seen, network[0]), *network[1:])


class ObjectiveContext(NamedTuple):
    """What an objective pass takes as given."""

    structure: Structure
    passage: ObjectivePass
    numbers: Numbers
    number: int  # place of the slot in the route
    batch: Batch


def _own_objective(context: ObjectiveContext, alpha: Tensor, given: Flow, grown: Grown) -> Tensor:
    """The loss of the networks as if the seeds of one slot were on at their target alpha, all else given."""
    structure, passage, numbers, number, batch = context
    slot, route = structure.slots[structure.route[number].index], range(number + 1, len(structure.route))
    picked = tuple(part.index_select(0, passage.picks) for part in grown)
    flow = given._replace(h=mix(slot, alpha, passage.gated, given.h, picked))
    key = None if batch.key is None else batch.key.index_select(0, passage.envs)
    end, _ = walk(structure, passage.slots, numbers, arrive(structure, number, flow), route, Mode(True, plain, key))
    loss = mean_loss(structure, batch.targets.index_select(0, passage.envs), end.h)
    return torch.where(passage.alive, loss, 0.0).sum()


def _lane_numbers(numbers: Numbers, passage: ObjectivePass) -> Numbers:
    """The numbers of the networks of an objective pass."""

    def lanes(table: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(rows.index_select(0, passage.envs) for rows in table)

    def rows(table: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(part.index_select(0, listed.rows) for part, listed in zip(table, passage.slots, strict=True))

    held = (rows(numbers.seeds), rows(numbers.seed_buffers), rows(numbers.alphas))
    return Numbers(lanes(numbers.blocks), lanes(numbers.buffers), *held)
