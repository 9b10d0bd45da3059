"""The oracle: the same computation the obvious way, for tests. Every blueprint for every environment, then a choice.

Nothing is shared with the definition but the modules themselves: features of all seeds are computed and selected,
autograd takes the gradient with ``detach`` where the life cycle stops it, counterfactuals run from the input to the
outputs one beside the other. It costs K times the arithmetic, and gives no derivatives from outside.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.counterfactuals import OFF, ON, Counterfactuals, with_trunk
from esper.kasmina.optimizers import Rates, clip_rows, schedule
from esper.kasmina.slot_table import SlotTable
from esper.kasmina.structure import Structure, is_gated
from esper.leyline.config import Isolation
from esper.leyline.events import Epoch, Health
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners, Weights
from esper.leyline.stages import ACTIVE, MERGED, Stage, is_in
from esper.tezzeret.backend import Backend, BackendError, sending_lists
from esper.tezzeret.batches import Batch, Batches, batch_at
from esper.tezzeret.guard import without_derivatives
from esper.tezzeret.health import SlotGradients, measure_health, rows_finite
from esper.tezzeret.oracle_network import NetworkParams, NetworkPass, SlotContents
from esper.tezzeret.score import Scores, score_samples
from esper.utils.transforms import outside_inference


def _held(table: SlotTable, device: torch.device) -> SlotContents:
    return SlotContents(*(torch.as_tensor(column, device=device) for column in table))


class Grads(NamedTuple):
    """Losses, scores, gradients and buffers of a minibatch."""

    loss: Tensor
    score: Tensor
    host: Tensor
    seeds: Tensor
    buffers: Tensor
    seed_buffers: Tensor


def gradients(
    structure: Structure, target: Tensor, held: SlotContents, learners: Learners, alphas: Tensor, batch: Batch
) -> Grads:
    """Autograd of the summed losses, and of every slot's own objective."""
    host, seeds = (
        part.params.detach().requires_grad_(part.params.numel() > 0) for part in (learners.host, learners.seeds)
    )
    rows = NetworkParams(host, learners.buffers, seeds, learners.seed_buffers, alphas)
    with torch.enable_grad():
        network = NetworkPass(structure, held, rows, True, batch.key)
        outputs = network.run(batch.inputs)
        loss = structure.objective.loss(outputs, batch.targets).flatten(1).mean(1)
        total = loss.sum()
        if structure.config.isolation is Isolation.OBJECTIVE:
            for slot in range(len(structure.slots)):
                total = total + _own_objective(structure, target, held, rows, slot, batch)
        leaves = [leaf for leaf in (host, seeds) if leaf.requires_grad]
        found = dict(zip(map(id, leaves), torch.autograd.grad(total, leaves, materialize_grads=True), strict=True))
    score = structure.objective.score(outputs, batch.targets).flatten(1).mean(1)
    cut = torch.cat([part.detach() for part in network.buffers], 1)
    kept = [part.detach() for part in network.seed_buffers]
    grads = (found[id(host)], found.get(id(seeds), seeds))
    return Grads(loss.detach(), score, *grads, cut, torch.cat(kept, 1) if kept else learners.seed_buffers)


def _own_objective(
    structure: Structure, target: Tensor, held: SlotContents, rows: NetworkParams, slot: int, batch: Batch
) -> Tensor:
    """The loss with this slot's seeds in TRAINING on, other seeds in TRAINING absent, and only theirs to learn."""
    mine = held.stage[:, slot] == int(Stage.TRAINING)
    columns = structure.slots[slot].columns
    inside = torch.zeros(rows.seeds.shape[1], dtype=torch.bool)
    inside[columns] = True
    seeds = torch.where(inside, rows.seeds, rows.seeds.detach())
    alphas = torch.where(
        mine.unsqueeze(1) & (torch.arange(rows.alphas.shape[1]) == slot), target.unsqueeze(1), rows.alphas
    )
    given = NetworkParams(rows.host.detach(), rows.buffers, seeds, rows.seed_buffers, alphas)
    outputs = NetworkPass(structure, held, given, True, batch.key).run(batch.inputs, own=slot)
    loss = structure.objective.loss(outputs, batch.targets).flatten(1).mean(1)
    return torch.where(mine, loss, 0.0).sum()


