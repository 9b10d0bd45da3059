"""The definition as two graphs: one for a minibatch, one for the inference of all lanes.

Plans are padded, and the number of rows of every group is symbolic, so no mix of seeds compiles anything anew.
Collecting the rows, the batches and writing back are a handful of operations an epoch; they stay as they are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.structure import Structure
from esper.leyline.events import Epoch
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners, Weights
from esper.tezzeret import eager
from esper.tezzeret.backend import Backend, WatchedBatches
from esper.tezzeret.batches import Batch, Batches, batch_at
from esper.tezzeret.guard import without_derivatives
from esper.tezzeret.inductor.compiled import compiled
from esper.tezzeret.inductor.packing import (
    PackedLanes,
    PackedObjective,
    PackedSeeds,
    mark,
    pack_lanes,
    pack_objective,
    pack_seeds,
    repack_seeds,
    unpack_lanes,
    unpack_objective,
    unpack_seeds,
)
from esper.tezzeret.inductor.plainly import OrPlainly
from esper.tezzeret.learn import LearnerRows, RateTable, alphas_of, gather, rate_table, scatter
from esper.tezzeret.plan import EvaluationPlan, Plan, plan_evaluation
from esper.tezzeret.score import Scores, evaluation_numbers, infer, score_samples
from esper.tezzeret.units import pulled


class Training(NamedTuple):
    """What a compiled minibatch takes and changes."""

    host: Weights
    buffers: Tensor
    seeds: tuple[PackedSeeds, ...]


class MinibatchMeasures(NamedTuple):
    """What else it gives."""

    loss: Tensor
    score: Tensor
    grads: eager.Gradients


class Compiled(NamedTuple):
    """The compiled functions of a structure."""

    structure: Structure
    step: Callable[[Training, RateTable, tuple[PackedObjective | None, ...], Batch], tuple[Training, MinibatchMeasures]]
    infer: Callable[[PackedLanes, Tensor], Tensor]


def build_graph(structure: Structure, compiler: str = "inductor") -> Backend:
    """The backend of one graph for a minibatch and one for an inference."""
    functions: tuple[Callable[..., Any], ...] = (partial(_step, structure), partial(_infer, structure))
    names = ("a minibatch", "an inference")
    step, infer = (
        OrPlainly(name, function, compiled(function, compiler)) for name, function in zip(names, functions, strict=True)
    )
    own = Compiled(structure, step, infer)
    backend = Backend(
        name="inductor",
        plan_with=partial(eager.plan_with, structure, padded=True),
        forward=partial(eager.forward, structure),
        minibatch_step=partial(minibatch_step, own),
        epoch=partial(epoch, own),
        evaluate=partial(evaluate, own),
        watched_epoch=partial(watched_epoch, own),
        describe=lambda: (
            "inductor: a minibatch and an inference as one compiled graph each",
            *(f"as it is written: {run.what}: {run.reason}" for run in (step, infer) if run.reason is not None),
            *structure.computing,
        ),
        failures=lambda: step.failures + infer.failures,
    )
    return without_derivatives(backend)


def _step(
    structure: Structure,
    state: Training,
    table: RateTable,
    objectives: tuple[PackedObjective | None, ...],
    batch: Batch,
) -> tuple[Training, MinibatchMeasures]:
    """``train_rows`` of the definition on packed rows."""
    moments = structure.seed_optimizer.num_moments
    slots = [unpack_seeds(slot, each, moments) for slot, each in zip(structure.slots, state.seeds, strict=True)]
    passes = tuple(unpack_objective(structure.slots, each) for each in objectives)
    plan = Plan(None, tuple(slot.listed for slot in slots), passes, None, True)  # type: ignore[arg-type]
    rows = LearnerRows(
        state.host, state.buffers, tuple(slot.weights for slot in slots), tuple(slot.buffers for slot in slots)
    )
    alphas = tuple(slot.alpha for slot in slots)
    step = eager.train_rows(structure, pulled, table, plan, rows, alphas, batch)
    seeds = tuple(
        repack_seeds(packed, slot.listed, weights, buffers)
        for packed, slot, weights, buffers in zip(
            state.seeds, slots, step.rows.seeds, step.rows.seed_buffers, strict=True
        )
    )
    return Training(step.rows.host, step.rows.buffers, seeds), MinibatchMeasures(step.loss, step.score, step.grads)


def _infer(structure: Structure, packed: PackedLanes, inputs: Tensor) -> Tensor:
    """``infer`` of the definition on packed lanes."""
    slots, numbers = unpack_lanes(structure, packed)
    return infer(structure, EvaluationPlan(slots, (), inputs), numbers, inputs)


def _run(
    own: Compiled,
    hypers: HyperParams,
    plan: Plan,
    learners: Learners,
    alphas: Tensor,
    drawn: tuple[Sequence[Callable[[], Batch]], WatchedBatches | None],
) -> tuple[Learners, Epoch, Any]:
    """Minibatches, one after the other; where they are watched, with what is kept of their gradients."""
    batches, watched = drawn
    kept, fold = (None, None) if watched is None else (watched.start, watched.fold)
    structure, rows = own.structure, gather(own.structure.slots, plan, learners)
    state = Training(rows.host, rows.buffers, pack_seeds(plan.slots, rows, alphas_of(plan, alphas)))
    table, objectives = rate_table(hypers), tuple(pack_objective(passage) for passage in plan.objectives)
    loss = score = torch.zeros_like(alphas[:, :0]).sum(1)
    for batch in batches:
        mark([(each.slot.groups, each.real) for each in state.seeds])
        state, seen = own.step(state, table, objectives, batch())
        loss, score = loss + seen.loss, score + seen.score
        kept = kept if fold is None else fold(kept, eager.seen_gradients(structure, plan, seen.grads))
    moments = structure.seed_optimizer.num_moments
    slots = [unpack_seeds(slot, each, moments) for slot, each in zip(structure.slots, state.seeds, strict=True)]
    after = LearnerRows(
        state.host, state.buffers, tuple(slot.weights for slot in slots), tuple(slot.buffers for slot in slots)
    )
    step = eager.MinibatchResult(after, seen.loss, seen.score, seen.grads)
    measures = eager.measure(structure, hypers, plan, step, (loss, score), len(batches))
    return scatter(structure.slots, plan, learners, after), measures, kept


def epoch(
    own: Compiled, hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, batches: Batches
) -> tuple[Learners, Epoch]:
    """``epoch`` of the definition."""
    return watched_epoch(own, hypers, plan, learners, alphas, WatchedBatches(batches))[:2]


def watched_epoch(
    own: Compiled, hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, watched: WatchedBatches
) -> tuple[Learners, Epoch, Any]:
    """``watched_epoch`` of the definition."""
    batches = watched.batches
    drawn = [partial(batch_at, own.structure, batches, number) for number in range(batches.length)]
    return _run(own, hypers, plan, learners, alphas, (drawn, watched))


def minibatch_step(
    own: Compiled, hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, batch: Batch
) -> tuple[Learners, Epoch]:
    """``minibatch_step`` of the definition."""
    return _run(own, hypers, plan, learners, alphas, ([lambda: batch], None))[:2]


def evaluate(
    own: Compiled,
    hypers: HyperParams,
    plan: Plan,
    learners: Learners,
    alphas: Tensor,
    samples: tuple[Tensor, Tensor],
    wanted: Counterfactuals,
) -> Scores:
    """``evaluate`` of the definition."""
    structure, num_envs = own.structure, alphas.shape[0]
    tree = plan_evaluation(structure, plan, wanted, alphas.device)
    packed = pack_lanes(tree, evaluation_numbers(structure, hypers.alpha_target, tree, learners, alphas, padded=True))
    return score_samples(structure, partial(own.infer, packed), samples, num_envs, tree.rows)
