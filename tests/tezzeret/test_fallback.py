"""A kernel that raises while it runs: its work is done as it is written from that call on, and the failure is told."""

import ctypes
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from tezzeret_states import CPU

import esper
from esper.kasmina.conv_blueprints import CONV_LIGHT, NORM
from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.slot_table import take_table
from esper.leyline.actions import Blend
from esper.leyline.learners import learners_of
from esper.tezzeret import eager
from esper.tezzeret.backend import BackendError
from esper.tezzeret.choose import build_backend
from esper.tezzeret.fallback import or_eager
from esper.tezzeret.inductor.kept import Kept, OnlyTraced
from esper.tezzeret.inductor.plainly import OrPlainly
from esper.tezzeret.inductor.unit_calls import UnitCalls, build_units
from esper.tezzeret.learn import host_step_unit, rate_table
from esper.tezzeret.native import run
from esper.tezzeret.native.library import library

pytestmark = pytest.mark.usefixtures("kernels_may_fail")
NATIVE = pytest.mark.skipif(library() is None, reason="no C++ compiler")
NOBODY = np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.int64)
LENGTH, FAILING, AT = 4, 2, 20


class Broken:
    """The native library, one of whose functions raises at its n-th call from now on, and at that call alone."""

    def __init__(self, name, at, error):
        self.name, self.left, self.error, self.calls = name, at, error, 0

    def __getattr__(self, name):
        plain = getattr(library(), name)

        def call(*arguments):
            if name == self.name:
                self.left, self.calls = self.left - 1, self.calls + 1
                if self.left == 0:
                    raise self.error
            return plain(*arguments)

        return call


@pytest.fixture
def engine(small_task):
    task = small_task._replace(blueprints=(NORM, CONV_LIGHT))
    return esper.make(task, 3, backend="native", slots=(0, 2), deterministic="ordinary")


def by_definition(engine, name):
    """The engine, one of whose functions is the definition's own."""
    structure = engine.structure

    def plainly(hypers, plan, *rest):
        return getattr(eager, name)(structure, hypers, eager.plan(structure, plan.table, CPU), *rest)

    return replace(engine, backend=engine.backend._replace(**{name: plainly}))


def expect_equal(found, wanted, close=False):
    for name, leaf in wanted.items(include_nested=True, leaves_only=True):
        other = found.get(name)
        assert torch.allclose(other, leaf, atol=1e-4, equal_nan=True) if close else torch.equal(other, leaf), name


@NATIVE
@pytest.mark.parametrize(("kernel", "name", "calls"), [("esper_train", "epoch", 1), ("esper_infer", "evaluate", 2)])
def test_a_native_kernel_that_raises(engine, walk, monkeypatch, caplog, kernel, name, calls):
    """``calls`` of the library make one of the function."""
    states, actions = walk(engine, 1, LENGTH)
    wanted, other = states[: FAILING + 1], by_definition(engine, name)
    for action in actions[FAILING:]:
        wanted.append(other.step(wanted[-1], action)[0])
    broken = Broken(kernel, calls * FAILING + 1, ctypes.ArgumentError("a kernel of ours\nfailed"))
    monkeypatch.setattr(run, "library", lambda: broken)
    own = build_backend("native", engine.structure, CPU)
    found = engine.init(1)
    with caplog.at_level(logging.WARNING, logger="esper"):
        for number in range(LENGTH):
            assert own.failures() == int(number > FAILING)
            found, _ = replace(engine, backend=own).step(found, actions[number])
            expect_equal(found, wanted[number + 1])
            expect_equal(found, states[number + 1], close=True)
    said = "ArgumentError: a kernel of ours failed"
    assert own.failures() == 1 and broken.calls == calls * FAILING + 1, "it is not tried again"
    assert own.describe() == (*engine.backend.describe(), f"eager: {name} raised while it ran: {said}")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"backend 'native': {name} raised while it ran ({said}); the definition does it now"
    assert engine.backend.failures() == 0