def minibatch_step(
    structure: Structure, hypers: HyperParams, plan: SlotTable, learners: Learners, alphas: Tensor, batch: Batch
) -> tuple[Learners, Epoch]:
    """``minibatch_step`` of the definition."""
    held, target = _held(plan, alphas.device), hypers.alpha_target.expand(alphas.shape[0])
    with torch.inference_mode(False):
        grads = gradients(structure, *outside_inference((target, held, learners, alphas, batch)))
    host = _update(structure, hypers, "host", learners.host, grads.host, structure.host_decays)
    seeds = _update_seeds(structure, hypers, held, learners.seeds, grads.seeds)
    health = _health(structure, hypers, held, grads)
    active = is_in(held.stage, ACTIVE)
    inside = active[:, structure.slot_of_column]
    finite = torch.isfinite(grads.loss) & torch.isfinite(health.host_norm) & rows_finite(host.params, host.moments)
    finite = finite & rows_finite(
        torch.where(inside, seeds.params, 0.0), torch.where(inside[:, None], seeds.moments, 0.0)
    )
    after = Learners(host, grads.buffers, seeds, grads.seed_buffers)
    return after, Epoch(grads.loss, 100 * grads.score, finite, health)


def _update(
    structure: Structure, hypers: HyperParams, who: str, weights: Weights, grad: Tensor, decays: Tensor
) -> Weights:
    """One step of rows [E, P], clipped by their norm; ``who`` is host or seed."""
    config = structure.config
    begun = weights.steps.to(grad.dtype) / config.steps_per_epoch
    factor = schedule(hypers.warmup_epochs, hypers.final_lr_fraction, begun, 1 / config.steps_per_epoch, config.horizon)
    named = (hypers[f"{who}_lr"] * factor, hypers[f"{who}_weight_decay"], hypers[f"{who}_clip"])
    shared = (hypers.momentum, hypers.adam_beta1, hypers.adam_beta2, hypers.adam_epsilon)
    rates = Rates(*(number.reshape(-1, 1) for number in (*named, *shared)))
    rule = structure.host_optimizer if who == "host" else structure.seed_optimizer
    return Weights(*rule.update(clip_rows(grad, rates.clip)[0], *weights, rates, decays))


def _update_seeds(
    structure: Structure, hypers: HyperParams, held: SlotContents, seeds: Weights, grad: Tensor
) -> Weights:
    """Every slot's blueprint and gate by itself, kept only where something learns there."""
    params, moments, steps = (leaf.clone() for leaf in seeds)
    gates = is_gated(held.blend) & is_in(held.stage, MERGED)
    if structure.config.isolation is Isolation.OBJECTIVE:
        gates = is_gated(held.blend) & is_in(held.stage, ACTIVE)
    for number, slot in enumerate(structure.slots):
        for k in slot.offers:
            mine = is_in(held.stage[:, number], ACTIVE) & (held.blueprint[:, number] == k)
            parts = [(slot.blueprint_columns(k), mine)]
            parts += [(slot.gate_columns, mine & gates[:, number])] if slot.gate.size else []
            for columns, who in parts:
                rows = Weights(seeds.params[:, columns], seeds.moments[:, :, columns], seeds.steps[:, number])
                rule = slot.decays[k][columns.start - slot.start : columns.stop - slot.start]
                new = _update(structure, hypers, "seed", rows, grad[:, columns], rule)
                params[:, columns] = torch.where(who[:, None], new.params, params[:, columns])
                moments[:, :, columns] = torch.where(who[:, None, None], new.moments, moments[:, :, columns])
            steps[:, number] = torch.where(mine, seeds.steps[:, number] + 1, steps[:, number])
    return Weights(params, moments, steps)


