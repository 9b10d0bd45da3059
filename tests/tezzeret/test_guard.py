"""Derivatives: the definition gives them in every form; other backends refuse in one line, before they compute."""

import pytest
import torch
from torch.autograd import forward_ad

import esper
from esper import engine as engine_module
from esper.kasmina.counterfactuals import single_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.config import Precision
from esper.leyline.learners import learners_of
from esper.tezzeret.backend import Backend, BackendError
from esper.tezzeret.batches import batch_at
from esper.tezzeret.choose import build_backend
from esper.tezzeret.guard import ARGUMENTS, without_derivatives
from esper.tolaria.training import draw_batches
from esper.utils.transforms import find_derivative

E = 3
BACKENDS = ("native", "inductor", "oracle")
FUNCTIONS = tuple(ARGUMENTS)
INPUTS = {
    "hypers.host_lr": ("minibatch_step", "epoch"),
    "hypers.alpha_target": ("minibatch_step", "epoch", "evaluate"),
    "learners.host.params": FUNCTIONS,
    "learners.seeds.moments": FUNCTIONS,
    "learners.seed_buffers": FUNCTIONS,
    "alphas": FUNCTIONS,
    "batch.inputs": ("forward", "minibatch_step"),
    "batches.inputs": ("epoch",),
    "samples.0": ("evaluate",),
}
PAIRS = [(function, path) for path, functions in INPUTS.items() for function in functions]


def assign(tree, path, change):
    """A nest with one tensor changed."""
    if not path:
        return change(tree)
    name, *rest = path
    if isinstance(tree, dict):
        return tree | {name: assign(tree[name], rest, change)}
    if hasattr(tree, "_replace"):
        return tree._replace(**{name: assign(getattr(tree, name), rest, change)})
    if isinstance(tree, tuple):
        return tuple(assign(part, rest, change) if str(n) == name else part for n, part in enumerate(tree))
    return tree.replace(**{name: assign(tree.get(name), rest, change)})


def read(tree, path):
    for name in path.split("."):
        tree = tree[int(name)] if name.isdigit() else tree[name] if isinstance(tree, dict) else getattr(tree, name)
    return tree


class BackendArguments:
    """An engine in the middle of a run, and the arguments of its backend's functions."""

    def __init__(self, engine, state):
        self.engine, self.state = engine, state
        table = take_table(state.slots)
        batches = draw_batches(engine.config, state, engine.data)
        self.given = {
            "hypers": engine.hypers,
            "plan": engine.backend.plan(table, state.key.device),
            "learners": learners_of(state),
            "alphas": state.slots.alpha,
            "batch": batch_at(engine.structure, batches, 0),
            "batches": batches,
            "samples": engine.data.validation,
            "counterfactuals": single_changes(table),
        }

    def call(self, function, path, value):
        given = assign(self.given, path.split("."), lambda old: value)
        return getattr(self.engine.backend, function)(*(given[name] for name in ARGUMENTS[function]))


@pytest.fixture(scope="module")
def played(small_task, walk):
    """A state in which seeds train and blend, float32."""
    states, _ = walk(esper.make(small_task, E, backend="native"), 2, 6)
    assert len(states[-1].slots.stage.unique()) >= 3
    return states[-1]


@pytest.fixture(scope="module", params=BACKENDS)
def arguments(request, small_task, played):
    return BackendArguments(esper.make(small_task, E, backend=request.param), played)


@pytest.fixture(scope="module")
def exact(small_task, walk):
    """The definition in float64."""
    engine = esper.make(small_task, E, backend="eager", precision=Precision.FLOAT64, differentiable=True)
    return BackendArguments(engine, walk(engine, 2, 6)[0][-1])


def refused(arguments, function, path, what, call):
    with pytest.raises(BackendError) as error:
        call()
    assert str(error.value) == (
        f"backend {arguments.engine.backend.name!r}: {function}: {path} {what}, which it cannot follow; "
        'expected backend="eager" (esper.make with differentiable=True)'
    )


TRANSFORM = "belongs to a transform of torch.func"


@pytest.mark.parametrize(("function", "path"), PAIRS)
def test_other_backends_refuse_every_derivative_of_every_input(arguments, function, path):
    value = read(arguments.given, path).contiguous()

    def call(value):
        return arguments.call(function, path, value)

    refused(arguments, function, path, "requires a gradient", lambda: call(value.clone().requires_grad_()))
    refused(arguments, function, path, TRANSFORM, lambda: torch.func.grad(call)(value))
    refused(arguments, function, path, TRANSFORM, lambda: torch.func.vjp(call, value))
    refused(arguments, function, path, TRANSFORM, lambda: torch.func.jvp(call, (value,), (torch.ones_like(value),)))
    refused(arguments, function, path, TRANSFORM, lambda: torch.func.vmap(call)(value.expand(2, *value.shape)))
    refused(
        arguments,
        function,
        path,
        TRANSFORM,
        lambda: torch.func.vmap(torch.func.grad(call))(torch.stack((value, value))),
    )
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(value, torch.ones_like(value))
        refused(arguments, function, path, "carries a tangent", lambda: call(dual))


