"""The definition under torch.compile: one graph for a minibatch, one for the inference of all lanes.

Plans are padded, and the number of rows of every group is symbolic, so no mix of seeds compiles anything anew. Collecting
the rows, the batches and writing back are a handful of operations an epoch; they stay as they are.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from esper.kasmina.counterfactuals import Counterfactuals, with_trunk
from esper.kasmina.structure import Structure
from esper.kernels.native import COMPILERS, find_compiler
from esper.leyline.events import Epoch
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners
from esper.tezzeret import eager
from esper.tezzeret.backend import Backend, BackendError
from esper.tezzeret.batches import Batch, Batches, batch_at
from esper.tezzeret.learn import RateTable, Rows, alphas_of, gather, rate_table, scatter
from esper.tezzeret.plan import Evaluation, Plan, plan_evaluation
from esper.tezzeret.score import Scores, evaluation_numbers, infer, score_samples
from esper.tezzeret.walk import Numbers

CompiledStep = Callable[[RateTable, Plan, Rows, Any, Batch], eager.Step]
CompiledInfer = Callable[[Evaluation, Numbers, Tensor], Tensor]


class Compiled(NamedTuple):
    """The compiled functions of a structure."""

    structure: Structure
    step: CompiledStep
    infer: CompiledInfer


def build(structure: Structure, device: torch.device) -> Backend:
    """The compiled backend of a structure. Nothing is compiled before it is called.

    Raises:
      BackendError: Inductor needs a C++ compiler on a CPU and there is none.
    """
    if device.type == "cpu" and find_compiler() is None:
        raise BackendError(f"backend 'inductor': no C++ compiler; looked for CXX, {', '.join(COMPILERS)}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "esper" / "inductor"))
    step = _compiled(partial(eager.train_rows, structure))
    compiled = Compiled(structure, step, _compiled(partial(infer, structure)))
    return Backend(
        name="inductor",
        plan=partial(eager.plan, structure, padded=True),
        forward=partial(_forward, structure),
        minibatch_step=partial(minibatch_step, compiled),
        epoch=partial(epoch, compiled),
        evaluate=partial(evaluate, compiled),
        describe=lambda: ("inductor: a minibatch and an inference as one compiled graph each",),
    )


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of plain tensors. Its structure never changes, so only tensors are guarded."""

    def own(*arguments: Any) -> Any:
        return function(*arguments)

    options: dict[str, Any] = {"guard_filter_fn": _guards_on_tensors}
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)


STANDING = (
    "CONSTANT_MATCH",
    "EQUALS_MATCH",
    "CLOSURE_MATCH",
    "BUILTIN_MATCH",
    "MODULE_MATCH",
    "CLASS_MATCH",
    "TYPE_MATCH",
)
"""Kinds of guards on what a function refers to, other than its arguments."""


def _guards_on_tensors(guards: Any) -> list[bool]:
    """Keep the guards that a call can fail: those on tensors, sizes and torch's modes."""
    return [guard.guard_type not in STANDING and "__import_" not in guard.name for guard in guards]


def _symbolic(*trees: Any) -> None:
    """Mark dimension 0 of every tensor as varying."""
    for leaf in tree_leaves(trees):
        if isinstance(leaf, Tensor):
            torch._dynamo.mark_dynamic(leaf, 0)


def _marked(plan: Plan) -> Plan:
    """The plan as the compiled step takes it: without the table, rows of groups symbolic."""
    for listed in plan.slots:
        _symbolic(listed.groups)
    for passage in plan.objectives:
        if passage is not None:
            _symbolic(passage)
    return plan._replace(table=None)  # type: ignore[arg-type]


def _step(compiled: Compiled, table: RateTable, plan: Plan, rows: Rows, alphas: Any, batch: Batch) -> eager.Step:
    _symbolic(rows.seeds, rows.seed_buffers)
    return compiled.step(table, plan, rows, alphas, batch)


def epoch(
    compiled: Compiled, hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, batches: Batches
) -> tuple[Learners, Epoch]:
    """``epoch`` of the definition."""
    structure, marked, weights = compiled.structure, _marked(plan), alphas_of(plan, alphas)
    table, rows = rate_table(hypers), gather(structure, plan, learners)
    _symbolic(weights)
    loss = score = torch.zeros_like(alphas[:, :0]).sum(1)
    for number in range(batches.count):
        step = _step(compiled, table, marked, rows, weights, batch_at(structure, batches, number))
        rows, loss, score = step.rows, loss + step.loss, score + step.score
    measures = eager.measure(structure, hypers, plan, step, (loss, score), batches.count)
    return scatter(structure, plan, learners, rows), measures


def minibatch_step(
    compiled: Compiled, hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, batch: Batch
) -> tuple[Learners, Epoch]:
    """``minibatch_step`` of the definition."""
    structure, weights = compiled.structure, alphas_of(plan, alphas)
    _symbolic(weights)
    step = _step(compiled, rate_table(hypers), _marked(plan), gather(structure, plan, learners), weights, batch)
    measures = eager.measure(structure, hypers, plan, step, (step.loss, step.score), 1)
    return scatter(structure, plan, learners, step.rows), measures


def evaluate(
    compiled: Compiled,
    hypers: HyperParams,
    plan: Plan,
    learners: Learners,
    alphas: Tensor,
    samples: tuple[Tensor, Tensor],
    wanted: Counterfactuals,
) -> Scores:
    """``evaluate`` of the definition."""
    structure, num_envs = compiled.structure, alphas.shape[0]
    tree = plan_evaluation(structure, plan.table, with_trunk(wanted, num_envs), alphas.device, padded=True)
    numbers = evaluation_numbers(structure, hypers.alpha_target, tree, learners, alphas, padded=True)
    _symbolic(tree, numbers)
    return score_samples(structure, partial(compiled.infer, tree, numbers), samples, num_envs, tree.rows)


def _forward(
    structure: Structure, plan: Plan, learners: Learners, alphas: Tensor, batch: Batch
) -> tuple[Tensor, Learners]:
    return eager.forward(structure, plan, learners, alphas, batch)
