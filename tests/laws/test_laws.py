"""Laws that every step function obeys."""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import esper
import esper.engine
from esper.kasmina.optimizers import OPTIMIZERS
from esper.leyline.config import Precision, SampleOrder
from esper.leyline.stages import ACTIVE, Stage
from esper.tezzeret.native.library import library

_spec = importlib.util.spec_from_file_location("laws_cases", Path(__file__).with_name("cases.py"))
cases = importlib.util.module_from_spec(_spec)
sys.modules["laws_cases"] = cases
_spec.loader.exec_module(cases)

E = 6
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}
"""float64 sums may be taken in another order in a batch of another composition."""


class LawRun(NamedTuple):
    """What is walked through."""

    task: str
    order: SampleOrder
    backend: str

    def __str__(self):
        return f"{self.task}-{self.order.value}-{self.backend}"


PRECISION = {"eager": Precision.FLOAT64, "native": Precision.FLOAT32}
RUNS = [LawRun(task, order, "eager") for task in ("conv", "token") for order in SampleOrder]
NATIVE = [*(("conv", order) for order in SampleOrder), ("token", SampleOrder.SHARED)]
RUNS += [LawRun(*run, "native") for run in NATIVE] if library() is not None else []
SHARED = [LawRun(task, SampleOrder.SHARED, "eager") for task in ("conv", "token")]


def laws(names):
    """Each function with every run that it may tell apart: neither order nor backend matter to most."""
    return [(run, name) for name in names for run in (RUNS if name in cases.BACKED else SHARED)]


def every(names):
    return pytest.mark.parametrize(("run", "name"), laws(names), ids=str)


@pytest.fixture(scope="module")
def tasks(small_task):
    return {"conv": small_task, "token": cases.token_task(small_task.settings)}


@pytest.fixture(scope="module", params=["conv", "token"])
def task(request, tasks):
    return tasks[request.param]


@pytest.fixture(scope="module")
def walks(tasks):
    """Scenes of every run."""
    sweep, found = torch.linspace(0.02, 0.08, E, dtype=torch.float64), {}
    for run in RUNS:
        settings = {"precision": PRECISION[run.backend], "sample_order": run.order, "host_lr": sweep}
        walked = cases.walk(esper.make(tasks[run.task], E, backend=run.backend, **settings), seed=3, length=9)
        found[run] = [walked[index] for index in (1, 4, 6, 8)]
    return found


def once(name, arguments, results={}):  # noqa: B006 - a memory: steps live as long as the module's tests
    """What a function gives, computed once for all tests."""
    key = name, id(arguments)
    if key not in results:
        results[key] = arguments, cases.CASES[name](arguments)
    return results[key][1]


def assert_same(actual, expected, exact: bool):
    for (path, a), (_, b) in zip(cases.leaves(actual), cases.leaves(expected), strict=True):
        if exact or not a.is_floating_point():
            assert torch.equal(a, b), path
        else:
            torch.testing.assert_close(a, b, **ROUNDING, equal_nan=True, msg=lambda m, p=path: f"{p}: {m}")


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_the_walk_visits_every_kind_of_stage(run, walks):
    seen = torch.cat([arguments.state.slots.stage.flatten() for arguments in walks[run]]).tolist()
    assert {Stage.DORMANT, Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING} <= set(seen)
    assert set(seen) & {Stage.PROBATIONARY, Stage.FOSSILIZED, Stage.SHADOWING}
    assert set(seen) & {Stage.CULLED, Stage.EMBARGOED, Stage.RESETTING}


def test_every_function_of_the_step_is_in_the_table():
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        for node in ast.walk(ast.parse(inspect.getsource(esper.engine.step)))
        if isinstance(node, ast.Call)
    }
    plumbing = {"replace", "lock", "Transition", "take_table", "learners_of", "with_learners"}
    plumbing |= {"list_seeds", "list_effects", "plan_with"}  # of the host
    assert called - plumbing <= set(cases.CASES)


@every(cases.KEEPS_STRUCTURE)
def test_structure_is_kept(run, name, walks):
    for arguments in walks[run]:
        before = cases.KEEPS_STRUCTURE[name](arguments)
        result = once(name, arguments)
        after = result if isinstance(result, type(before)) else result[0]
        assert type(after) is type(before)
        assert getattr(after, "batch_size", None) == getattr(before, "batch_size", None)
        shapes = [(path, leaf.shape, leaf.dtype, leaf.device) for path, leaf in cases.leaves(before)]
        assert [(path, leaf.shape, leaf.dtype, leaf.device) for path, leaf in cases.leaves(after)] == shapes


