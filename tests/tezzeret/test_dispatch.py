"""Grouped dispatch against one environment at a time; what is computed at all, and what is not."""

import inspect
from collections import Counter

import numpy as np
import pytest
import torch
from tezzeret_states import CPU, Lesson, batch_of, is_one_of, lesson, mixed_state
from torch.utils._python_dispatch import TorchDispatchMode

import esper
from esper.kasmina.counterfactuals import OFF, ON, coalitions, single_changes
from esper.kasmina.layers import conv2d
from esper.kasmina.slot_table import take_table
from esper.leyline.actions import Blend
from esper.leyline.config import Isolation, Precision
from esper.leyline.learners import learners_of
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.tezzeret.batches import Batch
from esper.tezzeret.plan import plan_evaluation
from esper.tolaria.evaluation import evaluate
from esper.tolaria.training import train_epoch
from esper.utils import rng

E = 24


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, E, backend="eager", precision=Precision.FLOAT64)


@pytest.mark.parametrize("isolation", Isolation, ids=lambda each: each.value)
def test_grouped_equals_one_environment_at_a_time(small_task, isolation):
    """Training's outputs, losses and gradients; float64 sums may be taken in another order."""
    settings = {"precision": Precision.FLOAT64, "isolation": isolation}
    many, one = (esper.make(small_task, count, **settings) for count in (E, 1))
    state = mixed_state(many, 1)
    batch, args = batch_of(many, 4), (learners_of(state), state.slots.alpha)
    outputs, _ = many.backend.forward(many.backend.plan(take_table(state.slots), CPU), *args, batch)
    together = lesson(many, state, batch)
    for env in range(E):
        alone, own = state[env : env + 1], Batch(*(part[env : env + 1] for part in batch[:2]))
        plan = one.backend.plan(take_table(alone.slots), CPU)
        expected, _ = one.backend.forward(plan, learners_of(alone), alone.slots.alpha, own)
        torch.testing.assert_close(outputs[env : env + 1], expected, rtol=1e-12, atol=1e-12)
        wanted: Lesson = lesson(one, alone, own)
        for part, whole in zip(wanted.rows(), together.rows(), strict=True):
            torch.testing.assert_close(whole[env : env + 1], part, rtol=1e-10, atol=1e-10)


def test_plan_lists_every_active_seed_once(engine):
    state = mixed_state(engine, 4)
    plan = engine.backend.plan(take_table(state.slots), CPU)
    for slot, listed in enumerate(plan.slots):
        active = is_one_of(state.slots.stage[:, slot], ACTIVE)
        rows, blueprint = listed.rows, state.slots.blueprint[listed.rows, slot]
        assert sorted(rows.tolist()) == active.nonzero().flatten().tolist()
        assert torch.equal(listed.present, active) and torch.equal(rows, listed.lanes)
        assert torch.equal(rows[listed.row_of[active]], active.nonzero().flatten())
        kinds = [group.blueprint for group in listed.groups]
        assert kinds == sorted(set(kinds)) and all(group.size > 0 for group in listed.groups)
        assert blueprint.tolist() == [group.blueprint for group in listed.groups for _ in range(group.size)]
        assert torch.equal(listed.gated, state.slots.blend[rows, slot] == int(Blend.GATED))
        assert torch.equal(listed.training, state.slots.stage[rows, slot] == int(Stage.TRAINING))


def test_lanes_share_prefixes(engine):
    """Each active slot costs one lane, and that lane exists only from its slot on."""
    table = take_table(mixed_state(engine, 5).slots)
    active = table.within(ACTIVE)
    tree = plan_evaluation(engine.structure, engine.backend.plan(table, CPU), single_changes(table), CPU)
    assert tree.envs[0] is None, "before the first slot there is nothing but the environments"
    for slot in range(3):
        lanes = tree.slots[slot].present.shape[0]
        assert lanes == E + active[:, : slot + 1].sum()
        assert tree.envs[slot + 1].shape[0] == lanes
    wanted, off = coalitions(table)
    merged = table.within(MERGED).sum(1)
    assert wanted.env.size == (2**merged - 1).sum()
    assert len(set(zip(wanted.env.tolist(), off.tolist(), strict=True))) == wanted.env.size
    tree = plan_evaluation(engine.structure, engine.backend.plan(table, CPU), wanted, CPU)
    assert len(set(tree.rows.tolist())) == E + wanted.env.size == tree.slots[2].present.shape[0]


def test_single_changes_are_every_active_slot_once(engine):
    table = take_table(mixed_state(engine, 6).slots)
    wanted = single_changes(table)
    assert (np.count_nonzero(wanted.change, axis=1) == 1).all()
    slot = wanted.change.argmax(1)
    found = set(zip(wanted.env.tolist(), slot.tolist(), wanted.change.max(1).tolist(), strict=True))
    merged, training = table.within(MERGED), table.within((Stage.TRAINING,))
    assert found == {(int(e), int(s), OFF) for e, s in zip(*merged.nonzero(), strict=True)} | {
        (int(e), int(s), ON) for e, s in zip(*training.nonzero(), strict=True)
    }
    assert len(found) == wanted.env.size


def test_dormant_networks_make_no_groups(engine):
    table = take_table(engine.init(0).slots)
    plan = engine.backend.plan(table, CPU)
    assert not table.any_held and all(not listed.groups for listed in plan.slots)
    assert not (table.stage != int(Stage.DORMANT)).any()


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_dormant_slots_cost_nothing_in_training_and_validation(small_task):
    """The same operators run, one for one, as for a host without slots; the checks of the debug switch apart."""
    counts = []
    for slots in ((0, 1, 2), ()):
        bare = esper.make(small_task, E, backend="eager", slots=slots)
        state = bare.init(0)
        table = take_table(state.slots)
        plan = bare.backend.plan(table, CPU)
        with Operators() as train:
            inspect.unwrap(train_epoch)(bare.config, bare.backend, bare.hypers, state, plan, bare.data)
        with Operators() as validate:
            inspect.unwrap(evaluate)(bare.backend, bare.hypers, state, table, plan, bare.data)
        counts.append((arithmetic(train), arithmetic(validate)))
    assert counts[0][0] - counts[1][0] == counts[1][0] - counts[0][0] == Counter()
    assert counts[0][1] == counts[1][1]
    assert sum(counts[0][0].values()) > 100


def arithmetic(mode):
    """What computes on parameters and features; views and index bookkeeping aside."""
    words = ("conv", "mul", "add", "sub", "div", "sum", "mean", "bmm", "maximum", "relu", "lerp", "softmax", "clone")
    return Counter({name: n for name, n in mode.counts.items() if any(word in name for word in words)})


def test_a_shared_minibatch_is_one_dense_convolution_and_equals_a_copied_one():
    x = rng.normal(rng.key(0), (5, 2, 6, 6), torch.float64)
    weight = rng.normal(rng.key(1), (4, 3, 2, 3, 3), torch.float64).requires_grad_()
    shared = x.expand(4, *x.shape)
    outputs = [conv2d(features, weight) for features in (shared, shared.contiguous())]
    grads = [torch.autograd.grad(out.square().sum(), weight)[0] for out in outputs]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)
    leaf = x.clone().requires_grad_()
    grad = torch.autograd.grad(conv2d(leaf.expand(4, *x.shape), weight).square().sum(), leaf)[0]
    copied = x.expand(4, *x.shape).contiguous().requires_grad_()
    expected = torch.autograd.grad(conv2d(copied, weight).square().sum(), copied)[0].sum(0)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)
