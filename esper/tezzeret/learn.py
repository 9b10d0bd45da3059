"""What learns, in compact rows: collected from the learners once an epoch, stepped, and written back."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina import arena
from esper.kasmina.optimizers import Rates, clip_rows, schedule
from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure
from esper.leyline.config import Config, Isolation
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners, Weights
from esper.tezzeret.plan import Plan, SlotRows
from esper.tezzeret.units import Call, Unit
from esper.tezzeret.walk import PassInputs, place_rows


class LearnerRows(NamedTuple):
    """Learners in compact rows: of the seeds, those that learn."""

    host: Weights  # [E, P]
    buffers: Tensor  # [E, N]
    seeds: tuple[Weights, ...]  # per slot [n, W]
    seed_buffers: tuple[Tensor, ...]  # per slot [n, R]


class Gradients(NamedTuple):
    """Gradients of one minibatch, before clipping, in the shapes of ``LearnerRows``."""

    host: Tensor
    seeds: tuple[Tensor, ...]


def gather(slots: Sequence[Slot], plan: Plan, learners: Learners) -> LearnerRows:
    """Collect the rows that learn."""
    (params, moments, steps), held = learners.seeds, learners.seed_buffers
    if plan.padded:
        params, moments, steps, held = map(with_sink, (params, moments, steps, held))
    seeds, buffers = [], []
    for number, (slot, listed) in enumerate(zip(slots, plan.slots, strict=True)):
        parts = (params[:, slot.columns], moments[:, :, slot.columns], steps[:, number])
        seeds.append(Weights(*(part.index_select(0, listed.rows) for part in parts)))
        buffers.append(held[:, slot.buffer_columns].index_select(0, listed.rows))
    return LearnerRows(learners.host, learners.buffers, tuple(seeds), tuple(buffers))


def with_sink(table: Tensor) -> Tensor:
    """A table [E, ...] and a row of zeros behind it, for the sinks of a padded plan."""
    return torch.cat((table, table.new_zeros((1, *table.shape[1:]))))


def scatter(slots: Sequence[Slot], plan: Plan, learners: Learners, rows: LearnerRows) -> Learners:
    """Write the rows back; what did not learn keeps its bits."""
    if not slots:
        return learners._replace(host=rows.host, buffers=rows.buffers)
    params, moments, steps, buffers = [], [], [], []
    for number, (slot, listed) in enumerate(zip(slots, plan.slots, strict=True)):
        own, seeds = rows.seeds[number], learners.seeds
        params.append(_put(listed, seeds.params[:, slot.columns], own.params))
        moments.append(_put(listed, seeds.moments[:, :, slot.columns], own.moments))
        steps.append(_put(listed, seeds.steps[:, number], own.steps))
        buffers.append(_put(listed, learners.seed_buffers[:, slot.buffer_columns], rows.seed_buffers[number]))
    seeds = Weights(torch.cat(params, dim=1), torch.cat(moments, dim=2), torch.stack(steps, dim=1))
    return Learners(rows.host, rows.buffers, seeds, torch.cat(buffers, dim=1))


def _put(listed: SlotRows, table: Tensor, values: Tensor) -> Tensor:
    return place_rows(listed, values, table) if listed.groups else table


def numbers_of(
    structure: Structure, blocks: tuple[Tensor, ...], rows: LearnerRows, alphas: tuple[Tensor, ...]
) -> PassInputs:
    """The numbers of a training pass; ``blocks`` is ``split_blocks`` of the host's parameters."""
    seeds = tuple(weights.params for weights in rows.seeds)
    return PassInputs(blocks, arena.split_buffers(structure.host, rows.buffers), seeds, rows.seed_buffers, alphas)


def alphas_of(plan: Plan, alphas: Tensor) -> tuple[Tensor, ...]:
    """Alphas [E, S] of the rows of a plan, per slot [n]; those of sinks are 0."""
    columns = (with_sink(alphas) if plan.padded else alphas).unbind(1)
    return tuple(column.index_select(0, listed.rows) for column, listed in zip(columns, plan.slots, strict=True))


class RateTable(NamedTuple):
    """The numbers by which hosts and seeds learn, each [E, 1] or [1, 1]; learning rates before their schedule."""

    host: Rates
    seeds: Rates
    warmup: Tensor  # epochs
    final: Tensor  # fraction
    alpha_target: Tensor