@every(cases.CASES)
def test_inputs_are_unchanged(run, name, walks):
    for arguments in walks[run]:
        before = [(path, leaf, leaf._version, leaf.clone()) for path, leaf in cases.leaves(arguments)]
        cases.CASES[name](arguments)
        for path, leaf, version, copy in before:
            assert leaf._version == version and torch.equal(leaf.nan_to_num(), copy.nan_to_num()), path


@every(cases.CASES)
def test_same_arguments_give_the_same_bits(run, name, walks):
    for arguments in walks[run]:
        assert_same(cases.CASES[name](arguments), once(name, arguments), exact=True)


@every(cases.CASES)
@given(order=st.permutations(range(E)))
@settings(max_examples=4)
def test_permuting_environments_permutes_the_result(run, name, walks, order):
    rows = torch.tensor(order)
    for arguments in walks[run]:
        permuted = cases.CASES[name](cases.take_arguments(arguments, rows))
        assert_same(permuted, cases.take(once(name, arguments), rows, E), exact=run.backend == "native")


@every(cases.CASES)
@pytest.mark.parametrize("count", [1, 4])
def test_the_first_environments_do_not_depend_on_the_rest(run, name, count, walks):
    rows = torch.arange(count)
    for arguments in walks[run]:
        alone = cases.CASES[name](cases.take_arguments(arguments, rows))
        assert_same(alone, cases.take(once(name, arguments), rows, E), exact=run.backend == "native")


def test_initial_noise_and_order_do_not_depend_on_the_number_of_environments(task):
    few, many = (esper.make(task, count).init(11) for count in (2, 7))
    assert_same(few, many[:2], exact=True)
    assert not torch.equal(many.host.params[0], many.host.params[1])


def test_what_leaves_the_engine_is_locked(task):
    engine = esper.make(task, 3)
    state = engine.init(1)
    after, _ = engine.step(state, torch.zeros(3, dtype=torch.int64))
    for held in (state, after, engine.reset(after, torch.tensor([True, False, True]), 5)):
        for part in (held, held.slots, held.host, held.snapshot.seeds):
            name = next(key for key in part.keys() if isinstance(part.get(key), torch.Tensor))  # noqa: SIM118
            with pytest.raises(RuntimeError, match="lock"):
                part.set(name, part.get(name) * 0)
        assert torch.equal(held.replace(epoch=held.epoch + 1).epoch, held.epoch + 1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_padding_of_a_seed_stays_zero(task, optimizer):
    """What lies between the numbers of an active seed and its gate's: each SGD step updates it like any parameter."""
    settings = {"seed_optimizer": optimizer, "seed_weight_decay": 0.1, "momentum": 0.5}
    engine = esper.make(task, E, **settings)
    seen, structure = 0, engine.structure
    for arguments in cases.walk(engine, seed=3, length=9):
        slots, seeds = arguments.state.slots, arguments.state.seeds
        for env, slot in torch.isin(slots.stage, torch.tensor([int(stage) for stage in ACTIVE])).nonzero().tolist():
            place = structure.slots[slot]
            begin = place.start + place.row(int(slots.blueprint[env, slot])).size
            end = place.start + place.width - place.gate.size
            assert not seeds.params[env, begin:end].any() and not seeds.moments[env, :, begin:end].any()
            seen += (end > begin) * int(seeds.steps[env, slot])
    assert seen > 20


@every(cases.ELEMENTWISE)
def test_elementwise_functions_trace_whole_and_do_not_recompile(run, name, walks):
    torch._dynamo.reset()
    function, steps = cases.CASES[name], walks[run]
    structure, backend = steps[0][:2]

    def bound(hypers, state, action, epoch, evaluation):
        return function(cases.StepArguments(structure, backend, hypers, None, state, action, epoch, evaluation))

    options = {"guard_filter_fn": torch.compiler.skip_guard_on_globals_unsafe}
    compiled = torch.compile(bound, fullgraph=True, backend="eager", options=options)
    compiled(steps[0].hypers, *steps[0][4:])
    with torch.compiler.set_stance("fail_on_recompile"):
        for arguments in steps[1:]:
            assert_same(compiled(arguments.hypers, *arguments[4:]), function(arguments), exact=True)
