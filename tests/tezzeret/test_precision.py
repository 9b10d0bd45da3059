"""Features of 16 bits: what has which type, how far results move, and that no gradient is lost in float16."""

import logging
import math

import pytest
import torch
from tezzeret_states import mixed_state, plan_of
from torch import Tensor, nn

import esper
from esper.kasmina.host import Host, plain_block
from esper.kasmina.layers import batch_norm, conv2d, group_norm, linear
from esper.kasmina.layout import Params, fan_in_uniform
from esper.kasmina.objectives import Objective, cross_entropy
from esper.kasmina.site import Site
from esper.leyline.config import Precision
from esper.leyline.learners import learners_of
from esper.tezzeret import choose, eager
from esper.tezzeret.batches import Batch
from esper.tezzeret.gradients import loss_scale
from esper.tezzeret.units import pulled
from esper.utils import rng

E = 4
NARROW = ("bf16", "float16")
DIGITS = {"bf16": 2.0**-8, "float16": 2.0**-11}
"""Relative error of one rounding."""


def drawn(*shape: int, key: int = 0) -> Tensor:
    return rng.normal(rng.key(key), shape, torch.float64)


def a_batch(engine: esper.Engine, key: Tensor) -> Batch:
    inputs, targets = engine.data.train.take(slice(0, engine.config.batch_size)).samples
    return Batch(inputs.expand(E, *inputs.shape), targets.expand(E, *targets.shape), key)


