"""Blocks and seeds that are computed again for their gradient: the same bits, fewer of them kept."""

import pytest
import torch
from tezzeret_states import mixed_state, plan_of
from torch.func import grad, jvp

import esper
from esper.kasmina.transformer import transformer_host
from esper.leyline.learners import learners_of
from esper.runtime.tasks import named
from esper.tezzeret import eager
from esper.tezzeret.units import pulled, recomputed
from esper.utils import rng

E = 4


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
def test_two_steps_end_in_the_same_bits(small_task, precision):
    ends = []
    for again in (False, True):
        engine = esper.make(small_task, E, backend="eager", precision=precision, recompute=again)
        state, wait = mixed_state(engine, 5), torch.zeros(E, dtype=torch.int64)
        for _ in range(2):
            state, event = engine.step(state, wait)
        ends.append({name: leaf for name, leaf in state.items(True, True)} | {"loss": event.epoch.loss})
    assert any("only the inputs" in line for line in engine.describe())
    for name, leaf in ends[0].items():
        assert torch.equal(leaf.nan_to_num(7.0), ends[1][name].nan_to_num(7.0)), name


def test_it_can_be_differentiated_from_outside(small_task):
    """The derivative of a minibatch's end with respect to its beginning, backward and forward."""
    engine = esper.make(small_task, E, backend="eager", precision="float64", differentiable=True, recompute=True)
    state = mixed_state(engine, 5)
    plan, learners = plan_of(engine, state), learners_of(state)
    inputs, targets = engine.data.train.take(slice(0, 8)).samples
    batch = eager.Batch(inputs.expand(E, *inputs.shape), targets.expand(E, *targets.shape), state.key)

    def end(params: torch.Tensor, call) -> torch.Tensor:
        begun = learners._replace(host=learners.host._replace(params=params))
        after, _ = eager.minibatch_step(engine.structure, engine.hypers, plan, begun, state.slots.alpha, batch, call)
        return after.host.params.square().sum()

    found, kept = (grad(end)(learners.host.params, call) for call in (recomputed, pulled))
    torch.testing.assert_close(found, kept, rtol=1e-10, atol=1e-12)
    way = rng.normal(rng.key(1), tuple(found.shape), torch.float64)
    _, along = jvp(lambda params: end(params, recomputed), (learners.host.params,), (way,))
    assert float((kept * way).sum()) == pytest.approx(float(along), rel=1e-9)


def test_a_deep_host_keeps_less_than_half(bench_module):
    """Counted by hooks on what torch's own graph saves, unit by unit."""
    activations, task, kept = bench_module("activations"), named("synthetic_tokens"), {}
    deep = task._replace(host=transformer_host(task.host.num_outputs, task.host.input_shape[0], 8, 2, 16))
    for again in (False, True):
        engine = esper.make(deep, E, backend="eager", slots=(), recompute=again)
        state = engine.init(0)
        kept[again] = activations.bytes_kept(engine, state, activations.first_batch(engine, state))
    assert 0 < kept[True] < 0.3 * kept[False]


def test_narrow_features_keep_half(bench_module, small_task):
    activations, kept = bench_module("activations"), {}
    for precision in ("float32", "bf16"):
        engine = esper.make(small_task, E, backend="eager", precision=precision)
        state = mixed_state(engine, 5)
        kept[precision] = activations.bytes_kept(engine, state, activations.first_batch(engine, state))
    assert kept["bf16"] <= 0.55 * kept["float32"]
