"""Grouped dispatch against computing everything and selecting."""

from collections import Counter

import numpy as np
import pytest
import torch
from esper.kasmina.forward import train_forward
from esper.kasmina.lanes import fork_lanes
from esper.kasmina.plan import make_plan
from torch.utils._python_dispatch import TorchDispatchMode

import esper
from esper.kasmina import arena, reference
from esper.kasmina.layers import conv2d
from esper.leyline.actions import Blend
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.tolaria.evaluation import lane_scores
from esper.tolaria.training import train_epoch
from esper.utils import rng

E = 24


def mixed_state(engine, seed):
    """A state with every stage, blueprint and blend, and random parameters everywhere."""
    state, keys = engine.init(seed), rng.split(rng.key(seed), 6)
    shape = (E, engine.config.num_slots)
    stages = torch.tensor([1, 3, 3, 4, 4, 5, 6, 7, 8])
    stage = stages[(rng.uniform(keys[0], shape) * len(stages)).long()]
    holds = torch.isin(stage, torch.tensor([int(s) for s in ACTIVE]))
    kinds = (rng.uniform(keys[1], shape) * len(engine.network.blueprints)).long()
    blends = torch.tensor([int(b) for b in engine.config.blends])[(rng.uniform(keys[2], shape) * 3).long()]
    slots = state.slots.replace(
        stage=stage,
        blueprint=torch.where(holds, kinds, -1),
        blend=torch.where(holds, blends, -1),
        alpha=torch.where(torch.isin(stage, torch.tensor([4, 5, 6, 7])), rng.uniform(keys[3], shape).double(), 0.0),
    )
    params = 0.3 * rng.normal(keys[4], tuple(state.seeds.params.shape), torch.float64)
    return state.replace(slots=slots, seeds=state.seeds.replace(params=params))


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, E, compile=False, precision=Precision.FLOAT64)


def gradients(logits, host, seeds):
    return torch.autograd.grad(logits.square().sum(), (host, seeds))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grouped_equals_compute_all_and_select(engine, seed):
    state, network = mixed_state(engine, seed), engine.network
    x = rng.normal(rng.key(seed + 50), (E, 4, 1, 8, 8), torch.float64)
    host, seeds = (leaf.clone().requires_grad_() for leaf in (state.host.params, state.seeds.params))

    expected = reference.train_logits(network, state.slots, host, state.buffers, seeds, x)
    plan = make_plan(network, state.slots)
    params = [arena.slot_params(network, seeds, slot, rows) for slot, rows in enumerate(plan.slots)]
    alphas = [state.slots.alpha[:, slot][rows.lanes] for slot, rows in enumerate(plan.slots)]
    stages = (arena.split_stages(network, host), arena.split_buffers(network, state.buffers))
    logits, _ = train_forward(network, plan.slots, stages, params, alphas, x)

    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    for actual, wanted in zip(gradients(logits, host, seeds), gradients(expected, host, seeds), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


def test_plan_lists_every_active_seed_once(engine):
    state = mixed_state(engine, 4)
    plan = make_plan(engine.network, state.slots)
    for slot, rows in enumerate(plan.slots):
        active = torch.isin(state.slots.stage[:, slot], torch.tensor([int(s) for s in ACTIVE]))
        assert sorted(rows.lanes.tolist()) == active.nonzero().flatten().tolist()
        for group in rows.groups:
            assert (state.slots.blueprint[group.rows, slot] == group.blueprint).all() and len(group.rows) > 0
        assert torch.equal(torch.cat([g.rows for g in rows.groups]), rows.lanes)
        assert torch.equal(rows.envs, rows.lanes)
        gated = (state.slots.blend[rows.lanes, slot] == int(Blend.GATED)) & ~rows.training
        assert rows.gated.tolist() == gated.nonzero().flatten().tolist()


def test_lanes_share_prefixes(engine):
    """Each active slot costs one lane, and that lane exists only from its slot on."""
    state = mixed_state(engine, 5)
    plan = make_plan(engine.network, state.slots)
    lanes = fork_lanes(engine.network, plan.census, False, torch.device("cpu"))
    active = np.isin(plan.census.stage, [int(s) for s in ACTIVE])
    for slot in range(3):
        lane = lanes.slots[slot]
        assert lane.envs.shape[0] == E + active[:, : slot + 1].sum()
        assert torch.equal(torch.cat([g.rows for g in lane.plan.groups]), lane.plan.envs)
        assert torch.equal(lane.envs[lane.plan.lanes], lane.plan.envs)
    coalitions = fork_lanes(engine.network, plan.census, True, torch.device("cpu"))
    merged = np.isin(plan.census.stage, [int(s) for s in MERGED]).sum(1)
    assert coalitions.env.size == (2**merged).sum()
    assert len(set(zip(coalitions.env.tolist(), coalitions.off.tolist(), strict=True))) == coalitions.env.size


def test_dormant_network_makes_no_groups(engine):
    plan = make_plan(engine.network, engine.init(0).slots)
    assert not plan.any_active and all(not rows.groups for rows in plan.slots)
    assert not (plan.census.stage != int(Stage.DORMANT)).any()


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_dormant_slots_cost_nothing_in_training_and_validation(small_task, engine):
    """The same operators run, one for one, as for a host without slots."""
    counts = []
    for slots in ((0, 1, 2), ()):
        bare = esper.make(small_task, E, compile=False, slots=slots)
        state = bare.init(0)
        plan = make_plan(bare.network, state.slots)
        with Operators() as train:
            train_epoch(bare.network, bare.hypers, state, plan, bare.data)
        with Operators() as validate:
            lanes = fork_lanes(bare.network, plan.census, False, torch.device("cpu"))
            lane_scores(bare.network, bare.hypers, state, lanes, bare.data)
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
