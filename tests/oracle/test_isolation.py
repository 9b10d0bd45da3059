"""A seed in TRAINING learns behind the host: the host computes and learns as if there were no seed."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import esper
from esper.engine import Engine
from esper.kasmina import arena
from esper.kasmina.forward import split_groups, train_forward
from esper.kasmina.plan import make_plan
from esper.leyline.actions import Blend
from esper.leyline.config import Precision
from esper.leyline.stages import Stage
from esper.leyline.state import State
from esper.tolaria.training import Gradients, compute_gradients, gather, train_epoch

SLOTS = (0, 0, 1, 2)


@pytest.fixture(scope="module")
def engine(topology: NamedTuple) -> Engine:
    task = esper.Task("isolation", topology.host, topology.blueprints, topology.data, {})
    envs, precision = 2 * len(topology.blueprints), Precision.FLOAT64
    return esper.make(task, envs, slots=SLOTS, batch_size=16, steps_per_epoch=4, precision=precision)


@pytest.fixture(scope="module")
def seeded(engine: Engine) -> State:
    """Fresh seeds in every slot, all in TRAINING; every blueprint with and without a gate."""
    state = engine.init(3)
    kinds = len(engine.structure.blueprints)
    env, slot = torch.arange(2 * kinds).unsqueeze(1), torch.arange(len(SLOTS))
    stage, blueprint = torch.full_like(state.slots.stage, int(Stage.GERMINATED)), (env + slot) % kinds
    blend = torch.where(env < kinds, int(Blend.LINEAR), int(Blend.GATED)).expand_as(stage)
    slots = state.slots.replace(stage=stage, blueprint=blueprint, blend=blend)
    state = arena.sow(engine.structure, state, make_plan(engine.structure, slots))
    return state.replace(slots=slots.replace(stage=torch.full_like(stage, int(Stage.TRAINING))))


def pass_through(engine: Engine, state: State) -> tuple[Tensor, Gradients]:
    """Logits and gradients of one minibatch."""
    network, data = engine.structure, engine.data
    plan = make_plan(network, state.slots)
    alphas = [state.slots.alpha[:, slot][rows.lanes] for slot, rows in enumerate(plan.slots)]
    batch = tuple(part[:32].expand(state.batch_size[0], 32, *part.shape[1:]) for part in data[1:3])
    host = arena.split_stages(network, state.host.params), arena.split_buffers(network, state.buffers)
    seeds = [arena.slot_params(network, state.seeds.params, slot, rows) for slot, rows in enumerate(plan.slots)]
    logits, _ = train_forward(network, plan.slots, host, seeds, alphas, batch[0])
    *_, grads = compute_gradients(network, plan, gather(network, state, plan), alphas, batch)
    return logits, grads


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int64)


def without_seeds(engine: Engine, state: State) -> State:
    return state.replace(slots=engine.init(3).slots)


def break_seeds(engine: Engine, state: State, value: float, gates: bool) -> State:
    """Fill the seeds' parameters with a non-finite value, those of their gates too or not."""
    params = torch.full_like(state.seeds.params, value)
    for slot in range(0 if gates else len(SLOTS)):
        columns = arena.gate_columns(engine.structure, slot)
        params[:, columns] = state.seeds.params[:, columns]
    return state.replace(seeds=state.seeds.replace(params=params))


BROKEN = pytest.mark.parametrize(
    ("value", "gates"), [(value, gates) for value in (math.inf, math.nan) for gates in (False, True)]
)


def assert_same_host(grads: Tensor, expected: Tensor) -> None:
    assert ((grads - expected).abs().amax(1) <= 1e-12 * expected.abs().amax(1)).all()


def test_host_neither_sees_nor_feels_a_seed_in_training(engine: Engine, seeded: State) -> None:
    logits, grads = pass_through(engine, seeded)
    expected, alone = pass_through(engine, without_seeds(engine, seeded))
    assert torch.equal(bits(logits), bits(expected))
    assert_same_host(grads.host, alone.host)


@BROKEN
def test_a_broken_seed_in_training_stays_behind_the_host(
    engine: Engine, seeded: State, value: float, gates: bool
) -> None:
    logits, grads = pass_through(engine, break_seeds(engine, seeded, value, gates))
    expected, alone = pass_through(engine, without_seeds(engine, seeded))
    assert torch.isfinite(expected).all()
    assert torch.equal(bits(logits), bits(expected))
    assert_same_host(grads.host, alone.host)


@BROKEN
def test_host_trains_on_before_a_broken_seed(engine: Engine, seeded: State, value: float, gates: bool) -> None:
    """Over several minibatches: what one makes non-finite must not reach the host in the next."""
    hosts = []
    for state in (break_seeds(engine, seeded, value, gates), without_seeds(engine, seeded)):
        plan = make_plan(engine.structure, state.slots)
        hosts.append(train_epoch(engine.structure, engine.hypers, state, plan, engine.data)[0].host.params)
    assert_same_host(*hosts)


def test_a_broken_seed_is_reported_though_its_host_is_well(engine: Engine, seeded: State) -> None:
    params = seeded.seeds.params.clone()
    params[2, engine.structure.offsets[1]] = math.inf
    state = seeded.replace(seeds=seeded.seeds.replace(params=params))
    _, epoch = train_epoch(engine.structure, engine.hypers, state, make_plan(engine.structure, state.slots), engine.data)
    assert torch.isfinite(epoch.loss).all() and torch.isfinite(epoch.health.host_norm).all()
    assert (~epoch.finite).nonzero().flatten().tolist() == [2]


def test_every_seed_in_training_learns(engine: Engine, seeded: State) -> None:
    """From its first step. Its gate does not: nothing is gated before BLENDING."""
    _, grads = pass_through(engine, seeded)
    plan = make_plan(engine.structure, seeded.slots)
    for slot, (rows, seed, gate) in enumerate(zip(plan.slots, grads.seeds, grads.gates, strict=True)):
        groups = split_groups(engine.structure, slot, rows, seed)
        assert [group.blueprint for group in rows.groups] == list(range(len(engine.structure.blueprints)))
        for blueprint, grad in zip(engine.structure.blueprints, groups, strict=True):
            learns = torch.linalg.vector_norm(grad, dim=1) > 1e-6
            assert learns.all(), blueprint.name
        assert gate.shape[0] == 0


@pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.SHADOWING])
def test_isolation_ends_with_blending(engine: Engine, seeded: State, stage: Stage) -> None:
    """At alpha 1 nothing of the host before the seeds learns while they blend in, and all of it does afterwards.

    What the last stage reads through a tie learns there, behind the seeds.
    """
    slots = seeded.slots.replace(
        stage=torch.full_like(seeded.slots.stage, int(stage)),
        blend=torch.full_like(seeded.slots.blend, int(Blend.LINEAR)),
        alpha=torch.ones_like(seeded.slots.alpha),
    )
    _, grads = pass_through(engine, seeded.replace(slots=slots))
    stages = engine.structure.host.blocks
    tied = [(tie.stage, tie.param.name) for tie in stages[-1].ties]
    rows = zip(stages[:-1], arena.split_stages(engine.structure, grads.host)[:-1], strict=True)
    upstream = [
        torch.cat([g.flatten(1) for name, g in stage.layout.views(row).items() if (index, name) not in tied], dim=1)
        for index, (stage, row) in enumerate(rows)
    ]
    assert len(upstream) == 3
    for grad in upstream:
        assert (torch.linalg.vector_norm(grad, dim=1) > 1e-6).all() == (stage == Stage.SHADOWING)
        assert stage == Stage.SHADOWING or (grad == 0).all()
