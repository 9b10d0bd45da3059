"""Inference of all lanes of an evaluation, and what samples say of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina import arena
from esper.kasmina.structure import Structure
from esper.leyline.learners import Learners
from esper.tezzeret.learn import with_sink
from esper.tezzeret.plan import EvaluationPlan
from esper.tezzeret.units import Call, plain
from esper.tezzeret.walk import Mode, PassInputs, depart, walk

Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(inputs [B, *input_shape], targets [B, ...]) -> losses [E, B, ...] of the environments as they are, and scores
[lanes, B, ...] of all, position by position."""


class Scores(NamedTuple):
    """What samples say, one by one; of a sequence, the mean over its positions."""

    losses: Tensor  # [E, V]
    scores: Tensor  # [L, V]; of all networks that were asked for
    class_hits: Tensor  # [E, C]; scores summed up by true class; 0 where targets are no classes


def evaluation_numbers(
    structure: Structure, alpha_target: Tensor, tree: EvaluationPlan, learners: Learners, alphas: Tensor, padded: bool
) -> PassInputs:
    """Collect the numbers of all lanes, once per evaluation.

    Args:
      structure: layouts.
      alpha_target: [] or [E]; of seeds in TRAINING that are switched on.
      tree: the lanes.
      learners: [E].
      alphas: [E, S].
      padded: whether rows of number E are sinks.
    """
    blocks, buffers = (
        arena.split_blocks(structure.host, learners.host.params),
        arena.split_buffers(structure.host, learners.buffers),
    )
    seeds, held, weights = [], [], []
    target = alpha_target.expand(alphas.shape[0])
    tables = [learners.seeds.params, learners.seed_buffers, alphas, target]
    if padded:
        tables = [with_sink(table) for table in tables]
    params, states, now, on = tables
    for number, (slot, listed) in enumerate(zip(structure.slots, tree.slots, strict=True)):
        parts = (params[:, slot.columns], states[:, slot.buffer_columns], now[:, number], on)
        row, state, alpha, switched = (part.index_select(0, listed.rows) for part in parts)
        seeds.append(row)
        held.append(state)
        weights.append(torch.where(listed.training, switched, alpha))

    def lanes(table: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pairs = zip(table, tree.envs, strict=True)
        return tuple(rows if envs is None else rows.index_select(0, envs) for rows, envs in pairs)

    return PassInputs(lanes(blocks), lanes(buffers), tuple(seeds), tuple(held), tuple(weights))


def infer(
    structure: Structure, tree: EvaluationPlan, numbers: PassInputs, inputs: Tensor, call: Call = plain
) -> Tensor:
    """Outputs [L, B, ..., C] of all lanes; inputs [E, B, *input_shape]."""
    start = depart(structure, inputs)
    flow, _ = walk(structure, tree.slots, numbers, start, range(len(structure.route)), Mode(False, call))
    return flow.h.to(structure.config.precision.dtype)


def score_samples(
    structure: Structure,
    outputs_of: Callable[[Tensor], Tensor],
    samples: tuple[Tensor, Tensor],
    num_envs: int,
    rows: Tensor,
) -> Scores:
    """Scores from the outputs of all lanes.

    Args:
      structure: objective, and samples per forward pass.
      outputs_of: inputs [E, B, ...] -> outputs [lanes, B, ..., C], the first E the environments as they are.
      samples: inputs [V, *input_shape], targets [V, ...].
      num_envs: E.
      rows: int64 [L]; the lanes of the networks that were asked for.
    """
    objective = structure.objective

    def measure(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = outputs_of(inputs.expand(num_envs, *inputs.shape))
        wide = targets.expand(outputs.shape[0], *targets.shape)
        each = objective.score(outputs, wide)
        return objective.loss(outputs[:num_envs], wide[:num_envs]), each

    return collect_scores(structure, measure, samples, rows)


def collect_scores(structure: Structure, measure: Measure, samples: tuple[Tensor, Tensor], rows: Tensor) -> Scores:
    """Scores from what is said of a few samples at a time; arguments as of ``score_samples``."""
    size, losses, scores, hits = structure.config.eval_batch_size, [], [], []
    for inputs, targets in zip(samples[0].split(size), samples[1].split(size), strict=True):
        loss, each = measure(inputs, targets)
        losses.append(_per_sample(loss))
        scores.append(_per_sample(each))
        hits.append(_by_class(structure.host.num_outputs, each[: loss.shape[0]], targets))
    return Scores(torch.cat(losses, 1), torch.cat(scores, 1).index_select(0, rows), torch.stack(hits).sum(0))


def _per_sample(values: Tensor) -> Tensor:
    return values.flatten(2).mean(2) if values.dim() > 2 else values


def _by_class(num_classes: int, scores: Tensor, targets: Tensor) -> Tensor:
    zero = scores.new_zeros(scores.shape[0], num_classes)
    if targets.is_floating_point():
        return zero
    return zero.index_add(1, targets.flatten(), scores.flatten(1))
