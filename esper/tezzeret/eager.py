"""The definition of training and evaluation: what Esper computes, in plain tensors and pure functions. Read it first.

``forward`` takes features through a host and the seeds in its slots. ``minibatch_step`` is one step of SGD for every
host and every active seed, ``epoch`` a fold over minibatches, ``evaluate`` the validation of every network and of its
counterfactuals. Every other backend computes the same, faster; tests hold them to this one.

Environments share no parameters, so the gradient of the *sum* of their losses is the stack of their own gradients.
Everything here can be differentiated from outside, to any order and in both modes: with respect to initial numbers,
learning rates and alphas, through any number of steps.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.kasmina import arena
from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure
from esper.leyline.events import Epoch
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners
from esper.tezzeret.backend import Backend, WatchedBatches
from esper.tezzeret.batches import Batch, Batches, batch_at
from esper.tezzeret.gradients import compute_gradients
from esper.tezzeret.health import MinibatchGradients, SlotGradients, measure_health, rows_finite
from esper.tezzeret.learn import (
    Gradients,
    LearnerRows,
    RateTable,
    alphas_of,
    gather,
    learn,
    numbers_of,
    rate_table,
    scatter,
)
from esper.tezzeret.plan import EvaluationPlan, Plan, SlotRows, make_plan, plan_evaluation, plan_with
from esper.tezzeret.score import Scores, evaluation_numbers, infer, score_samples
from esper.tezzeret.units import Call, plain, pulled, recomputed
from esper.tezzeret.walk import BlockRecord, Mode, PassInputs, Tape, depart, walk

plan = make_plan
"""(structure, table, device) -> plan."""


class MinibatchResult(NamedTuple):
    """One minibatch."""

    rows: LearnerRows
    loss: Tensor  # [E]
    score: Tensor  # [E]
    grads: Gradients


def forward(
    structure: Structure, plan: Plan, learners: Learners, alphas: Tensor, batch: Batch
) -> tuple[Tensor, Learners]:
    """The forward pass of training.

    Args:
      structure: what the networks are.
      plan: of their slots.
      learners: [E].
      alphas: [E, S]; 0 where a seed trains behind the host.
      batch: inputs; targets are not looked at.

    Returns:
      outputs [E, B, ..., C], and the learners with new buffers.
    """
    rows = gather(structure.slots, plan, learners)
    blocks = arena.split_blocks(structure.host, rows.host.params)
    numbers = numbers_of(structure, blocks, rows, alphas_of(plan, alphas))
    places = range(len(structure.route))
    start, mode = depart(structure, batch.inputs), Mode(True, plain, batch.key)
    flow, tape = walk(structure, plan.slots, numbers, start, places, mode)
    outputs = flow.h.to(structure.config.precision.dtype)
    return outputs, scatter(structure.slots, plan, learners, _with_buffers(structure, rows, tape))


def minibatch_step(
    structure: Structure,
    hypers: HyperParams,
    plan: Plan,
    learners: Learners,
    alphas: Tensor,
    batch: Batch,
    call: Call = pulled,
) -> tuple[Learners, Epoch]:
    """One step of SGD: gradients, clipping, update, for every host and every active seed.

    Args:
      structure: what the networks are.
      hypers: learning rates and the like.
      plan: of their slots.
      learners: [E].
      alphas: [E, S].
      batch: inputs and targets.
      call: how units are called.

    Returns:
      the learners, and what was seen.
    """
    rows = gather(structure.slots, plan, learners)
    step = train_rows(structure, call, rate_table(hypers), plan, rows, alphas_of(plan, alphas), batch)
    measures = measure(structure, hypers, plan, step, (step.loss, step.score), 1)
    return scatter(structure.slots, plan, learners, step.rows), measures


def epoch(
    structure: Structure,
    hypers: HyperParams,
    plan: Plan,
    learners: Learners,
    alphas: Tensor,
    batches: Batches,
    call: Call = pulled,
) -> tuple[Learners, Epoch]:
    """All minibatches of an epoch, one after the other: ``minibatch_step``, folded.

    Args:
      structure, hypers, plan, learners, alphas, call: as in ``minibatch_step``.
      batches: k minibatches.
    """
    return watched_epoch(structure, hypers, plan, learners, alphas, WatchedBatches(batches), call)[:2]


def watched_epoch(
    structure: Structure,
    hypers: HyperParams,
    plan: Plan,
    learners: Learners,
    alphas: Tensor,
    watched: WatchedBatches,
    call: Call = pulled,
) -> tuple[Learners, Epoch, Any]:
    """The same, with what a fold keeps of every minibatch's gradients; see ``WatchedBatches``."""
    table, rows, weights = rate_table(hypers), gather(structure.slots, plan, learners), alphas_of(plan, alphas)
    batches, kept, fold = watched
    loss = score = torch.zeros_like(alphas[:, :0]).sum(1)
    for number in range(batches.length):
        step = train_rows(structure, call, table, plan, rows, weights, batch_at(structure, batches, number))
        rows, loss, score = step.rows, loss + step.loss, score + step.score
        kept = kept if fold is None else fold(kept, seen_gradients(structure, plan, step.grads))
    measures = measure(structure, hypers, plan, step, (loss, score), batches.length)
    return scatter(structure.slots, plan, learners, rows), measures, kept