@NATIVE
def test_under_strict_determinism_the_definition_runs_row_by_row(small_task, monkeypatch):
    strict = [
        esper.make(small_task._replace(blueprints=(NORM,)), count, backend="native", deterministic="strict")
        for count in (1, 3)
    ]
    broken = Broken("esper_train", 1, OSError("a driver's own"))
    ends = []
    for each in strict:
        broken.left = 1
        monkeypatch.setattr(run, "library", lambda: broken)
        action = torch.full((each.config.num_envs,), 1)
        ends.append(each.step(each.init(0), action)[0])
        assert each.backend.failures() == 1
    assert torch.equal(ends[0].host.params, ends[1].host.params[:1])


def raising(monkeypatch, kind, at):
    """Compiled code of a kind raises at the n-th call of all; what was called, in order."""
    plain, calls = kind.__call__, []

    def call(self, *arguments):
        calls.append(self)
        if len(calls) == at:
            raise RuntimeError("a kernel of Inductor's")
        return plain(self, *arguments)

    monkeypatch.setattr(kind, "__call__", call)
    return calls


def test_a_unit_that_raises(engine, monkeypatch, caplog):
    """It goes on as it is written; what fails as it is written, too, raises."""
    unit, call = host_step_unit(engine.structure), UnitCalls("eager")
    host, rates = engine.init(0).host, rate_table(engine.hypers)
    numbers = (*rates.host, rates.warmup, rates.final, engine.structure.host_decays)
    given = (torch.ones_like(host.params), host.params, host.moments, host.steps, *numbers)
    calls = raising(monkeypatch, OnlyTraced, 2)
    with caplog.at_level(logging.WARNING, logger="esper"):
        found = [call(unit, given, ())[0] for _ in range(3)]
    assert len(calls) == 2, "a unit that failed is not tried again"
    for each in found:
        assert all(torch.equal(a, b) for a, b in zip(each, unit.run(*given)[0], strict=True))
    (made,) = call.functions.values()
    reason = "raised while it ran: RuntimeError: a kernel of Inductor's"
    assert made.failures == 1 and call.describe()[1:] == (f"as it is written: host step: {reason}",)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"backend 'inductor': host step {reason}; it runs as it is written now"
    with pytest.raises(TypeError):
        OrPlainly("mine", lambda x: len(x), lambda x: len(x))(1)


@pytest.mark.large
def test_a_unit_of_a_run_that_raises(small_task, monkeypatch):
    """Of an engine of compiled units one goes on as it is written, and the rest stays compiled; values are the same."""
    engine = esper.make(small_task._replace(blueprints=(NORM,)), 2, backend="eager", slots=(0,), blends=(Blend.LINEAR,))
    calls = raising(monkeypatch, Kept, AT)
    own = or_eager(build_units(engine.structure), eager.build(engine.structure, CPU))
    state = wanted = engine.init(1)
    for action in torch.tensor([[1, 1], [0, 0]]):
        state, wanted = replace(engine, backend=own).step(state, action)[0], engine.step(wanted, action)[0]
        expect_equal(state, wanted, close=True)
    assert own.failures() == 1 and len(calls) > AT and calls[AT - 1] not in calls[AT:]
    assert sum("raised while it ran" in line for line in own.describe()) == 1
    print(f"{len(calls)} calls of compiled units, one raised")  # noqa: T201


@NATIVE
@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device"), BackendError("not given")])
def test_what_no_other_form_helps_against_is_raised(engine, monkeypatch, error):
    monkeypatch.setattr(run, "library", lambda: Broken("esper_train", 1, error))
    with pytest.raises(type(error)):
        engine.step(engine.init(0), torch.zeros(3, dtype=torch.int64))
    assert engine.backend.failures() == 0


@NATIVE
def test_a_call_that_is_wrong_in_itself_is_no_failure(engine):
    state = engine.init(0)
    given = (learners_of(state), state.slots.alpha, (engine.data.train.inputs, None), Counterfactuals(*NOBODY))
    with pytest.raises(AttributeError) as found:
        engine.backend.evaluate(engine.hypers, engine.backend.plan(take_table(state.slots), CPU), *given)
    assert engine.backend.failures() == 0 and found.value.__cause__ is None
