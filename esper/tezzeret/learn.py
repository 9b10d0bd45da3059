"""What learns, in compact rows: collected from the learners once an epoch, stepped, and written back."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina import arena
from esper.kasmina.optimizers import Rates, clip_rows, schedule
from esper.kasmina.structure import Slot, Structure
from esper.leyline.config import Isolation
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners, Weights
from esper.tezzeret.plan import Group, Plan, SlotRows
from esper.tezzeret.walk import Numbers


class Rows(NamedTuple):
    """Learners in compact rows: of the seeds, those that learn."""

    host: Weights  # [E, P]
    buffers: Tensor  # [E, N]
    seeds: tuple[tuple[Weights, ...], ...]  # per slot and group [n, P_k + G]
    seed_buffers: tuple[tuple[Tensor, ...], ...]  # per slot and group [n, R_k]


class Gradients(NamedTuple):
    """Gradients of one minibatch, before clipping, in the shapes of ``Rows``."""

    host: Tensor
    seeds: tuple[tuple[Tensor, ...], ...]


def gather(structure: Structure, plan: Plan, learners: Learners) -> Rows:
    """Collect the rows that learn."""
    seeds, buffers = [], []
    (params, moments, steps), held = learners.seeds, learners.seed_buffers
    if plan.padded:
        params, moments, steps, held = map(_with_sink, (params, moments, steps, held))
    for number, (slot, listed) in enumerate(zip(structure.slots, plan.slots, strict=True)):
        seeds.append(tuple(_read(slot, number, group, params, moments, steps) for group in listed.groups))
        part = held[:, slot.buffer_columns]
        sizes = [slot.buffer_row(group.blueprint).size for group in listed.groups]
        pairs = zip(listed.groups, sizes, strict=True)
        buffers.append(tuple(part[:, :size].index_select(0, group.rows) for group, size in pairs))
    return Rows(learners.host, learners.buffers, tuple(seeds), tuple(buffers))


def _with_sink(table: Tensor) -> Tensor:
    """A table [E, ...] and a row of zeros behind it, for the sinks of a padded plan."""
    return torch.cat((table, table.new_zeros((1, *table.shape[1:]))))


def _read(slot: Slot, number: int, group: Group, params: Tensor, moments: Tensor, steps: Tensor) -> Weights:
    pick = partial(torch.index_select, dim=0, index=group.rows)
    return Weights(
        arena.read_seed(slot, group.blueprint, pick(params)),
        arena.read_seed(slot, group.blueprint, pick(moments)),
        pick(steps[:, number]),
    )


def scatter(structure: Structure, plan: Plan, learners: Learners, rows: Rows) -> Learners:
    """Write the rows back; what did not learn keeps its bits."""
    params, moments, buffers, steps = [], [], [], []
    for number, (slot, listed) in enumerate(zip(structure.slots, plan.slots, strict=True)):
        own, held = rows.seeds[number], rows.seed_buffers[number]
        pad = [partial(arena.pad_seed, slot, group.blueprint) for group in listed.groups]
        put = partial(_put, listed)
        seeds = learners.seeds
        params.append(put(seeds.params[:, slot.columns], [p(w.params) for p, w in zip(pad, own, strict=True)]))
        moments.append(put(seeds.moments[:, :, slot.columns], [p(w.moments) for p, w in zip(pad, own, strict=True)]))
        steps.append(put(seeds.steps[:, number], [w.steps for w in own]))
        padded = [arena.pad_buffers(slot, part) for part in held]
        buffers.append(put(learners.seed_buffers[:, slot.buffer_columns], padded))
    if not structure.slots:
        return learners._replace(host=rows.host, buffers=rows.buffers)
    seeds = Weights(torch.cat(params, dim=1), torch.cat(moments, dim=2), torch.stack(steps, dim=1))
    return Learners(rows.host, rows.buffers, seeds, torch.cat(buffers, dim=1))


def _put(listed: SlotRows, table: Tensor, parts: list[Tensor]) -> Tensor:
    if not parts:
        return table
    values = torch.cat(parts).index_select(0, listed.index)
    return torch.where(listed.present.reshape(-1, *(1,) * (table.dim() - 1)), values, table)


def numbers_of(
    structure: Structure, blocks: tuple[Tensor, ...], rows: Rows, alphas: Sequence[Sequence[Tensor]]
) -> Numbers:
    """The numbers of a training pass; ``blocks`` is ``split_blocks`` of the host's parameters."""
    seeds = tuple(tuple(weights.params for weights in slot) for slot in rows.seeds)
    buffers = arena.split_buffers(structure, rows.buffers)
    return Numbers(blocks, buffers, seeds, rows.seed_buffers, tuple(map(tuple, alphas)))


