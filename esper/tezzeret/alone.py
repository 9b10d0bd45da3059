"""Every environment as if it were alone: a backend that runs each of them as a batch of one.

What a library computes for one row of a batch may depend, in its last bit, on how many rows there are: matrix products
change their order of summation, and the group of seeds that train together has as many rows as there are environments
that hold such a seed. A batch of one is always the same batch. That is the whole of strict determinism for a backend
which promises no such thing itself; it costs one pass of operations for each environment.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.slot_table import SlotTable
from esper.leyline.events import Epoch
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners
from esper.tezzeret.backend import Backend, Plan, sending_lists
from esper.tezzeret.batches import Batch, Batches
from esper.tezzeret.score import Scores
from esper.utils.tree import leaves_of, map_leaves


def alone(backend: Backend) -> Backend:
    """A backend's functions, environment by environment.

    Returns:
      a backend of the same name, which shows no gradients. Law: whatever an environment gets does not depend on the
      number, the order or the numbers of the others, to the bit.
    """

    def plan(table: SlotTable, device: torch.device) -> Plan:
        count = table.stage.shape[0]
        return tuple(backend.plan(_row(table, index), device) for index in range(count))

    def forward(plan: Plan, learners: Learners, alphas: Tensor, batch: Batch) -> tuple[Tensor, Learners]:
        return _joined(
            [
                backend.forward(own, *(_row(part, index) for part in (learners, alphas, batch)))
                for index, own in enumerate(plan)
            ]
        )

    def minibatch_step(
        hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, batch: Batch
    ) -> tuple[Learners, Epoch]:
        return _joined(
            [
                backend.minibatch_step(numbers, own, *(_row(part, index) for part in (learners, alphas, batch)))
                for index, (numbers, own) in enumerate(zip(_numbers(hypers, len(plan)), plan, strict=True))
            ]
        )

    def epoch(
        hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, batches: Batches
    ) -> tuple[Learners, Epoch]:
        return _joined(
            [
                backend.epoch(numbers, own, _row(learners, index), _row(alphas, index), _own_batches(batches, index))
                for index, (numbers, own) in enumerate(zip(_numbers(hypers, len(plan)), plan, strict=True))
            ]
        )

    return backend._replace(
        plan_with=sending_lists(plan),
        forward=forward,
        minibatch_step=minibatch_step,
        epoch=epoch,
        evaluate=_evaluate_alone(backend),
        describe=lambda: (f"{backend.name}, strictly: every environment by itself", *backend.describe()),
        independent=True,
        watched_epoch=None,
    )


def _evaluate_alone(backend: Backend) -> Callable[..., Scores]:
    """``evaluate``; what is wanted of an environment comes behind its own row, in the order in which it was asked."""

    def evaluate(
        hypers: HyperParams,
        plan: Plan,
        learners: Learners,
        alphas: Tensor,
        samples: tuple[Tensor, Tensor],
        wanted: Counterfactuals,
    ) -> Scores:
        found, places = list[Scores](), np.arange(wanted.env.size)
        rows = [places[wanted.env == index] for index in range(len(plan))]
        for index, (numbers, own) in enumerate(zip(_numbers(hypers, len(plan)), plan, strict=True)):
            asked = Counterfactuals(np.zeros_like(rows[index]), wanted.change[rows[index]])
            found.append(backend.evaluate(numbers, own, _row(learners, index), _row(alphas, index), samples, asked))
        back = torch.as_tensor(np.argsort(np.concatenate(rows), kind="stable"), device=alphas.device)
        others = torch.cat([each.scores[1:] for each in found]).index_select(0, back)
        losses, hits = (torch.cat(parts) for parts in zip(*((e.losses, e.class_hits) for e in found), strict=True))
        return Scores(losses, torch.cat([*(each.scores[:1] for each in found), others]), hits)

    return evaluate


def _row(tree: Any, index: int) -> Any:
    """One environment of a tree whose every leaf has them first."""
    return map_leaves(lambda leaf: leaf[index : index + 1], tree)


def _own_batches(batches: Batches, index: int) -> Batches:
    """One environment's minibatches; samples, and an order that all share, are common."""
    order = batches.order if batches.order.dim() == 2 else _row(batches.order, index)
    return batches._replace(order=order, key=_row(batches.key, index), epoch=_row(batches.epoch, index))


def _numbers(hypers: HyperParams, count: int) -> list[HyperParams]:
    """The hyperparameters of every environment; those that are common to all are not copied."""
    if not any(number.dim() for number in hypers.values()):
        return [hypers] * count

    def own(index: int) -> TensorDictBase:
        return hypers.apply(lambda number: number[index : index + 1] if number.dim() else number)

    return [own(index) for index in range(count)]


def _joined(results: Sequence[Any]) -> Any:
    """Trees of batches of one as a tree of one batch."""
    columns = zip(*(leaves_of(result) for result in results), strict=True)
    joined = iter([torch.cat(column) for column in columns])
    return map_leaves(lambda leaf: next(joined), results[0])
