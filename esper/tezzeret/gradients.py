"""Gradients of a minibatch: forward, loss, and the tape read backwards; and what seeds in TRAINING learn by."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from esper.kasmina import arena
from esper.kasmina.structure import Structure
from esper.leyline.config import Isolation, Precision
from esper.tezzeret.batches import Batch
from esper.tezzeret.learn import Gradients, LearnerRows, RateTable, numbers_of, some
from esper.tezzeret.plan import ObjectivePass, Plan, SlotRows
from esper.tezzeret.units import Call, loss_unit, mix_unit, per_row
from esper.tezzeret.walk import (
    BlockRecord,
    Grown,
    Mode,
    PassInputs,
    SlotRecord,
    Tape,
    arrive,
    back_through_slot,
    depart,
    take_lanes,
    walk,
)

Heed = Callable[[Tensor, Grown], Grown]
"""See ``back_through_slot``."""


class Pass(NamedTuple):
    """A pass that is about to be read backwards."""

    structure: Structure
    slots: Sequence[SlotRows]
    places: range
    tape: Tape


class Found(NamedTuple):
    """Gradients of a pass's numbers, by block and by slot, of its first features, and of points that bypasses read."""

    blocks: dict[int, Tensor]
    seeds: dict[int, Tensor]
    start: Tensor | None
    points: dict[int, Tensor]  # those that are not among the places of the pass


def compute_gradients(
    structure: Structure,
    call: Call,
    table: RateTable,
    plan: Plan,
    rows: LearnerRows,
    alphas: tuple[Tensor, ...],
    batch: Batch,
) -> tuple[Gradients, tuple[Tensor, Tensor], Tape]:
    """Forward, loss, and the tape read backwards.

    Args:
      structure: what the networks are.
      call: how units are called.
      table: ``alpha_target`` of objective passes.
      plan: of their slots.
      rows: what learns.
      alphas: per slot [n].
      batch: inputs and targets.

    Returns:
      gradients of every network's mean loss; loss and score [E]; and the tape, which holds the new buffers.
    """
    blocks, pull_blocks = vjp(partial(arena.split_blocks, structure.host), rows.host.params)  # type: ignore[misc]
    numbers, mode = numbers_of(structure, blocks, rows, alphas), Mode(True, call, batch.key)
    places = range(len(structure.route))
    flow, tape = walk(structure, plan.slots, numbers, depart(structure, batch.inputs), places, mode)
    outputs = flow.h.to(structure.config.precision.dtype)
    loss, score, pull_loss = call(loss_unit(structure.objective), (outputs, batch.targets), (0,))
    assert pull_loss is not None
    grad = pull_loss(torch.ones_like(loss))[0]
    scale = loss_scale(grad) if structure.config.precision is Precision.FLOAT16 else None
    heeds = partial(_heed, Context(structure, mode, table.alpha_target, plan, numbers, tape, batch, scale))
    found = read_back(Pass(structure, plan.slots, places, tape), scaled(grad, scale).to(flow.h.dtype), heeds)
    (host,) = pull_blocks(tuple(found.blocks[index] for index in range(len(blocks))))
    seeds = tuple(found.seeds.get(slot, numbers.seeds[slot]) for slot in range(len(structure.slots)))
    if scale is not None:
        pairs = zip(seeds, plan.slots, strict=True)
        host, seeds = scaled(host, 1 / scale), tuple(scaled(each, some(1 / scale, of.rows)) for each, of in pairs)
    return Gradients(host, seeds), (loss, score), tape


def loss_scale(grad: Tensor) -> Tensor:
    """What each network's loss is multiplied by, so that no gradient is lost in float16: a power of 2, [E, 1].

    The largest gradient [E, B, ...] of a network's outputs comes to lie in (1/2, 1]: then what comes back may grow by
    2^15 or shrink by 2^24 on its way. It depends on the minibatch alone, so there is no scale to keep; a gradient that
    overflows all the same is not finite, as the governor sees.
    """
    largest = grad.flatten(1).abs().amax(1, keepdim=True)
    sound = torch.isfinite(largest) & (largest > 0)
    return torch.where(sound, torch.exp2(-torch.ceil(torch.log2(torch.where(sound, largest, 1.0)))), 1.0)


def scaled(values: Tensor, scale: Tensor | None) -> Tensor:
    """Values [n, ...] times what belongs to each row, [n, 1]."""
    return values if scale is None else values * per_row(scale.squeeze(1), values)