def alphas_of(plan: Plan, alphas: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """Alphas [E, S] of the rows of a plan, per slot and group [n]; those of sinks are 0."""
    table = _with_sink(alphas) if plan.padded else alphas
    columns = table.unbind(1)
    return tuple(
        tuple(columns[slot].index_select(0, group.rows) for group in listed.groups)
        for slot, listed in enumerate(plan.slots)
    )


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


def learn(structure: Structure, table: RateTable, plan: Plan, rows: Rows, grads: Gradients) -> Rows:
    """Clip and apply one minibatch's gradients. A seed and its gate are clipped each by its own norm.

    Learning rates follow their schedule by the learner's own age: the steps it has taken.
    """
    host = host_step(structure, table, rows.host, grads.host)
    seeds = []
    for slot, listed, own, grad in zip(structure.slots, plan.slots, rows.seeds, grads.seeds, strict=True):
        quads = zip(listed.groups, own, grad, strict=True)
        seeds.append(tuple(seed_step(structure, table, slot, *quad) for quad in quads))
    return rows._replace(host=host, seeds=tuple(seeds))


def host_step(structure: Structure, table: RateTable, host: Weights, grad: Tensor) -> Weights:
    """One step of all hosts [E, P]."""
    rates = _scheduled(structure, table.host, table.warmup, table.final, host.steps)
    grad, _ = clip_rows(grad, rates.clip)
    return Weights(*structure.host_optimizer.update(grad, *host, rates, structure.host_decays))


def seed_step(
    structure: Structure, table: RateTable, slot: Slot, group: Group, seeds: Weights, grad: Tensor
) -> Weights:
    """One step of a group of seeds [n, P_k + G] with their gates; a gate that takes no part keeps its numbers."""
    size, own = slot.row(group.blueprint).size, Rates(*(some(number, group.rows) for number in table.seeds))
    rates = _scheduled(structure, own, some(table.warmup, group.rows), some(table.final, group.rows), seeds.steps)
    clipped = [clip_rows(part, rates.clip)[0] for part in (grad[:, :size], grad[:, size:])]
    shrinks = slot.decays[group.blueprint]
    params, moments, steps = structure.seed_optimizer.update(torch.cat(clipped, dim=1), *seeds, rates, shrinks)
    if not slot.gate.size:
        return Weights(params, moments, steps)
    opens = group.gated & (~group.training | (structure.config.isolation is Isolation.OBJECTIVE))
    opens = opens.unsqueeze(1)
    gate = torch.where(opens, params[:, size:], seeds.params[:, size:])
    moved = torch.where(opens.unsqueeze(2), moments[:, :, size:], seeds.moments[:, :, size:])
    return Weights(torch.cat((params[:, :size], gate), 1), torch.cat((moments[:, :, :size], moved), 2), steps)


def _scheduled(structure: Structure, rates: Rates, warmup: Tensor, final: Tensor, taken: Tensor) -> Rates:
    config = structure.config
    begun = taken.unsqueeze(1).to(rates.lr.dtype) / config.steps_per_epoch
    return rates._replace(lr=rates.lr * schedule(warmup, final, begun, 1 / config.steps_per_epoch, config.horizon))