def _health(structure: Structure, hypers: HyperParams, held: SlotContents, grads: Grads) -> Health:
    """Each environment's own seed, one after the other."""
    found = []
    for number, slot in enumerate(structure.slots):
        present, kind = is_in(held.stage[:, number], ACTIVE), held.blueprint[:, number]
        envs = [torch.nonzero(present & (kind == k)).flatten() for k in slot.offers]
        kinds = [k for k, rows in zip(slot.offers, envs, strict=True) if rows.numel()]
        rows = [part for part in envs if part.numel()]
        index = torch.zeros_like(kind)
        if rows:
            index[torch.cat(rows)] = torch.arange(sum(part.numel() for part in rows), device=kind.device)
        parts = [grads.seeds[part, slot.blueprint_columns(k)] for k, part in zip(kinds, rows, strict=True)]
        found.append(SlotGradients(tuple(kinds), tuple(parts), index, present))
    return measure_health(structure, hypers, grads.host, found)


def epoch(
    structure: Structure, hypers: HyperParams, plan: SlotTable, learners: Learners, alphas: Tensor, batches: Batches
) -> tuple[Learners, Epoch]:
    """``epoch`` of the definition."""
    seen = []
    for number in range(batches.length):
        batch = batch_at(structure, batches, number)
        learners, epoch = minibatch_step(structure, hypers, plan, learners, alphas, batch)
        seen.append(epoch)
    losses, scores = (torch.stack([getattr(each, name) for each in seen]) for name in ("loss", "accuracy"))
    finite = seen[-1].finite & torch.isfinite(losses).all(0)
    return learners, Epoch(losses.mean(0), scores.mean(0), finite, seen[-1].health)


def evaluate(
    structure: Structure,
    hypers: HyperParams,
    plan: SlotTable,
    learners: Learners,
    alphas: Tensor,
    samples: tuple[Tensor, Tensor],
    wanted: Counterfactuals,
) -> Scores:
    """``evaluate`` of the definition: every network by itself, from the input to the outputs."""
    num_envs, device = alphas.shape[0], alphas.device
    every = with_trunk(wanted, num_envs)
    env, change = (torch.as_tensor(column, device=device) for column in every)
    held = SlotContents(*(column[env] for column in _held(plan, device)))
    target = hypers.alpha_target.expand(num_envs)[env].unsqueeze(1)
    switched = torch.where(change == OFF, 0.0, torch.where(change == ON, target, alphas[env]))
    learned = (learners.host.params, learners.buffers, learners.seeds.params, learners.seed_buffers)
    own = [part.detach()[env] for part in learned]
    rows = NetworkParams(own[0], own[1], own[2], own[3], switched)

    def outputs_of(inputs: Tensor) -> Tensor:
        return NetworkPass(structure, held, rows, False, None).run(inputs[:1].expand(env.shape[0], *inputs.shape[1:]))

    return score_samples(structure, outputs_of, samples, num_envs, torch.arange(env.shape[0], device=device))


def forward(
    structure: Structure, plan: SlotTable, learners: Learners, alphas: Tensor, batch: Batch
) -> tuple[Tensor, Learners]:
    """``forward`` of the definition."""
    learned = (learners.host.params, learners.buffers, learners.seeds.params, learners.seed_buffers)
    network = NetworkPass(structure, _held(plan, alphas.device), NetworkParams(*learned, alphas), True, batch.key)
    outputs = network.run(batch.inputs)
    kept = torch.cat(network.seed_buffers, 1) if network.seed_buffers else learners.seed_buffers
    return outputs, learners._replace(buffers=torch.cat(network.buffers, 1), seed_buffers=kept)


def build(structure: Structure, device: torch.device) -> Backend:
    """The oracle of a structure; its plan is the table itself."""
    del device
    if structure.config.accumulate > 1:
        raise BackendError(f"backend 'oracle': accumulate = {structure.config.accumulate}; expected 1")

    def plan(table: SlotTable, device: torch.device) -> SlotTable:
        del device
        return table

    backend = Backend(
        name="oracle",
        plan_with=sending_lists(plan),
        forward=partial(forward, structure),
        minibatch_step=partial(minibatch_step, structure),
        epoch=partial(epoch, structure),
        evaluate=partial(evaluate, structure),
        describe=lambda: ("oracle: every blueprint for every environment, then a choice",),
    )
    return without_derivatives(backend)