def read_back(taken: Pass, grad: Tensor, heeds: Callable[[int], Heed | None]) -> Found:
    """Read a tape in reverse.

    Args:
      taken: the pass.
      grad: of the features behind its last place.
      heeds: place of a slot in the route -> what its seeds in TRAINING learn by, see ``back_through_slot``.
    """
    structure, slots, places, tape = taken
    of_blocks: dict[int, Tensor] = {}
    of_seeds: dict[int, Tensor] = {}
    of_points: dict[int, Tensor] = {}
    backward: Tensor | None = grad
    for number, record in zip(reversed(places), reversed(tape), strict=True):
        place, point = structure.route[number], structure.point_after(number)
        assert backward is not None
        backward = backward + of_points.pop(point) if point in of_points else backward
        if isinstance(record, BlockRecord):
            assert record.pull is not None
            pulled = record.pull(backward)
            backward = pulled.get(1)
            if 0 in pulled:
                of_blocks[place.number] = pulled[0]
        elif record.pull_seeds:
            listed = slots[place.number]
            found = back_through_slot(structure, place, listed, record, backward, heeds(number))
            backward = found.h
            if found.rows is not None:
                of_seeds[place.number] = found.rows
            if found.source is not None:
                source = structure.slots[place.number].source
                of_points[source] = of_points[source] + found.source if source in of_points else found.source
    return Found(of_blocks, of_seeds, backward, of_points)


class Context(NamedTuple):
    """What an objective pass may look at."""

    structure: Structure
    mode: Mode
    alpha_target: Tensor  # [E, 1] or [1, 1]
    plan: Plan
    numbers: PassInputs
    tape: Tape
    batch: Batch
    scale: Tensor | None = None  # [E, 1]; of the loss


def _heed(context: Context, number: int) -> Heed:
    """What seeds in TRAINING learn by, in place of the network's own gradient, which does not reach them."""
    structure, plan = context.structure, context.plan
    slot, record = structure.route[number].number, context.tape[number]
    assert isinstance(record, SlotRecord)
    training, passage = plan.slots[slot].training, plan.objectives[slot]
    if structure.config.isolation is not Isolation.OBJECTIVE:
        return partial(_straight_through, training, record.grown[0])
    if passage is None:
        return _as_is
    return partial(_own, training, _own_objective(context, passage, record, number))


def _as_is(out: Tensor, network: Grown) -> Grown:
    del out
    return network


def _own(training: Tensor, mine: Grown, out: Tensor, network: Grown) -> Grown:
    """The gradient of a seed's own objective."""
    del out
    pairs = zip(mine, network, strict=True)
    return tuple(torch.where(per_row(training, own), own, other) for own, other in pairs)


def _straight_through(training: Tensor, s: Tensor, out: Tensor, network: Grown) -> Grown:
    """The gradient at the host's output, as if the seed's features were it."""
    seen = torch.where(torch.isfinite(s), out, 0.0)
    return (torch.where(per_row(training, out), seen, network[0]), *network[1:])


def _own_objective(context: Context, passage: ObjectivePass, record: SlotRecord, number: int) -> Grown:
    """Gradients of the loss of the networks as if the seeds of one slot were on at their target alpha, all else given.

    Args:
      context: of the networks.
      passage: those whose seed is in TRAINING.
      record: what the slot left on the tape.
      number: its place in the route.

    Returns:
      gradients of what the seeds of the slot gave.
    """
    structure, mode, numbers = context.structure, context.mode, _lane_numbers(context.numbers, passage)
    slot, places = structure.slots[structure.route[number].number], range(number + 1, len(structure.route))
    given, key = take_lanes(record.before, passage.envs), mode.key
    picked = tuple(part.index_select(0, passage.picks) for part in record.grown)
    alpha = some(context.alpha_target, passage.envs).expand(passage.envs.shape[0], 1).squeeze(1)
    arguments = (given.h, *picked, alpha, passage.gated)
    h, _, pull_mix = mode.call(mix_unit(slot), arguments, tuple(range(1, 1 + len(picked))))
    own = Mode(True, mode.call, None if key is None else key.index_select(0, passage.envs), since=slot.target)
    flow = arrive(structure, number, given._replace(h=h))
    end, tape = walk(structure, passage.slots, numbers, flow, places, own)
    targets = context.batch.targets.index_select(0, passage.envs)
    outputs = end.h.to(structure.config.precision.dtype)
    loss, _, pull_loss = mode.call(loss_unit(structure.objective), (outputs, targets), (0,))
    assert pull_loss is not None and pull_mix is not None
    scale = None if context.scale is None else some(context.scale, passage.envs).expand(len(passage.envs), 1)
    at_end = scaled(pull_loss(passage.alive.to(loss.dtype))[0], scale).to(end.h.dtype)
    read = read_back(Pass(structure, passage.slots, places, tape), at_end, lambda place: None)
    assert read.start is not None
    point = structure.point_after(number)  # which a bypass further on may read
    found = pull_mix(read.start + read.points[point] if point in read.points else read.start)
    return tuple(_spread(passage.picks, found[1 + part], whole) for part, whole in enumerate(record.grown))


def _spread(picks: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """Gradients of picked rows, at their places among all."""
    return torch.zeros_like(like).index_add(0, picks, values)


def _lane_numbers(numbers: PassInputs, passage: ObjectivePass) -> PassInputs:
    """The numbers of the networks of an objective pass."""

    def lanes(table: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(rows.index_select(0, passage.envs) for rows in table)

    def rows(table: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(part.index_select(0, listed.rows) for part, listed in zip(table, passage.slots, strict=True))

    held = (rows(numbers.seeds), rows(numbers.seed_buffers), rows(numbers.alphas))
    return PassInputs(lanes(numbers.blocks), lanes(numbers.buffers), *held)
