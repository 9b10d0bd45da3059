"""An epoch of the native network: rows collected once, k calls of the library, rows written back."""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.layers import RUNNING_MOMENTUM
from esper.kasmina.optimizers import Optimizer, Rates, schedule
from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure
from esper.leyline.config import Isolation
from esper.leyline.events import Epoch
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners, Weights
from esper.tezzeret.batches import Batch, Batches, batch_at
from esper.tezzeret.health import SlotGradients, measure_health, rows_finite
from esper.tezzeret.learn import RateTable, rate_table
from esper.tezzeret.native.library import as_numbers
from esper.tezzeret.native.network import Network
from esper.tezzeret.native.plan import Plan, SlotRows
from esper.tezzeret.native.run import BatchIndex, NetworkGradients, RowIndex, SeedRows, train
from esper.tezzeret.native.update import update_rows


class Rows(NamedTuple):
    """What learns, in compact rows."""

    host: Weights  # [E, P]
    buffers: Tensor  # [E, N]
    seeds: tuple[Weights, ...]  # per slot [n, W]; a blueprint's numbers, then zeros up to the widest one's length
    gates: tuple[Weights, ...]  # per slot [g, G]
    seed_buffers: tuple[Tensor, ...]  # per slot [n, R]


class Schedule(NamedTuple):
    """Learning rates of an epoch's steps, and which columns a decoupled decay shrinks."""

    host: Tensor  # [k, E, 1]
    seeds: Tensor  # [k, S, E, 1]
    host_decays: Tensor  # bool [P]
    seed_decays: tuple[Tensor, ...]  # per slot bool [n, W]
    gate_decays: tuple[Tensor, ...]  # per slot bool [g, G]


def seed_columns(slot: Slot, rows: SlotRows) -> slice:
    """Columns of the arena that hold the seeds of a plan: as many as the widest of them needs."""
    widths = (slot.row(kind).size for kind, _ in rows.kinds)
    return slice(slot.start, slot.start + max(widths, default=0))


def gather(structure: Structure, plan: Plan, learners: Learners) -> Rows:
    """Collect the rows that learn."""
    seeds, gates, buffers = [], [], []
    for number, (slot, rows) in enumerate(zip(structure.slots, plan.slots, strict=True)):
        seeds.append(_read(learners.seeds, number, rows.envs, seed_columns(slot, rows)))
        gates.append(_read(learners.seeds, number, rows.gate_envs, slot.gate_columns))
        buffers.append(learners.seed_buffers[:, slot.buffer_columns].index_select(0, rows.envs))
    return Rows(learners.host, learners.buffers, tuple(seeds), tuple(gates), tuple(buffers))


def _read(weights: Weights, slot: int, rows: Tensor, columns: slice) -> Weights:
    return Weights(
        weights.params[:, columns].index_select(0, rows),
        weights.moments[:, :, columns].index_select(0, rows),
        weights.steps[:, slot].index_select(0, rows),
    )


def scatter(structure: Structure, plan: Plan, learners: Learners, rows: Rows) -> Learners:
    """Write the rows back into copies; the arena is copied only if something in it learned."""
    learners = learners._replace(host=rows.host, buffers=rows.buffers)
    if not any(listed.kinds for listed in plan.slots):
        return learners
    params, moments, steps = (leaf.clone() for leaf in learners.seeds)
    buffers = learners.seed_buffers.clone()
    for number, (slot, listed) in enumerate(zip(structure.slots, plan.slots, strict=True)):
        own = (listed.envs, seed_columns(slot, listed), rows.seeds[number])
        gates = (listed.gate_envs, slot.gate_columns, rows.gates[number])
        for envs, columns, weights in (own, gates):
            params[envs, columns], moments[envs, :, columns] = weights.params, weights.moments
        steps[listed.envs, number] = rows.seeds[number].steps
        buffers[listed.envs, slot.buffer_columns] = rows.seed_buffers[number]
    return learners._replace(seeds=Weights(params, moments, steps), seed_buffers=buffers)


