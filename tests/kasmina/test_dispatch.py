"""Grouped dispatch against computing everything and selecting."""

import numpy as np
import pytest
import torch

import esper
from esper.kasmina import arena, reference
from esper.kasmina.forward import train_forward
from esper.kasmina.lanes import fork_lanes
from esper.kasmina.plan import make_plan
from esper.leyline.actions import Blend
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE, MERGED, Stage
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
        gated = (state.slots.blend[rows.lanes, slot] == int(Blend.GATED)) & ~rows.training
        assert rows.gated.tolist() == gated.nonzero().flatten().tolist()


def test_lanes_share_prefixes(engine):
    """Each active slot costs one lane, and that lane exists only from its slot on."""
    state = mixed_state(engine, 5)
    plan = make_plan(engine.network, state.slots)
    lanes = fork_lanes(engine.network, plan.census, False, torch.device("cpu"))
    active = np.isin(plan.census.stage, [int(s) for s in ACTIVE])
    for slot in range(3):
        assert lanes.slots[slot].envs.shape[0] == E + active[:, : slot + 1].sum()
    coalitions = fork_lanes(engine.network, plan.census, True, torch.device("cpu"))
    merged = np.isin(plan.census.stage, [int(s) for s in MERGED]).sum(1)
    assert coalitions.env.size == (2**merged).sum()
    assert len(set(zip(coalitions.env.tolist(), coalitions.off.tolist(), strict=True))) == coalitions.env.size


def test_dormant_network_makes_no_groups(engine):
    plan = make_plan(engine.network, engine.init(0).slots)
    assert not plan.any_active and all(not rows.groups for rows in plan.slots)
    assert not (plan.census.stage != int(Stage.DORMANT)).any()
