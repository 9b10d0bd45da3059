"""Compiled units: every unit one function forward, and one that pulls a gradient back, computing its value again.

Small graphs start fast, equal slots share their code, and only the inputs of units stay in memory. What lies between
them is the definition's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.structure import Structure
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners
from esper.tezzeret import eager
from esper.tezzeret.backend import Backend
from esper.tezzeret.guard import without_derivatives
from esper.tezzeret.inductor.plainly import OrPlainly
from esper.tezzeret.plan import Plan
from esper.tezzeret.score import Scores, infer, score_samples
from esper.tezzeret.units import Pull, Unit, pull_again
from esper.utils.torch_private import is_view, mark_rows
from esper.utils.tree import map_leaves


class UnitCalls:
    """A way of calling units: each is compiled at its first call, and kept by its name."""

    def __init__(self, compiler: str = "inductor") -> None:
        self.compiler = compiler
        self.functions: dict[Any, OrPlainly] = {}

    def __call__(self, unit: Unit, arguments: tuple[Tensor, ...], wrt: tuple[int, ...]) -> tuple[Any, Any, Pull | None]:
        """As ``esper.tezzeret.units.Call``."""
        packed = tuple(_packed(argument) for argument in arguments)
        value, aux = self._run(unit, (), unit.run, packed)

        def pull(grad: Tensor) -> dict[int, Tensor]:
            back = pull_again(unit, wrt)
            return dict(zip(wrt, self._run(unit, wrt, back, (_packed(grad), *packed)), strict=True))

        return value, aux, pull if wrt else None

    def _run(
        self, unit: Unit, wrt: tuple[int, ...], function: Callable[..., Any], arguments: tuple[Tensor, ...]
    ) -> Any:
        key = (unit.name, wrt, *((argument.shape[1:], _is_shared(argument)) for argument in arguments))
        if key not in self.functions:
            self.functions[key] = OrPlainly(_said(unit), function, self.compiler)
        run = self.functions[key]
        return _with_symbolic_rows(run, arguments) if unit.varies else run(*arguments)

    def describe(self) -> tuple[str, ...]:
        """A line on what is compiled, and one for each unit that is not, with the reason."""
        reasons = {run.what: run.reason for run in self.functions.values() if run.reason is not None}
        plainly = (f"as it is written: {what}: {reason}" for what, reason in reasons.items())
        return ("inductor: every block, seed, gate and step one compiled function", *plainly)


def _said(unit: Unit) -> str:
    """A unit's name for people: what it is, and its numbers."""
    kind, *rest = unit.name
    numbers = [str(part) for part in rest if type(part) is int]
    return " ".join([str(kind), *numbers])


def _packed(x: Tensor) -> Tensor:
    """The tensor with the same strides every time, and no view: compiled code would look at what it is a view of.

    A minibatch that all share stays expanded.
    """
    if x.numel() == 0:
        return x.new_empty(x.shape)
    if _is_shared(x):
        return x
    return x.clone(memory_format=torch.contiguous_format) if is_view(x) else x.contiguous()


def _is_shared(x: Tensor) -> bool:
    """Whether it is one minibatch, seen by several networks."""
    return x.dim() > 2 and x.shape[0] > 1 and x.stride(0) == 0


def _with_symbolic_rows(run: Callable[..., Any], arguments: tuple[Tensor, ...]) -> Any:
    """Call with dimension 0 of every argument marked as varying.

    A single row is doubled and its copy dropped, because torch.compile specialises on sizes 0 and 1.
    """
    if arguments[0].shape[0] == 1:
        doubled = _with_symbolic_rows(run, tuple(torch.cat((argument, argument)) for argument in arguments))
        return map_leaves(lambda rows: rows[:1], doubled)
    for argument in arguments:
        mark_rows(argument)
    return run(*arguments)


def build_units(structure: Structure, compiler: str = "inductor") -> Backend:
    """The backend of compiled units."""
    call = UnitCalls(compiler)

    def evaluate(
        hypers: HyperParams,
        plan: Plan,
        learners: Learners,
        alphas: Tensor,
        samples: tuple[Tensor, Tensor],
        wanted: Counterfactuals,
    ) -> Scores:
        tree, numbers = eager.prepare(structure, hypers, plan, learners, alphas, wanted)
        outputs_of = partial(infer, structure, tree, numbers, call=call)
        return score_samples(structure, outputs_of, samples, alphas.shape[0], tree.rows)

    backend = Backend(
        name="inductor",
        plan=partial(eager.plan, structure),
        forward=partial(eager.forward, structure),
        minibatch_step=partial(eager.minibatch_step, structure, call=call),
        epoch=partial(eager.epoch, structure, call=call),
        evaluate=evaluate,
        describe=call.describe,
    )
    return without_derivatives(backend)
