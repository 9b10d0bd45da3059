"""Laws that every step function obeys."""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import esper
import esper.engine
from esper.leyline.config import Optimizer, Precision, SampleOrder
from esper.leyline.stages import ACTIVE, Stage

_spec = importlib.util.spec_from_file_location("laws_cases", Path(__file__).with_name("cases.py"))
cases = importlib.util.module_from_spec(_spec)
sys.modules["laws_cases"] = cases
_spec.loader.exec_module(cases)

E = 6
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}
"""float64 sums may be taken in another order in a batch of another composition."""


@pytest.fixture(scope="module", params=["conv", "token"])
def task(request, small_task):
    return small_task if request.param == "conv" else cases.token_task(small_task.settings)


@pytest.fixture(scope="module", params=[SampleOrder.SHARED, SampleOrder.INDEPENDENT], ids=lambda order: order.value)
def scenes(request, task):
    sweep = torch.linspace(0.02, 0.08, E, dtype=torch.float64)
    engine = esper.make(task, E, precision=Precision.FLOAT64, sample_order=request.param, host_lr=sweep)
    walked = cases.walk(engine, seed=3, length=9)
    return [walked[index] for index in (1, 4, 6, 8)]


def assert_same(actual, expected, exact: bool):
    for (path, a), (_, b) in zip(cases.leaves(actual), cases.leaves(expected), strict=True):
        if exact or not a.is_floating_point():
            assert torch.equal(a, b), path
        else:
            torch.testing.assert_close(a, b, **ROUNDING, equal_nan=True, msg=lambda m, p=path: f"{p}: {m}")


def test_the_walk_visits_every_kind_of_stage(scenes):
    seen = torch.cat([scene.state.slots.stage.flatten() for scene in scenes]).tolist()
    assert {Stage.DORMANT, Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING} <= set(seen)
    assert set(seen) & {Stage.PROBATIONARY, Stage.FOSSILIZED, Stage.SHADOWING}
    assert set(seen) & {Stage.CULLED, Stage.EMBARGOED, Stage.RESETTING}


def test_every_function_of_the_step_is_in_the_table():
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        for node in ast.walk(ast.parse(inspect.getsource(esper.engine.step)))
        if isinstance(node, ast.Call)
    }
    assert called - {"replace", "Transition", "make_plan"} <= set(cases.CASES)


@pytest.mark.parametrize("name", cases.KEEPS_STRUCTURE)
def test_structure_is_kept(name, scenes):
    for scene in scenes:
        before = cases.KEEPS_STRUCTURE[name](scene)
        result = cases.CASES[name](scene)
        after = result if isinstance(result, type(before)) else result[0]
        assert type(after) is type(before) and after.batch_size == before.batch_size
        shapes = [(path, leaf.shape, leaf.dtype, leaf.device) for path, leaf in cases.leaves(before)]
        assert [(path, leaf.shape, leaf.dtype, leaf.device) for path, leaf in cases.leaves(after)] == shapes


@pytest.mark.parametrize("name", cases.CASES)
def test_inputs_are_unchanged(name, scenes):
    for scene in scenes:
        before = [(path, leaf, leaf._version, leaf.clone()) for path, leaf in cases.leaves(scene)]
        cases.CASES[name](scene)
        for path, leaf, version, copy in before:
            assert leaf._version == version and torch.equal(leaf.nan_to_num(), copy.nan_to_num()), path


@pytest.mark.parametrize("name", cases.CASES)
def test_same_arguments_give_the_same_bits(name, scenes):
    for scene in scenes:
        assert_same(cases.CASES[name](scene), cases.CASES[name](scene), exact=True)


@pytest.mark.parametrize("name", cases.CASES)
@given(order=st.permutations(range(E)))
@settings(max_examples=4)
def test_permuting_environments_permutes_the_result(name, scenes, order):
    rows = torch.tensor(order)
    for scene in scenes:
        permuted = cases.CASES[name](cases.take_scene(scene, rows))
        assert_same(permuted, cases.take(cases.CASES[name](scene), rows, E), exact=False)


@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.parametrize("count", [1, 4])
def test_the_first_environments_do_not_depend_on_the_rest(name, count, scenes):
    rows = torch.arange(count)
    for scene in scenes:
        alone = cases.CASES[name](cases.take_scene(scene, rows))
        assert_same(alone, cases.take(cases.CASES[name](scene), rows, E), exact=False)


def test_initial_noise_and_order_do_not_depend_on_the_number_of_environments(task):
    few, many = (esper.make(task, count).init(11) for count in (2, 7))
    assert_same(few, many[:2], exact=True)
    assert not torch.equal(many.host.params[0], many.host.params[1])


@pytest.mark.parametrize("optimizer", Optimizer)
def test_padding_of_a_seed_stays_zero(task, optimizer):
    """What lies between the numbers of an active seed and its gate's: each SGD step updates it like any parameter."""
    settings = {"seed_optimizer": optimizer, "seed_weight_decay": 0.1, "momentum": 0.5}
    engine = esper.make(task, E, **settings)
    seen, network = 0, engine.structure
    for scene in cases.walk(engine, seed=3, length=9):
        slots, seeds = scene.state.slots, scene.state.seeds
        for env, slot in torch.isin(slots.stage, torch.tensor([int(stage) for stage in ACTIVE])).nonzero().tolist():
            begin = sum(network.widths[:slot]) + network.layouts[slot][slots.blueprint[env, slot]].size
            end = sum(network.widths[: slot + 1]) - network.gates[slot].size
            assert not seeds.params[env, begin:end].any() and not seeds.moments[env, :, begin:end].any()
            seen += (end > begin) * int(seeds.steps[env, slot])
    assert seen > 20


@pytest.mark.parametrize("name", cases.ELEMENTWISE)
def test_elementwise_functions_trace_whole_and_do_not_recompile(name, scenes):
    torch._dynamo.reset()
    function = cases.CASES[name]
    network = scenes[0].network

    def bound(hypers, state, action, epoch, evaluation):
        return function(cases.Scene(network, hypers, None, state, action, epoch, evaluation))

    options = {"guard_filter_fn": torch.compiler.skip_guard_on_globals_unsafe}
    compiled = torch.compile(bound, fullgraph=True, backend="eager", options=options)
    compiled(*scenes[0][1:2], *scenes[0][3:])
    with torch.compiler.set_stance("fail_on_recompile"):
        for scene in scenes[1:]:
            assert_same(compiled(scene.hypers, *scene[3:]), function(scene), exact=True)