def test_a_whole_step_refuses_too(arguments):
    engine, state, wait = arguments.engine, arguments.state, torch.zeros(E, dtype=torch.int64)

    def loss(rate):
        hypers = engine.hypers.replace(host_lr=rate)
        return engine_module.step(engine.structure, engine.backend, hypers, state, engine.data, wait)[1].epoch.loss

    rate = engine.hypers.host_lr
    refused(arguments, "epoch", "hypers.host_lr", TRANSFORM, lambda: torch.func.grad(loss)(rate))
    refused(arguments, "epoch", "hypers.host_lr", "requires a gradient", lambda: loss(rate.clone().requires_grad_()))

    def later(params):
        return engine.step(state.replace(host=state.host.replace(params=params)), wait)[1].epoch.loss

    refused(arguments, "epoch", "learners.host.params", TRANSFORM, lambda: torch.func.jacrev(later)(state.host.params))


def test_where_autograd_is_off_nothing_is_asked_for(small_task, played):
    arguments = BackendArguments(esper.make(small_task, E, backend="native"), played)
    params = played.host.params.clone().requires_grad_()
    expected, _ = arguments.call("epoch", "learners.host.params", played.host.params)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            after, _ = arguments.call("epoch", "learners.host.params", params)
        assert torch.equal(after.host.params, expected.host.params) and not after.host.params.requires_grad


def test_constants_of_a_transform_pass(small_task, played):
    """What a transform does not touch runs, and its derivative is the zero that it is."""
    arguments = BackendArguments(esper.make(small_task, E, backend="native"), played)

    def scaled(factor):
        after, _ = arguments.call("epoch", "alphas", arguments.given["alphas"])
        return factor * after.host.params.sum()

    total = scaled(1.0)
    assert torch.equal(torch.func.grad(scaled)(torch.tensor(2.0)), total)


def test_arguments_by_name_are_looked_at(small_task, played):
    arguments = BackendArguments(esper.make(small_task, E, backend="oracle"), played)
    given = {name: arguments.given[name] for name in ARGUMENTS["epoch"]}
    arguments.engine.backend.epoch(**given)
    given["alphas"] = given["alphas"].clone().requires_grad_()
    refused(arguments, "epoch", "alphas", "requires a gradient", lambda: arguments.engine.backend.epoch(**given))


def test_a_locked_table_whose_leaf_asks_for_a_gradient_later_is_seen():
    def nothing(*given):
        return None

    backend = without_derivatives(Backend("dumb", *[nothing] * 6))
    hypers = esper.make("synthetic", 2, backend="eager").hypers
    backend.epoch(hypers, None, (), torch.zeros(1), ())
    hypers.host_lr.requires_grad_()
    with pytest.raises(BackendError, match=r"dumb.*hypers\.host_lr requires a gradient"):
        backend.epoch(hypers, None, (), torch.zeros(1), ())


@pytest.mark.parametrize("backend", BACKENDS)
def test_differentiable_is_an_error_for_every_other_backend(small_task, backend):
    with pytest.raises(BackendError) as error:
        esper.make(small_task, E, backend=backend, differentiable=True)
    expected = f"backend = {backend!r}: gives no derivatives; with differentiable=True expected 'eager'"
    assert str(error.value) == expected


def test_auto_is_the_definition_where_derivatives_are_taken(small_task):
    assert esper.make(small_task, E, differentiable=True).backend.name == "eager"
    structure = esper.make(small_task, E).structure
    assert build_backend("auto", structure, torch.device("cpu"), differentiable=True).name == "eager"


def objective(arguments):
    """A number of an epoch and an evaluation, as a function of rates, initial numbers and alphas."""
    engine, given = arguments.engine, arguments.given

    def total(rate, host, seeds, alphas):
        hypers, learners = engine.hypers.replace(host_lr=rate), given["learners"]
        learners = learners._replace(
            host=learners.host._replace(params=host), seeds=learners.seeds._replace(params=seeds)
        )
        after, seen = engine.backend.epoch(hypers, given["plan"], learners, alphas, given["batches"])
        rest = (given["samples"], given["counterfactuals"])
        scores = engine.backend.evaluate(hypers, given["plan"], after, alphas, *rest)
        return scores.losses.mean() + seen.loss.sum()

    learners = given["learners"]
    return total, (engine.hypers.host_lr, learners.host.params, learners.seeds.params, given["alphas"])


