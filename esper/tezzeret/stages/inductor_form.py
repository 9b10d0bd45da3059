"""The compiled form: a blueprint as Inductor compiles the seeds of a structure, forward and pulling a gradient back."""

from contextlib import nullcontext

import torch
from torch import Tensor

from esper.tezzeret.backend import BackendError
from esper.tezzeret.inductor.compiled import require_compiler
from esper.tezzeret.inductor.unit_calls import UnitCalls
from esper.tezzeret.stages.forms import BlueprintForm, Goal, Subject, Trained, flat, losses_of
from esper.tezzeret.units import Call, Unit


def inductor_form(
    subject: Subject, device: torch.device, rehearsed: tuple[tuple[Tensor, ...], ...] = ()
) -> BlueprintForm:
    """A blueprint as Inductor compiles it.

    Args:
      subject: the blueprint between its sites.
      device: where it runs.
      rehearsed: arguments (params, buffers, x) of calls that are to come: what they need is compiled side by side.

    Raises:
      BackendError: no compiler, or what Inductor refuses; one line.
    """
    require_compiler(device)
    call = UnitCalls()
    trains, infers = _unit(subject, True), _unit(subject, False)
    wrt = (0,) if subject.vocabulary else (0, 1)

    def run_train(params: Tensor, buffers: Tensor, x: Tensor, goal: Goal) -> Trained:
        y, new, pull = call(trains, _given(subject, params, x, buffers), wrt)
        slope, losses = torch.func.grad(lambda at: _mean(at, goal), has_aux=True)(y)
        assert pull is not None
        found = pull(slope)
        return Trained(losses, found[0], found.get(1), new)

    def run_infer(params: Tensor, buffers: Tensor, x: Tensor) -> Tensor:
        y: Tensor = call(infers, (params, x, buffers), ())[0]
        return y

    def rehearse(recorder: Call) -> None:
        for params, buffers, x in rehearsed:
            y, _, pull = recorder(trains, _given(subject, params, x, buffers), wrt)
            assert pull is not None
            pull(torch.zeros_like(y))
            recorder(infers, (params, x, buffers), ())

    with call.rehearsing(rehearse) if rehearsed else nullcontext():
        for params, buffers, x in rehearsed:
            run_infer(params, buffers, x)
            _, _, pull = call(trains, _given(subject, params, x, buffers), wrt)
            assert pull is not None
            pull(x.new_zeros(*x.shape[:2], *subject.target.shape, dtype=params.dtype))
    refused = next((each.reason for each in call.functions.values() if each.reason is not None), None)
    if refused is not None:
        raise BackendError(f"backend 'inductor': blueprint {subject.blueprint.name!r}: {refused}")
    return BlueprintForm("inductor", run_infer, run_train, {"functions": len(call.functions)})


def _given(subject: Subject, *rows: Tensor) -> tuple[Tensor, ...]:
    """The arguments of training."""
    keys = subject.keys(rows[0])
    return rows if keys is None else (*rows, keys)


def _mean(y: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    losses = losses_of(y, goal)
    return losses.mean(1).sum(), losses


def _unit(subject: Subject, train: bool) -> Unit:
    """(rows [n, P], x, buffers [n, R], keys if it draws) -> features, new buffers."""
    blueprint, layout, held = subject.blueprint, subject.layout, subject.buffer_layout

    def run(row: Tensor, x: Tensor, buffers: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        named, before = layout.views(row), held.views(buffers)
        if not train:
            return blueprint.infer(named, before, x), buffers
        y, new = blueprint.train(named, before, x, keys)
        return y, flat(held, new, row)

    return Unit(("blueprint", blueprint.name, subject.source, subject.target, train), run)