@pytest.mark.parametrize("precision", NARROW)
def test_layers_are_torchs_own_on_rounded_factors(precision):
    """One network at a time by ``torch.nn.functional`` in double precision, from inputs that are rounded."""
    kind, close = Precision(precision).features, 4 * DIGITS[precision]
    x, weight = drawn(2, 5, 3, 6, 6).to(kind), drawn(2, 4, 3, 3, 3, key=1).float()
    found = conv2d(x, weight)
    assert found.dtype == kind
    own = [torch.conv2d(x[i].double(), weight[i].to(kind).double(), padding=1) for i in range(2)]
    torch.testing.assert_close(found.double(), torch.stack(own), rtol=close, atol=close)
    gain, shift = drawn(2, 3, key=2).float(), drawn(2, 3, key=3).float()
    out, mean, variance = batch_norm(x, gain, shift)
    assert (out.dtype, mean.dtype, variance.dtype) == (kind, torch.float32, torch.float32)
    wide = x.double()
    torch.testing.assert_close(mean.double(), wide.mean((1, 3, 4)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance.double(), wide.var((1, 3, 4)), rtol=DIGITS[precision], atol=1e-6)
    own = [
        nn.functional.batch_norm(wide[i], None, None, gain[i].double(), shift[i].double(), training=True)
        for i in range(2)
    ]
    torch.testing.assert_close(out.double(), torch.stack(own), rtol=close, atol=close)
    out = group_norm(x, gain, shift, 1)
    own = [nn.functional.group_norm(wide[i], 1, gain[i].double(), shift[i].double()) for i in range(2)]
    assert out.dtype == kind
    torch.testing.assert_close(out.double(), torch.stack(own), rtol=close, atol=close)


def test_statistics_keep_their_digits_where_the_mean_is_large():
    """A mean of 100 deviations: E[x^2] less E[x]^2 in float32 would be off by percents, in bf16 by all of it."""
    x = (100 + drawn(1, 64, 1, 8, 8)).bfloat16()
    _, mean, variance = batch_norm(x, torch.ones(1, 1), torch.zeros(1, 1))
    assert float(mean) == pytest.approx(float(x.double().mean()), rel=1e-6)
    assert float(variance) == pytest.approx(float(x.double().var()), rel=1e-4)


@pytest.mark.parametrize("precision", NARROW)
def test_features_are_narrow_and_all_that_is_kept_is_not(small_task, precision):
    engine, seen = esper.make(small_task, E, backend="eager", precision=precision), []
    state = mixed_state(engine, 3)

    def call(unit, arguments, wrt):
        value, aux, pull = pulled(unit, arguments, wrt)
        if unit.name[0] in ("block", "seed", "gate", "mix"):
            seen.append((unit.name[0], value.dtype))
        return value, aux, pull

    batch = a_batch(engine, state.key)
    table = plan_of(engine, state)
    learners, epoch = eager.minibatch_step(
        engine.structure, engine.hypers, table, learners_of(state), state.slots.alpha, batch, call
    )
    assert {kind for kind, _ in seen} == {"block", "seed", "gate", "mix"}
    assert {dtype for _, dtype in seen} == {Precision(precision).features}
    kept = [leaf for weights in (learners.host, learners.seeds) for leaf in weights[:2]]
    assert {leaf.dtype for leaf in (*kept, learners.buffers, epoch.loss)} == {torch.float32}
    after, event = engine.step(state, torch.zeros(E, dtype=torch.int64))
    floating = [leaf for leaf in after.values(True, True) if leaf.is_floating_point()]
    assert {leaf.dtype for leaf in (*floating, event.evaluation.loss)} == {torch.float32}


@pytest.mark.parametrize("task", ["small", "synthetic_tokens"])
@pytest.mark.parametrize("precision", NARROW)
def test_fifty_losses_are_those_of_float64(small_task, task, precision):
    """Seeds of every kind and stage, none of which moves meanwhile: what differs is rounding."""
    task = small_task if task == "small" else task
    losses = {}
    for name in ("float64", precision):
        engine = esper.make(task, E, backend="eager", precision=name, host_lr=0.02, seed_lr=0.02)
        state, found = mixed_state(engine, 3), []
        plan, learners, batch = plan_of(engine, state), learners_of(state), a_batch(engine, state.key)
        for _ in range(50):
            learners, seen = engine.backend.minibatch_step(engine.hypers, plan, learners, state.slots.alpha, batch)
            found.append(seen.loss.double().mean())
        losses[name] = torch.stack(found)
    assert losses["float64"][-1] < 0.9 * losses["float64"][0], "something was learned"
    torch.testing.assert_close(losses[precision], losses["float64"], rtol=2e-2, atol=0)


def test_a_loss_scale_is_the_power_of_two_that_fits():
    sizes = [1e-12, 3e-9, 0.5, 0.50001, 1.0, 7.0, 1e30, 0.0, math.inf, math.nan]
    grad = torch.tensor(sizes).reshape(-1, 1, 1) * torch.tensor([1.0, -0.25])
    found = loss_scale(grad).squeeze(1).tolist()
    for size, scale in zip(sizes[:7], found, strict=False):
        assert math.frexp(scale)[0] == 0.5 and 0.5 < size * scale <= 1.0
    assert found[7:] == [1.0, 1.0, 1.0]


def test_float16_loses_no_gradient_of_a_tiny_loss(small_task):
    """A loss in units 2^30 times as large: its gradients are far below float16's least number."""
    plain = cross_entropy()
    tiny = Objective("tiny", lambda o, t: 2.0**-30 * plain.loss(o, t), plain.score, plain.guess_loss)
    health = {}
    for precision in ("float64", "float16"):
        task = small_task._replace(objective=tiny)
        engine = esper.make(task, E, backend="eager", precision=precision)
        state = mixed_state(engine, 3)
        plan, batch = plan_of(engine, state), a_batch(engine, state.key)
        _, seen = engine.backend.minibatch_step(engine.hypers, plan, learners_of(state), state.slots.alpha, batch)
        health[precision] = seen.health
    for name in ("host_norm", "seed_norm"):
        exact, rough = (getattr(health[precision], name).double() for precision in ("float64", "float16"))
        assert bool((exact > 0).any())
        torch.testing.assert_close(rough, exact, rtol=3e-2, atol=0)


def _own_products(params: Params, x: Tensor) -> Tensor:
    """A user's block, which multiplies factors of one type only."""
    return torch.einsum("nbi,noi->nbo", x.flatten(2), params["weight"])


def _own_host() -> Host:
    first = (fan_in_uniform("weight", (6, 64), 64),)
    last = (fan_in_uniform("weight", (4, 6), 6),)
    blocks = (
        plain_block(first, _own_products, Site("vector", (6,), 0), 384),
        plain_block(last, lambda params, x: linear(torch.relu(x), params["weight"]), None, 24),
    )
    return Host("own", (1, 8, 8), 4, blocks)


def test_what_knows_nothing_of_narrow_features_computes_in_its_weights_type(small_task):
    task = small_task._replace(host=_own_host(), blueprints=(), settings={"slots": ()})
    found = {}
    for precision in ("float32", "bf16"):
        engine = esper.make(task, E, backend="eager", precision=precision)
        _, event = engine.step(engine.init(1), torch.zeros(E, dtype=torch.int64))
        found[precision] = event.epoch.loss
    said = [line for line in engine.describe() if line.startswith("float32 inside")]
    assert len(said) == 1 and said[0].startswith("float32 inside: block 0: ")
    assert engine.describe()[1].startswith("precision bf16")
    torch.testing.assert_close(found["bf16"], found["float32"], rtol=2e-2, atol=0)


@pytest.mark.usefixtures("auto_as_shipped")
def test_it_is_said_which_backend_runs_and_why(caplog):
    with caplog.at_level(logging.INFO, logger="esper"):
        engine = esper.make("synthetic", 2, precision="bf16")
    assert engine.backend.name in ("inductor", "eager")
    told = [line for line in caplog.messages if "'native'" in line]
    assert len(told) == 1 and "precision bf16; expected float32" in told[0]
    assert any("precision bf16; expected float32" in line for line in engine.describe())
    with pytest.raises(choose.BackendError, match="precision bf16; expected float32"):
        esper.make("synthetic", 2, backend="native", precision="bf16")
    with pytest.raises(esper.ConfigError, match="float32 or float64 or bf16 or float16"):
        esper.make("synthetic", 2, precision="float8")


def test_what_grew_in_bf16_is_exported_as_plain_float32(small_task):
    engine = esper.make(small_task, E, backend="eager", precision="bf16")
    state = mixed_state(engine, 3)
    network, inputs = engine.network_of(state, 0).eval(), engine.data.test.held[:16]
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    double = esper.make(small_task, E, backend="eager", precision="float64")
    wide = state.apply(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)
    exact = double.network_of(wide, 0).eval()(inputs.double())
    torch.testing.assert_close(network(inputs).double(), exact, rtol=1e-4, atol=1e-4)
