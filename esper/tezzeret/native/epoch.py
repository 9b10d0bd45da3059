"""An epoch of the native network: rows collected once, one call of the library for k minibatches, rows written back."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.kasmina.optimizers import Optimizer, Rates, schedule
from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure
from esper.leyline.config import Isolation
from esper.leyline.events import Epoch
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners, Weights
from esper.tezzeret.backend import WatchedBatches
from esper.tezzeret.batches import Batch, Batches, batch_at
from esper.tezzeret.health import MinibatchGradients, SlotGradients, measure_health, rows_finite
from esper.tezzeret.learn import RateTable, rate_table
from esper.tezzeret.native.learning import Averages, Learning
from esper.tezzeret.native.library import as_numbers
from esper.tezzeret.native.network import Network
from esper.tezzeret.native.plan import Plan, SlotRows
from esper.tezzeret.native.run import BatchIndex, NetworkGradients, RowIndex, SeedRows, train
from esper.tezzeret.native.update import Update


class Rows(NamedTuple):
    """What learns, in compact rows, which step in place: they are nobody else's."""

    host: Weights  # [E, P]
    buffers: Tensor  # [E, N]
    seeds: tuple[Weights, ...]  # per slot [n, W]; a blueprint's numbers, then zeros up to the widest one's length
    gates: tuple[Weights, ...]  # per slot [g, G]
    seed_buffers: tuple[Tensor, ...]  # per slot [n, R]


class Schedule(NamedTuple):
    """Learning rates of an epoch's steps."""

    host: Tensor  # [k, E, 1]
    seeds: Tensor  # [k, S, E, 1]


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
    host = Weights(*(part.clone(memory_format=torch.contiguous_format) for part in learners.host))
    held = learners.buffers.clone(memory_format=torch.contiguous_format)
    return Rows(host, held, tuple(seeds), tuple(gates), tuple(buffers))


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
    return watched_epoch(network, hypers, plan, learners, alphas, WatchedBatches(batches))[:2]


def watched_epoch(
    network: Network, hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, watched: WatchedBatches
) -> tuple[Learners, Epoch, Any]:
    """``watched_epoch`` of the definition: where gradients are watched, a call of the library for every minibatch."""
    structure, kept, fold = network.structure, watched.start, watched.fold
    batches = watched.batches._replace(inputs=as_numbers(watched.batches.inputs))
    rows = gather(structure, plan, learners)
    learning = _learning(
        network, rate_table(hypers), plan, rows, _schedule(hypers, structure, learners, batches.length)
    )
    seeds = _seed_rows(plan, rows, alphas)
    learns_own = structure.config.isolation is Isolation.OBJECTIVE
    own = hypers.alpha_target.expand(alphas.shape[0]).contiguous() if learns_own else None
    seen = list[tuple[Tensor, Tensor]]()
    for first, inputs, targets in _minibatches(structure, batches, fold is not None):
        part = (inputs, targets, rows.host.params, seeds, own, learning.behind(first))
        result = train(network.train, *part)
        seen.append((result.losses, result.hits))
        kept = kept if fold is None else fold(kept, _seen_gradients(structure, plan, result))
    loss, score = _sums(alphas, seen, _is_as_stored(structure))
    rows = _aged(rows, batches.length)
    health = measure_health(structure, hypers, *_seen_gradients(structure, plan, result))
    finite = torch.isfinite(loss) & torch.isfinite(health.host_norm) & _finite(plan, rows)
    measures = Epoch(loss / batches.length, 100 * score / batches.length, finite, health)
    return scatter(structure, plan, learners, rows), measures, kept


def _sums(alphas: Tensor, seen: Sequence[tuple[Tensor, Tensor]], whole: bool) -> tuple[Tensor, Tensor]:
    """Mean losses and scores of minibatches, added up [E]; ``whole``: as if one call had given all of them."""
    calls = [tuple(torch.cat(parts) for parts in zip(*seen, strict=True))] if whole else seen
    loss = score = torch.zeros_like(alphas[:, :0]).sum(1)
    for losses, hits in calls:
        loss, score = loss + losses.mean(2).sum(0), score + hits.mean(2).sum(0)
    return loss, score


def _seed_rows(plan: Plan, rows: Rows, alphas: Tensor) -> list[SeedRows]:
    parts = zip(plan.slots, rows.seeds, rows.gates, rows.seed_buffers, strict=True)
    return [
        SeedRows(
            rows=RowIndex(listed.blueprints, listed.row_of, listed.gate_rows(torch.arange(listed.gated.shape[0]))),
            alpha=alphas[:, slot].index_select(0, listed.envs),
            params=seed.params,
            buffers=buffers,
            owners=None,
            gate_params=gate.params,
            training=listed.training,
            isolated=listed.isolated,
            merged=listed.merged,
        )
        for slot, (listed, seed, gate, buffers) in enumerate(parts)
    ]