def epoch(
    network: Network, hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, batches: Batches
) -> tuple[Learners, Epoch]:
    """``epoch`` of the definition."""
    structure = network.structure
    batches = batches._replace(inputs=as_numbers(batches.inputs))
    rows, table = gather(structure, plan, learners), rate_table(hypers)
    weights = [alphas[:, slot].index_select(0, listed.envs) for slot, listed in enumerate(plan.slots)]
    rates = _schedule(structure, table, plan, learners, batches.length)
    learns_own = structure.config.isolation is Isolation.OBJECTIVE
    own = hypers.alpha_target.expand(alphas.shape[0]).contiguous() if learns_own else None
    loss = score = torch.zeros_like(alphas[:, :0]).sum(1)
    for step in range(batches.length):
        result = gradients(network, plan, rows, (weights, own), _minibatch(structure, batches, step))
        rows = learn(structure, table, plan, _with_buffers(network, plan, rows, result), result, rates, step)
        loss, score = loss + result.losses.mean(1), score + result.hits.mean(1)
    health = measure_health(structure, hypers, result.host, _seed_gradients(structure, plan, result))
    finite = torch.isfinite(loss) & torch.isfinite(health.host_norm) & _finite(plan, rows)
    measures = Epoch(loss / batches.length, 100 * score / batches.length, finite, health)
    return scatter(structure, plan, learners, rows), measures


def gradients(
    network: Network,
    plan: Plan,
    rows: Rows,
    alphas: tuple[list[Tensor], Tensor | None],
    batch: tuple[Tensor | BatchIndex, Tensor],
) -> NetworkGradients:
    """Losses and gradients of one minibatch.

    Args:
      network, plan, rows: what runs.
      alphas: per slot [n]; and [E] as if at which seeds in TRAINING learn, or None.
      batch: inputs and targets.
    """
    weights, own = alphas
    parts = zip(plan.slots, rows.seeds, rows.gates, rows.seed_buffers, weights, strict=True)
    seeds = [
        SeedRows(
            rows=RowIndex(listed.blueprints, listed.row_of, listed.gate_rows(torch.arange(listed.gated.shape[0]))),
            alpha=alpha,
            params=seed.params,
            buffers=buffers,
            owners=None,
            gate_params=gate.params,
            training=listed.training,
            isolated=listed.isolated,
            merged=listed.merged,
        )
        for listed, seed, gate, buffers, alpha in parts
    ]
    return train(network.train, *batch, rows.host.params, seeds, own)


def _minibatch(structure: Structure, batches: Batches, step: int) -> tuple[Tensor | BatchIndex, Tensor]:
    """A minibatch; where samples are read as they are, only their places in the dataset."""
    config = structure.config
    if config.crop_padding or config.mirror:
        batch = batch_at(structure, batches, step)
        return batch.inputs, batch.targets
    places = batches.picks[step]
    return BatchIndex(batches.inputs, places), batches.targets[places]


def _with_buffers(network: Network, plan: Plan, rows: Rows, result: NetworkGradients) -> Rows:
    """Running averages of what the batch norms saw."""
    held = []
    for listed, buffers, aux, tracked in zip(
        plan.slots, rows.seed_buffers, result.seed_aux, network.seeds_tracked, strict=True
    ):
        if not buffers.shape[1] or not buffers.shape[0]:
            held.append(buffers)
            continue
        follows = tracked.index_select(0, listed.blueprints)
        seen = torch.lerp(buffers, aux.gather(1, follows.clamp(min=0)), RUNNING_MOMENTUM)
        held.append(torch.where(follows >= 0, seen, buffers))
    rows = rows._replace(seed_buffers=tuple(held))
    if not network.tracked:
        return rows
    return rows._replace(buffers=torch.lerp(rows.buffers, result.aux[:, list(network.tracked)], RUNNING_MOMENTUM))


def _schedule(structure: Structure, table: RateTable, plan: Plan, learners: Learners, count: int) -> Schedule:
    config = structure.config
    taken = torch.cat((learners.host.steps.unsqueeze(1), learners.seeds.steps), dim=1)
    ahead = torch.arange(count, device=taken.device).reshape(-1, 1, 1)
    begun = (taken + ahead).to(table.host.lr.dtype) / config.steps_per_epoch
    factor = schedule(table.warmup, table.final, begun, 1 / config.steps_per_epoch, config.horizon)
    seeds = (table.seeds.lr * factor[:, :, 1:]).transpose(1, 2).unsqueeze(3).contiguous()
    host = (table.host.lr * factor[:, :, :1]).contiguous()
    return Schedule(host, seeds, structure.host_decays, *_decays(structure, plan))


