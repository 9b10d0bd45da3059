"""Compiled units: every unit one function forward, and one that pulls a gradient back, computing its value again.

Small graphs start fast, equal slots share their code, and only the inputs of units stay in memory. What lies between
them is the definition's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.structure import Structure
from esper.leyline.events import Epoch
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners
from esper.tezzeret import eager
from esper.tezzeret.backend import Backend, WatchedBatches
from esper.tezzeret.batches import Batches, batch_at
from esper.tezzeret.guard import without_derivatives
from esper.tezzeret.inductor import store
from esper.tezzeret.inductor.compiled import compiled
from esper.tezzeret.inductor.kept import Kept, OnlyTraced
from esper.tezzeret.inductor.plainly import OrPlainly
from esper.tezzeret.inductor.signature import Signature, is_shared, signature_of
from esper.tezzeret.inductor.workers import compile_together
from esper.tezzeret.plan import Plan
from esper.tezzeret.score import Scores, infer, score_samples
from esper.tezzeret.units import Call, Pull, Unit, pull_again
from esper.utils.inductor_private import can_keep_code
from esper.utils.torch_private import is_view, mark_rows
from esper.utils.tree import map_leaves


class UnitCalls:
    """A way of calling units: each is compiled at its first call, and kept by its name.

    Attributes:
      functions: what was compiled so far.
      rehearsal: makes all calls that the present epoch or evaluation may make, whatever its seeds are; so what is not
        on disk can be compiled at once.
    """

    def __init__(self, compiler: str = "inductor") -> None:
        """Nothing is compiled yet; ``compiler``: "inductor", or "eager" to run what would be compiled as it stands."""
        self.compiler = compiler
        self.functions: dict[Any, OrPlainly] = {}
        self.rehearsal: Callable[[Call], Any] | None = None

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
        key = (unit.name, wrt, *((argument.shape[1:], is_shared(argument)) for argument in arguments))
        if key not in self.functions:
            self._meet(key, unit, function, arguments)
        run = self.functions[key]
        return _with_two_rows(run, arguments) if unit.varies else run(*arguments)

    def _meet(self, key: Any, unit: Unit, function: Callable[..., Any], arguments: tuple[Tensor, ...]) -> None:
        """Make a function for a new kind of call; where it is not on disk, begin to compile all others of its kind."""
        signature = signature_of(arguments, unit.varies)
        if self.compiler != "inductor":
            self.functions[key] = OrPlainly(_said(unit), function, OnlyTraced(function, signature))
        elif not can_keep_code():
            self.functions[key] = OrPlainly(_said(unit), function, _marking(compiled(function), unit.varies))
        else:
            kept = self._look_up(key, Sketch(unit, function, signature))
            if kept.is_missing:
                self._compile(kept)

    def _compile(self, met: Kept) -> None:
        """Compile what was met, and side by side with it what else is found in a rehearsal."""
        recorder = Recorder()
        if self.rehearsal is not None:
            rehearsal, self.rehearsal = self.rehearsal, None
            rehearsal(recorder)
        others = [self._look_up(key, recorder.found[key]) for key in recorder.found if key not in self.functions]
        missing = {kept.name: kept for kept in (met, *others) if kept.is_missing}
        compile_together(tuple(missing.values()))
        for kept in (met, *others):  # equal functions under other keys
            if kept.is_missing:
                kept.reason = missing[kept.name].reason
                kept.take()

    def _look_up(self, key: Any, sketch: "Sketch") -> Kept:
        kept = Kept(sketch.function, sketch.signature, store.surroundings())
        self.functions[key] = OrPlainly(_said(sketch.unit), sketch.function, kept)
        return kept

    @contextmanager
    def rehearsing(self, rehearsal: Callable[[Call], Any]) -> Iterator[None]:
        """A context with a rehearsal."""
        self.rehearsal = rehearsal
        try:
            yield
        finally:
            self.rehearsal = None

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
    if is_shared(x):
        return x
    return x.clone(memory_format=torch.contiguous_format) if is_view(x) else x.contiguous()


class Sketch(NamedTuple):
    """A function that a call of a unit needs."""

    unit: Unit
    function: Callable[..., Any]
    signature: Signature


class Recorder(UnitCalls):
    """A way of calling units as they stand, which notes what is called."""

    def __init__(self) -> None:
        """Nothing is noted yet."""
        super().__init__()
        self.found: dict[Any, Sketch] = {}

    def _meet(self, key: Any, unit: Unit, function: Callable[..., Any], arguments: tuple[Tensor, ...]) -> None:
        self.found[key] = Sketch(unit, function, signature_of(arguments, unit.varies))
        self.functions[key] = OrPlainly(_said(unit), function, function)


def _marking(run: Callable[..., Any], varies: bool) -> Callable[..., Any]:
    """Mark dimension 0 of every argument as varying, for torch.compile."""

    def marking(*arguments: Tensor) -> Any:
        for argument in arguments if varies else ():
            mark_rows(argument)
        return run(*arguments)

    return marking


def _with_two_rows(run: Callable[..., Any], arguments: tuple[Tensor, ...]) -> Any:
    """Call with two rows at least, since compilers specialise on sizes 0 and 1: a single row is doubled."""
    if arguments[0].shape[0] != 1:
        return run(*arguments)
    doubled = run(*(torch.cat((argument, argument)) for argument in arguments))
    return map_leaves(lambda rows: rows[:1], doubled)


def build_units(structure: Structure, compiler: str = "inductor") -> Backend:
    """The backend of compiled units."""
    call = UnitCalls(compiler)

    def epoch(
        hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, batches: Batches
    ) -> tuple[Learners, Epoch]:
        return watched_epoch(hypers, plan, learners, alphas, WatchedBatches(batches))[:2]

    def watched_epoch(
        hypers: HyperParams, plan: Plan, learners: Learners, alphas: Tensor, watched: WatchedBatches
    ) -> tuple[Learners, Epoch, Any]:
        def rehearse(recorder: Call) -> None:
            padded, batch = (
                eager.plan(structure, plan.table, alphas.device, padded=True),
                batch_at(structure, watched.batches, 0),
            )
            eager.minibatch_step(structure, hypers, padded, learners, alphas, batch, recorder)

        with call.rehearsing(rehearse):
            return eager.watched_epoch(structure, hypers, plan, learners, alphas, watched, call)

    def evaluate(
        hypers: HyperParams,
        plan: Plan,
        learners: Learners,
        alphas: Tensor,
        samples: tuple[Tensor, Tensor],
        wanted: Counterfactuals,
    ) -> Scores:
        def scores(listed: Plan, call: Call) -> Scores:
            tree, numbers = eager.prepare(structure, hypers, listed, learners, alphas, wanted)
            outputs_of = partial(infer, structure, tree, numbers, call=call)
            return score_samples(structure, outputs_of, samples, alphas.shape[0], tree.rows)

        with call.rehearsing(lambda recorder: scores(plan._replace(padded=True), recorder)):
            return scores(plan, call)

    backend = Backend(
        name="inductor",
        plan_with=partial(eager.plan_with, structure),
        forward=partial(eager.forward, structure),
        minibatch_step=partial(eager.minibatch_step, structure, call=call),
        epoch=epoch,
        evaluate=evaluate,
        watched_epoch=watched_epoch,
        describe=lambda: (*call.describe(), *structure.computing),
        failures=lambda: sum(run.failures for run in call.functions.values()),
    )
    return without_derivatives(backend)
