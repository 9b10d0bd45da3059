"""The debug switch: which functions it watches, that it finds a write, and that off it is nothing."""

import ast
import inspect
import os
import subprocess
import sys

import pytest
import torch

import esper
import esper.engine
import esper.simic.environment
from esper.kasmina import metrics
from esper.runtime import debug
from esper.simic.environment import EsperEnv
from esper.tezzeret import eager
from esper.utils.purity import PurityError

E = 3


@pytest.fixture
def engine(small_task):
    return esper.make(small_task, E, backend="eager")


def test_the_suite_runs_with_it_on():
    assert debug.is_on() == (os.environ.get("ESPER_DEBUG", "1") == "1")


def test_off_every_module_holds_the_functions_that_were_written():
    with debug.watching(False):
        assert not debug.is_on()
        for function in debug.WATCHED:
            home = sys.modules[function.__module__]
            assert getattr(home, function.__name__) is function
        assert esper.engine.train_epoch is sys.modules["esper.tolaria.training"].train_epoch
        with debug.watching():
            assert debug.is_on()
            for function in debug.WATCHED:
                assert getattr(sys.modules[function.__module__], function.__name__) is debug.CHECKED[function]
            assert esper.engine.train_epoch is sys.modules["esper.tolaria.training"].train_epoch
            assert (
                esper.simic.environment.reward is debug.CHECKED[sys.modules["esper.simic.rewards"].reward.__wrapped__]
            )
        assert not debug.is_on()


def test_every_function_of_the_step_is_watched():
    called = {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(inspect.getsource(esper.engine.step)))
        if isinstance(node, ast.Call)
    }
    helpers = {"lock", "state.replace", "Transition", "take_table", "backend.plan_with", "learners_of", "with_learners"}
    assert {name.split(".")[-1] for name in called - helpers} <= {function.__name__ for function in debug.WATCHED}


def careless_signals(hypers, signals, epoch, evaluation, keep):
    signals.val_loss.add_(0.25)
    return signals


def careless_epoch(structure, hypers, plan, learners, alphas, batches):
    learners.host.params[0, 0] = torch.nan
    return eager.epoch(structure, hypers, plan, learners, alphas, batches)


def test_a_step_that_writes_into_its_state_is_caught(engine, monkeypatch):
    state, action = engine.init(0), torch.zeros(E, dtype=torch.int64)
    monkeypatch.setattr(esper.engine, "update_signals", careless_signals)
    with debug.watching(False):
        engine.step(state, action)
    with debug.watching(), pytest.raises(PurityError) as error:
        engine.step(state, action)
    assert (
        str(error.value) == "engine.step: changed the bits of state.signals.val_loss; expected its arguments untouched"
    )


def test_the_innermost_watched_function_is_named(engine):
    broken = engine.backend._replace(epoch=lambda *given: careless_epoch(engine.structure, *given))
    with debug.watching(), pytest.raises(PurityError) as error:
        esper.engine.step(
            engine.structure, broken, engine.hypers, engine.init(0), engine.data, torch.zeros(E, dtype=torch.int64)
        )
    message = "tolaria.training.train_epoch: changed the bits of state.host.params; expected its arguments untouched"
    assert str(error.value) == message


def test_a_kernel_that_writes_into_the_dataset_is_caught(engine):
    def writes(hypers, plan, learners, alphas, batches):
        batches.inputs.view(-1).numpy()[0] += 1
        return engine.backend.epoch(hypers, plan, learners, alphas, batches)

    broken = engine.backend._replace(epoch=writes)
    part = engine.data.train
    own = engine.data._replace(train=part._replace(inputs=part.inputs.clone()))  # other tests use the task's
    given = (engine.structure, broken, engine.hypers, engine.init(0), own)
    with debug.watching(), pytest.raises(PurityError, match=r"train_epoch: changed the bits of data.train.inputs;"):
        esper.engine.step(*given, torch.zeros(E, dtype=torch.int64))


def test_it_changes_no_result(engine, walk):
    with debug.watching(False):
        plain, _ = walk(engine, 4, 5)
    with debug.watching():
        watched, _ = walk(engine, 4, 5)
        env = EsperEnv(engine)
        env.step(env.reset().set("action", torch.zeros(E, dtype=torch.int64)))
    for path, leaf in plain[-1].items(include_nested=True, leaves_only=True):
        assert torch.equal(leaf, watched[-1].get(path)), path


def test_checked_functions_trace_whole(engine, walk):
    torch._dynamo.reset()
    states, actions = walk(engine, 4, 3)
    _, event = engine.step(states[2], actions[2])

    def record(hypers, slots):
        return metrics.record(hypers, slots, event.epoch, event.evaluation)

    with debug.watching():
        traced = torch.compile(record, fullgraph=True, backend="eager")(engine.hypers, states[2].slots)
        expected = record(engine.hypers, states[2].slots)
    assert all(torch.equal(leaf, expected[name]) for name, leaf in traced.items())


@pytest.mark.parametrize("value", ["1", "0", None])
def test_the_environment_is_asked(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("ESPER_DEBUG", raising=False)
    else:
        monkeypatch.setenv("ESPER_DEBUG", value)
    with debug.watching(False):
        debug.switch_as_asked()
        assert debug.is_on() == (value == "1")


def test_the_environment_turns_it_on_for_a_process():
    code = "import esper; from esper.runtime import debug; print(debug.is_on())"
    told = os.environ | {"ESPER_DEBUG": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