def _is_as_stored(structure: Structure) -> bool:
    """Whether samples are read as they are."""
    config = structure.config
    return not (config.crop_padding or config.mirror or structure.augment is not None)


def _minibatches(
    structure: Structure, batches: Batches, singly: bool
) -> Iterator[tuple[int, Tensor | BatchIndex, Tensor]]:
    """What the library takes in one call: number of the first minibatch, inputs, targets [k, E, B, ...].

    Where samples are read as they are, all minibatches by their places in the dataset; else, and where they are asked
    for ``singly``, one after the other.
    """
    if not _is_as_stored(structure):
        for step in range(batches.length):
            batch = batch_at(structure, batches, step)
            yield step, batch.inputs, batch.targets.unsqueeze(0)
        return
    picks, targets = batches.picks, batches.all_targets
    for part in [slice(step, step + 1) for step in range(batches.length)] if singly else [slice(None)]:
        yield part.start or 0, BatchIndex(batches.inputs, picks[part]), targets[part]


def _learning(network: Network, table: RateTable, plan: Plan, rows: Rows, planned: Schedule) -> Learning:
    """How the rows learn, in place; a seed and its gate are clipped each by its own norm."""
    structure = network.structure
    host_decays, seed_decays, gate_decays = structure.host_decays, *_decays(structure, plan)

    def update(rule: Optimizer, weights: Weights, rates: Rates, owners: Tensor | None, decays: Tensor) -> Update:
        return Update(rule.name, weights.params, weights.moments, weights.steps + 1, rates, owners, decays)

    host = update(structure.host_optimizer, rows.host, table.host._replace(lr=planned.host), None, host_decays)
    seeds, gates, rule = [], [], structure.seed_optimizer
    for slot, listed in enumerate(plan.slots):
        rates = table.seeds._replace(lr=planned.seeds[:, slot])
        seeds.append(update(rule, rows.seeds[slot], rates, listed.envs, seed_decays[slot]))
        gates.append(update(rule, rows.gates[slot], rates, listed.gate_envs, gate_decays[slot]))
    held = tuple(map(Averages, rows.seed_buffers, network.seeds_tracked))
    return Learning(host, tuple(seeds), tuple(gates), Averages(rows.buffers, network.tracked), held)


def _aged(rows: Rows, steps: int) -> Rows:
    """The rows after so many optimizer steps."""
    seeds, gates = (tuple(w._replace(steps=w.steps + steps) for w in part) for part in (rows.seeds, rows.gates))
    return rows._replace(host=rows.host._replace(steps=rows.host.steps + steps), seeds=seeds, gates=gates)


def _schedule(hypers: HyperParams, structure: Structure, learners: Learners, count: int) -> Schedule:
    config, table = structure.config, rate_table(hypers)
    taken = torch.cat((learners.host.steps.unsqueeze(1), learners.seeds.steps), dim=1)
    ahead = torch.arange(count, device=taken.device).reshape(-1, 1, 1)
    begun = (taken + ahead).to(table.host.lr.dtype) / config.steps_per_epoch
    factor = schedule(table.warmup, table.final, begun, 1 / config.steps_per_epoch, config.horizon)
    seeds = (table.seeds.lr * factor[:, :, 1:]).transpose(1, 2).unsqueeze(3).contiguous()
    return Schedule((table.host.lr * factor[:, :, :1]).contiguous(), seeds)


def _decays(structure: Structure, plan: Plan) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Per slot the columns that a decoupled decay shrinks, of seeds [n, W] and of gates [g, G]; none without one."""
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


def _seen_gradients(structure: Structure, plan: Plan, result: NetworkGradients) -> MinibatchGradients:
    found = []
    for slot, listed, grads in zip(structure.slots, plan.slots, result.seeds, strict=True):
        parts = grads.split([count for _, count in listed.kinds]) if listed.kinds else ()
        pairs = zip(listed.kinds, parts, strict=True)
        own = tuple(part[:, : slot.row(kind).size] for (kind, _), part in pairs)
        found.append(
            SlotGradients(tuple(kind for kind, _ in listed.kinds), own, listed.row_of.clamp(min=0), listed.row_of >= 0)
        )
    return MinibatchGradients(result.host, tuple(found))


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