def evaluate(
    structure: Structure,
    hypers: HyperParams,
    plan: Plan,
    learners: Learners,
    alphas: Tensor,
    samples: tuple[Tensor, Tensor],
    wanted: Counterfactuals,
) -> Scores:
    """Losses and scores of every environment, and scores of its counterfactuals, on the same samples.

    Args:
      structure, plan, learners, alphas: of the environments as they are.
      hypers: ``alpha_target`` of seeds that are switched on.
      samples: inputs [V, *input_shape] and targets [V, ...].
      wanted: other networks; they come behind the E environments.

    Returns:
      scores, L = E + the number of networks wanted.
    """
    tree, numbers = prepare(structure, hypers, plan, learners, alphas, wanted)
    return score_samples(structure, partial(infer, structure, tree, numbers), samples, alphas.shape[0], tree.rows)


def prepare(
    structure: Structure, hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, wanted: Counterfactuals
) -> tuple[EvaluationPlan, PassInputs]:
    """The lanes of an evaluation, and their numbers."""
    tree = plan_evaluation(structure, plan, wanted, alphas.device)
    return tree, evaluation_numbers(structure, hypers.alpha_target, tree, learners, alphas, plan.padded)


def train_rows(
    structure: Structure,
    call: Call,
    table: RateTable,
    plan: Plan,
    rows: LearnerRows,
    alphas: tuple[Tensor, ...],
    batch: Batch,
) -> MinibatchResult:
    """``minibatch_step`` on compact rows; ``call`` is how units are called.

    With ``config.accumulate`` above 1 the minibatch is gone through in so many parts, one after the other, and their
    gradients are averaged; the features of one part are kept at a time.
    """
    parts = batch.parts(structure.config.accumulate)
    found: list[tuple[Gradients, Tensor, Tensor]] = []  # a called alias is more than Dynamo traces
    for part in parts:
        grads, (loss, score), tape = compute_gradients(structure, call, table, plan, rows, alphas, part)
        rows = _with_buffers(structure, rows, tape)
        found = [_sum(*found, (grads, loss, score))]
    grads, loss, score = found[0]
    if len(parts) > 1:
        grads = Gradients(grads.host / len(parts), tuple(each / len(parts) for each in grads.seeds))
        loss, score = loss / len(parts), score / len(parts)
    return MinibatchResult(learn(structure, call, table, plan, rows, grads), loss, score, grads)


def _sum(
    first: tuple[Gradients, Tensor, Tensor], *more: tuple[Gradients, Tensor, Tensor]
) -> tuple[Gradients, Tensor, Tensor]:
    """Gradients, losses and scores, each added up."""
    for grads, loss, score in more:
        seeds = tuple(one + other for one, other in zip(first[0].seeds, grads.seeds, strict=True))
        first = Gradients(first[0].host + grads.host, seeds), first[1] + loss, first[2] + score
    return first


def _with_buffers(structure: Structure, rows: LearnerRows, tape: Tape) -> LearnerRows:
    """The rows with the buffers that the tape holds."""
    held = list(rows.seed_buffers)
    blocks = []
    for place, record in zip(structure.route, tape, strict=True):
        if isinstance(record, BlockRecord):
            blocks.append(record.buffers)
        else:
            held[place.number] = record.buffers
    return rows._replace(buffers=torch.cat(blocks, dim=1), seed_buffers=tuple(held))


def measure(
    structure: Structure,
    hypers: HyperParams,
    plan: Plan,
    step: MinibatchResult,
    sums: tuple[Tensor, Tensor],
    count: int,
) -> Epoch:
    """What an epoch of ``count`` minibatches was seen to do; ``sums`` of their losses and scores."""
    loss, score = sums
    health = measure_health(structure, hypers, *seen_gradients(structure, plan, step.grads))
    finite = torch.isfinite(loss) & torch.isfinite(health.host_norm)
    finite = finite & rows_finite(step.rows.host.params, step.rows.host.moments)
    for listed, seeds in zip(plan.slots, step.rows.seeds, strict=True):
        if listed.groups:
            sound = rows_finite(seeds.params, seeds.moments)
            finite = finite & (sound.index_select(0, listed.row_of) | ~listed.present)
    return Epoch(loss / count, 100 * score / count, finite, health)


def seen_gradients(structure: Structure, plan: Plan, grads: Gradients) -> MinibatchGradients:
    """A minibatch's gradients for whoever measures them."""
    seeds = (
        SlotGradients(
            tuple(group.blueprint for group in listed.groups),
            _own_parts(slot, listed, rows),
            listed.row_of,
            listed.present,
        )
        for slot, listed, rows in zip(structure.slots, plan.slots, grads.seeds, strict=True)
    )
    return MinibatchGradients(grads.host, tuple(seeds))


def _own_parts(slot: Slot, listed: SlotRows, rows: Tensor) -> tuple[Tensor, ...]:
    """Per group, the numbers of its blueprint: rows [n, W] -> [n_k, P_k] each."""
    parts = zip(rows.split(listed.sizes), listed.groups, strict=True) if listed.groups else ()
    return tuple(part[:, : slot.row(group.blueprint).size] for part, group in parts)


def build(structure: Structure, device: torch.device) -> Backend:
    """The definition as a backend: for reading and debugging, for every device and dtype, and to be differentiated."""
    del device
    call = recomputed if structure.config.recompute else pulled
    return Backend(
        name="eager",
        plan_with=partial(plan_with, structure),
        forward=partial(forward, structure),
        minibatch_step=partial(minibatch_step, structure, call=call),
        epoch=partial(epoch, structure, call=call),
        evaluate=partial(evaluate, structure),
        watched_epoch=partial(watched_epoch, structure, call=call),
        describe=lambda: ("eager: the definition, operation by operation", *structure.computing),
    )