def rate_table(hypers: HyperParams) -> RateTable:
    """Take the table from the hyperparameters."""
    shared = (hypers.momentum, hypers.adam_beta1, hypers.adam_beta2, hypers.adam_epsilon)
    host = (hypers.host_lr, hypers.host_weight_decay, hypers.host_clip, *shared)
    seeds = (hypers.seed_lr, hypers.seed_weight_decay, hypers.seed_clip, *shared)
    rest = (hypers.warmup_epochs, hypers.final_lr_fraction, hypers.alpha_target)

    def column(number: Tensor) -> Tensor:
        return number.reshape(-1, 1)

    return RateTable(Rates(*map(column, host)), Rates(*map(column, seeds)), *map(column, rest))


def some(number: Tensor, envs: Tensor) -> Tensor:
    """The rows of a number [E, 1] of some environments; [1, 1] stays. A sink takes those of the last environment."""
    last = number.shape[0] - 1
    return number if last == 0 else number.index_select(0, envs.clamp(max=last))


def learn(
    structure: Structure, call: Call, table: RateTable, plan: Plan, rows: LearnerRows, grads: Gradients
) -> LearnerRows:
    """Clip and apply one minibatch's gradients. A seed and its gate are clipped each by its own norm.

    Learning rates follow their schedule by the learner's own age: the steps it has taken.
    """
    numbers = (*table.host, table.warmup, table.final, structure.host_decays)
    host, _, _ = call(host_step_unit(structure), (grads.host, *rows.host, *numbers), ())
    seeds = []
    for slot, listed, own, grad in zip(structure.slots, plan.slots, rows.seeds, grads.seeds, strict=True):
        seeds.append(_seed_step(structure, call, table, slot, listed, own, grad) if listed.groups else own)
    return rows._replace(host=Weights(*host), seeds=tuple(seeds))


def _seed_step(
    structure: Structure,
    call: Call,
    table: RateTable,
    slot: Slot,
    listed: SlotRows,
    seeds: Weights,
    grad: Tensor,
) -> Weights:
    """One step of a slot's seeds [n, W] with their gates; a gate that takes no part keeps its numbers."""
    count = listed.rows.shape[0]
    numbers = [some(number, listed.rows).expand(count, 1) for number in (*table.seeds, table.warmup, table.final)]
    shrinks = torch.cat([slot.decays[group.blueprint].expand(group.size, -1) for group in listed.groups])
    opens = listed.gated & (~listed.training | (structure.config.isolation is Isolation.OBJECTIVE))
    after, _, _ = call(seed_step_unit(structure, slot), (grad, *seeds, *numbers, shrinks, opens), ())
    return Weights(*after)


def host_step_unit(structure: Structure) -> Unit:
    """One step of all hosts: (gradient, params, moments, steps, 7 rates, warm-up, final rate, decays)."""

    def run(grad: Tensor, params: Tensor, moments: Tensor, steps: Tensor, *numbers: Tensor) -> tuple[Weights, Tensor]:
        *rates, warmup, final, decays = numbers
        scheduled = _scheduled(structure.config, Rates(*rates), warmup, final, steps)
        clipped, _ = clip_rows(grad, scheduled.clip)
        after = structure.host_optimizer.update(clipped, params, moments, steps, scheduled, decays)
        return Weights(*after), steps[:0]

    return Unit(("host step",), run, varies=False)


def seed_step_unit(structure: Structure, slot: Slot) -> Unit:
    """One step of seeds: (gradient, params, moments, steps, 7 rates, warm-up, final rate, decays, gates that learn)."""
    size, opening, width = slot.width - slot.gate.size, slot.gate.size, slot.width
    update = structure.seed_optimizer.update

    def run(grad: Tensor, params: Tensor, moments: Tensor, steps: Tensor, *numbers: Tensor) -> tuple[Weights, Tensor]:
        *rates, warmup, final, decays, opens = numbers
        scheduled = _scheduled(structure.config, Rates(*rates), warmup, final, steps)
        parts = [clip_rows(part, scheduled.clip)[0] for part in grad.split((size, opening), dim=1)]
        after, moved, taken = update(torch.cat(parts, dim=1), params, moments, steps, scheduled, decays)
        if opening:
            moves = opens.unsqueeze(1) | (torch.arange(width, device=grad.device) < size)
            after, moved = torch.where(moves, after, params), torch.where(moves.unsqueeze(1), moved, moments)
        return Weights(after, moved, taken), steps[:0]

    return Unit(("seed step", slot.width, slot.gate.size), run)


def _scheduled(config: Config, rates: Rates, warmup: Tensor, final: Tensor, taken: Tensor) -> Rates:
    begun = taken.unsqueeze(1).to(rates.lr.dtype) / config.steps_per_epoch
    return rates._replace(lr=rates.lr * schedule(warmup, final, begun, 1 / config.steps_per_epoch, config.horizon))