def _decays(structure: Structure, plan: Plan) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Of seeds and of gates; nothing where the rule has no decoupled decay."""
    if structure.seed_optimizer.name != "adamw":
        none = tuple(structure.host_decays[:0] for _ in structure.slots)
        return none, none
    seeds, gates = [], []
    for slot, rows in zip(structure.slots, plan.slots, strict=True):
        held = torch.stack(slot.decays).index_select(0, rows.blueprints)
        own, gate = seed_columns(slot, rows), slot.gate_columns
        seeds.append(held[:, : own.stop - own.start].contiguous())
        gates.append(held[rows.gated, gate.start - slot.start : gate.stop - slot.start].contiguous())
    return tuple(seeds), tuple(gates)


def learn(
    structure: Structure, table: RateTable, plan: Plan, rows: Rows, result: NetworkGradients, rates: Schedule, step: int
) -> Rows:
    """Clip and apply one minibatch's gradients; a seed and its gate are clipped each by its own norm."""
    rule, seed_rule, scheduled = (
        structure.host_optimizer,
        structure.seed_optimizer,
        table.host._replace(lr=rates.host[step]),
    )
    host = update(rule, rows.host, result.host, scheduled, None, rates.host_decays)
    seeds, gates = [], []
    for slot, listed in enumerate(plan.slots):
        own = table.seeds._replace(lr=rates.seeds[step, slot])
        decays, opens = rates.seed_decays[slot], rates.gate_decays[slot]
        seeds.append(update(seed_rule, rows.seeds[slot], result.seeds[slot], own, listed.envs, decays))
        gates.append(update(seed_rule, rows.gates[slot], result.gates[slot], own, listed.gate_envs, opens))
    return rows._replace(host=host, seeds=tuple(seeds), gates=tuple(gates))


def update(
    rule: Optimizer, weights: Weights, grad: Tensor, rates: Rates, owners: Tensor | None, decays: Tensor
) -> Weights:
    """One optimizer step of some rows [n, P], clipping included, in one pass of the library.

    Args:
      rule: one of ``update.KNOWN``.
      weights, grad: the rows.
      rates: numbers of every environment.
      owners: int64 [n]; environment of each row; None: its own number.
      decays: bool [P] or [n, P]; the columns that a decoupled decay shrinks.
    """
    if not weights.params.shape[0]:
        return weights
    params, moments, steps = weights
    return Weights(*update_rows(rule.name, (params, moments, grad, steps + 1), rates, owners, decays), steps + 1)


def _seed_gradients(structure: Structure, plan: Plan, result: NetworkGradients) -> list[SlotGradients]:
    found = []
    for slot, listed, grads in zip(structure.slots, plan.slots, result.seeds, strict=True):
        parts = grads.split([count for _, count in listed.kinds]) if listed.kinds else ()
        pairs = zip(listed.kinds, parts, strict=True)
        own = tuple(part[:, : slot.row(kind).size] for (kind, _), part in pairs)
        found.append(
            SlotGradients(tuple(kind for kind, _ in listed.kinds), own, listed.row_of.clamp(min=0), listed.row_of >= 0)
        )
    return found


def _finite(plan: Plan, rows: Rows) -> Tensor:
    """Whether all trained parameters and moments of an environment are finite, bool [E]."""
    finite = rows_finite(rows.host.params, rows.host.moments)
    for listed, seed, gate in zip(plan.slots, rows.seeds, rows.gates, strict=True):
        for envs, weights in ((listed.envs, seed), (listed.gate_envs, gate)):
            if envs.shape[0]:
                sound = rows_finite(weights.params, weights.moments)
                finite = finite.index_copy(0, envs, finite.index_select(0, envs) & sound)
    return finite


def minibatch_step(
    network: Network, hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, batch: Batch
) -> tuple[Learners, Epoch]:
    """``minibatch_step`` of the definition: an epoch of one minibatch, which is its own dataset."""
    count, samples = batch.inputs.shape[:2]
    order = torch.arange(count * samples).reshape(count, 1, samples)
    inputs, targets = batch.inputs.flatten(0, 1).contiguous(), batch.targets.flatten(0, 1)
    zero = torch.zeros(count, 2, dtype=torch.int64)
    return epoch(network, hypers, plan, learners, alphas, Batches(inputs, targets, order, zero, zero[:, 0]))