def test_the_definition_gives_the_same_derivative_in_every_form(exact):
    total, at = objective(exact)
    everything = tuple(range(len(at)))
    expected = torch.func.grad(total, argnums=everything)(*at)
    assert all(grad.abs().max() > 1e-4 for grad in expected)
    leaves = [leaf.clone().requires_grad_() for leaf in at]
    for ours, theirs in zip(torch.autograd.grad(total(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ways = tuple(torch.cos(torch.arange(leaf.numel(), dtype=leaf.dtype)).reshape(leaf.shape) for leaf in at)
    slope = sum((grad * way).sum() for grad, way in zip(expected, ways, strict=True))
    torch.testing.assert_close(torch.func.jvp(total, at, ways)[1], slope, rtol=1e-9, atol=1e-9)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(leaf, way) for leaf, way in zip(at, ways, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(total(*duals)).tangent, slope, rtol=1e-9, atol=1e-9)


def test_a_second_derivative_by_plain_autograd(exact):
    total, (rate, *rest) = objective(exact)
    leaf = rate.clone().requires_grad_()
    (first,) = torch.autograd.grad(total(leaf, *rest), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first, leaf)
    expected = torch.func.grad(torch.func.grad(lambda rate: total(rate, *rest)))(rate)
    torch.testing.assert_close(second, expected, rtol=1e-9, atol=1e-9)


def after_two_steps(exact):
    """The validation loss after two whole steps, as a function of the hosts' rate."""
    engine, state = exact.engine, exact.state
    wait = torch.zeros(E, dtype=torch.int64)

    def total(rate):
        now, hypers = state, engine.hypers.replace(host_lr=rate)
        for _ in range(2):
            now, _ = engine_module.step(engine.structure, engine.backend, hypers, now, engine.data, wait)
        return now.signals.val_loss.sum()

    return total, engine.hypers.host_lr


def test_whole_steps_are_differentiated_in_every_form(exact):
    total, rate = after_two_steps(exact)
    slope = torch.func.grad(total)(rate)
    step = 1e-6
    assert slope == pytest.approx(float(total(rate + step) - total(rate - step)) / (2 * step), rel=1e-5)
    leaf = rate.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(total(leaf), leaf)[0], slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.func.jvp(total, (rate,), (torch.ones_like(rate),))[1], slope, rtol=1e-9, atol=0)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(total(forward_ad.make_dual(rate, torch.ones_like(rate)))).tangent
        torch.testing.assert_close(tangent, slope, rtol=1e-9, atol=0)


def test_vmap_over_a_step_and_where_it_ends(exact):
    engine, state, wait = exact.engine, exact.state, torch.zeros(E, dtype=torch.int64)
    rates = torch.tensor([0.01, 0.03], dtype=torch.float64)

    def loss(rate):
        hypers = engine.hypers.replace(host_lr=rate)
        return engine_module.step(engine.structure, engine.backend, hypers, state, engine.data, wait)[1].evaluation.loss

    expected = torch.stack([loss(rate) for rate in rates])
    torch.testing.assert_close(torch.func.vmap(loss)(rates), expected, rtol=1e-12, atol=1e-12)

    def of_stage(stage):
        return engine.step(state.replace(slots=state.slots.replace(stage=stage)), wait)[1].evaluation.loss

    with pytest.raises(ValueError, match=r"^take_table: slots batched by vmap; expected a table taken outside.*$"):
        torch.func.vmap(of_stage)(torch.stack([state.slots.stage] * 2))


@pytest.mark.parametrize("backend", ["eager", "native", "oracle"])
def test_an_engine_keeps_no_graph(small_task, walk, backend):
    rates = torch.linspace(0.01, 0.05, E).requires_grad_()
    engine = esper.make(small_task, E, backend=backend, host_lr=rates * 1, seed_lr=torch.tensor(0.02).requires_grad_())
    assert not any(number.requires_grad for number in engine.hypers.values())
    states, _ = walk(engine, 2, 4)
    for state in states:
        for path, leaf in state.items(include_nested=True, leaves_only=True):
            assert leaf.grad_fn is None and not leaf.requires_grad, path


def test_a_differentiable_engine_keeps_the_graph_of_its_numbers(small_task):
    rates = torch.linspace(0.01, 0.05, E, dtype=torch.float64).requires_grad_()
    engine = esper.make(small_task, E, precision=Precision.FLOAT64, differentiable=True, host_lr=rates)
    _, event = engine.step(engine.init(0), torch.zeros(E, dtype=torch.int64))
    (slope,) = torch.autograd.grad(event.evaluation.loss.sum(), rates)
    assert (slope != 0).all()


def test_finding_nothing():
    assert find_derivative([]) is None
    assert find_derivative([torch.zeros(2), torch.arange(3)]) is None
    with torch.no_grad():
        assert find_derivative([torch.zeros(2).requires_grad_()]) is None
