"""A seed in TRAINING learns behind the host: the host computes and learns as if there were no seed."""

import math
from typing import NamedTuple

import pytest
import torch
from oracle_topologies import TOPOLOGIES
from torch import Tensor

import esper
from esper.engine import Engine
from esper.kasmina import arena
from esper.kasmina.slot_table import take_table
from esper.leyline.actions import Blend
from esper.leyline.config import Isolation, Precision
from esper.leyline.events import Epoch
from esper.leyline.learners import learners_of, with_learners
from esper.leyline.stages import Stage
from esper.leyline.state import State
from esper.tezzeret.batches import Batch
from esper.tezzeret.native.library import library
from esper.tolaria.training import train_epoch

SLOTS = (0, 0, 1, 2)
PRECISION = {"eager": Precision.FLOAT64, "native": Precision.FLOAT32}
NEAR = {torch.float64: 1e-12, torch.float32: 1e-5}
PLAIN_SGD = dict.fromkeys(("host_lr", "seed_lr", "final_lr_fraction"), 1.0)
PLAIN_SGD |= dict.fromkeys(("momentum", "host_weight_decay", "seed_weight_decay", "warmup_epochs"), 0.0)
PLAIN_SGD |= dict.fromkeys(("host_clip", "seed_clip"), math.inf)
"""An SGD step by which parameters change by their gradient."""


RUNS = [("eager", "conv"), ("eager", "token")] + [("native", "conv")] * (library() is not None)
ENGINES = [(*names, way) for way in (Isolation.OBJECTIVE, Isolation.STRAIGHT_THROUGH) for names in RUNS]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda each: "-".join((*each[:2], each[2].value)))
def engine(request: pytest.FixtureRequest) -> Engine:
    backend, topology, isolation = request.param[0], TOPOLOGIES[request.param[1]], request.param[2]
    task = esper.Task("isolation", topology.host, topology.blueprints, topology.data, {})
    settings = {"slots": SLOTS, "batch_size": 16, "steps_per_epoch": 4, "precision": PRECISION[backend]}
    settings |= {"isolation": isolation}
    return esper.make(task, 2 * len(topology.blueprints), backend=backend, **settings)


@pytest.fixture(scope="module")
def seeded(engine: Engine) -> State:
    """Fresh seeds in every slot, all in TRAINING; every blueprint with and without a gate."""
    state = engine.init(3)
    kinds = len(engine.structure.blueprints)
    env, slot = torch.arange(2 * kinds).unsqueeze(1), torch.arange(len(SLOTS))
    stage, blueprint = torch.full_like(state.slots.stage, int(Stage.GERMINATED)), (env + slot) % kinds
    blend = torch.where(env < kinds, int(Blend.LINEAR), int(Blend.GATED)).expand_as(stage)
    slots = state.slots.replace(stage=stage, blueprint=blueprint, blend=blend)
    learners = arena.init_seeds(engine.structure, take_table(slots), learners_of(state), state.key, state.epoch)
    slots = slots.replace(stage=torch.full_like(stage, int(Stage.TRAINING)))
    return with_learners(state, learners).replace(slots=slots)


class Passed(NamedTuple):
    """What one minibatch gave, and its gradients."""

    logits: Tensor
    loss: Tensor
    host: Tensor
    seeds: Tensor
    moments: Tensor


def pass_through(engine: Engine, state: State) -> Passed:
    """One minibatch of plain SGD, whose steps are the gradients."""
    data, learners, alphas = engine.data, learners_of(state), state.slots.alpha
    plan = engine.backend.plan(take_table(state.slots), torch.device("cpu"))
    batch = Batch(*(part[:32].expand(state.batch_size[0], 32, *part.shape[1:]) for part in data.train))
    hypers = engine.hypers.replace(**{n: torch.full_like(engine.hypers.host_lr, v) for n, v in PLAIN_SGD.items()})
    logits, _ = engine.backend.forward(plan, learners, alphas, batch)
    after, epoch = engine.backend.minibatch_step(hypers, plan, learners, alphas, batch)
    host, seeds = (
        (old.params - new.params) for old, new in ((learners.host, after.host), (learners.seeds, after.seeds))
    )
    return Passed(logits, epoch.loss, host, seeds, after.seeds.moments)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int64 if x.dtype == torch.float64 else torch.int32)


def without_seeds(engine: Engine, state: State) -> State:
    return state.replace(slots=engine.init(3).slots)


def break_seeds(engine: Engine, state: State, value: float, gates: bool) -> State:
    """Fill the seeds' parameters with a non-finite value, those of their gates too or not."""
    params = torch.full_like(state.seeds.params, value)
    for slot in () if gates else engine.structure.slots:
        params[:, slot.gate_columns] = state.seeds.params[:, slot.gate_columns]
    return state.replace(seeds=state.seeds.replace(params=params))


BROKEN = pytest.mark.parametrize(
    ("value", "gates"), [(value, gates) for value in (math.inf, math.nan) for gates in (False, True)]
)


def assert_same_host(grads: Tensor, expected: Tensor) -> None:
    assert ((grads - expected).abs().amax(1) <= NEAR[grads.dtype] * expected.abs().amax(1)).all()


def assert_same(found: Passed, expected: Passed) -> None:
    assert torch.isfinite(expected.logits).all()
    assert torch.equal(bits(found.logits), bits(expected.logits))
    assert torch.equal(bits(found.loss), bits(expected.loss))
    assert_same_host(found.host, expected.host)


def test_host_neither_sees_nor_feels_a_seed_in_training(engine: Engine, seeded: State) -> None:
    assert_same(pass_through(engine, seeded), pass_through(engine, without_seeds(engine, seeded)))


@BROKEN
def test_a_broken_seed_in_training_stays_behind_the_host(
    engine: Engine, seeded: State, value: float, gates: bool
) -> None:
    broken = break_seeds(engine, seeded, value, gates)
    assert_same(pass_through(engine, broken), pass_through(engine, without_seeds(engine, seeded)))


def trained(engine: Engine, state: State) -> tuple[State, Epoch]:
    plan = engine.backend.plan(take_table(state.slots), torch.device("cpu"))
    return train_epoch(engine.config, engine.backend, engine.hypers, state, plan, engine.data)


@BROKEN
def test_host_trains_on_before_a_broken_seed(engine: Engine, seeded: State, value: float, gates: bool) -> None:
    """Over several minibatches: what one makes non-finite must not reach the host in the next."""
    states = break_seeds(engine, seeded, value, gates), without_seeds(engine, seeded)
    assert_same_host(*(trained(engine, state)[0].host.params for state in states))


def test_a_broken_seed_is_reported_though_its_host_is_well(engine: Engine, seeded: State) -> None:
    params = seeded.seeds.params.clone()
    params[2, engine.structure.slots[1].start] = math.inf
    _, epoch = trained(engine, seeded.replace(seeds=seeded.seeds.replace(params=params)))
    assert torch.isfinite(epoch.loss).all() and torch.isfinite(epoch.health.host_norm).all()
    assert (~epoch.finite).nonzero().flatten().tolist() == [2]


def test_every_seed_in_training_learns(engine: Engine, seeded: State) -> None:
    """From its first step. Its gate does, too, by its own objective, unless it is born as the identity and there is
    nothing to weigh; otherwise nothing is gated before BLENDING."""
    found, seen = pass_through(engine, seeded), set()
    own = engine.config.isolation is Isolation.OBJECTIVE
    for number, slot in enumerate(engine.structure.slots):
        for env, kind in enumerate(seeded.slots.blueprint[:, number].tolist()):
            grad = found.seeds[env, slot.blueprint_columns(kind)]
            assert torch.linalg.vector_norm(grad) > 1e-6, engine.structure.blueprints[kind].name
            seen.add((number, kind))
        kinds = [engine.structure.blueprints[kind] for kind in seeded.slots.blueprint[:, number].tolist()]
        differs = torch.tensor([kind.identity_bound > 0 for kind in kinds])
        gated = (seeded.slots.blend[:, number] == int(Blend.GATED)) & differs & own
        assert torch.equal(found.seeds[:, slot.gate_columns].any(1), gated)
        assert torch.equal(found.moments[:, 0, slot.gate_columns].any(1), gated)
    assert len(seen) == len(SLOTS) * len(engine.structure.blueprints)


@pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.SHADOWING])
def test_isolation_ends_with_blending(engine: Engine, seeded: State, stage: Stage) -> None:
    """At alpha 1 nothing of the host before the seeds learns while they blend in, and all of it does afterwards.

    What the last block reads through a tie learns there, behind the seeds.
    """
    slots = seeded.slots.replace(
        stage=torch.full_like(seeded.slots.stage, int(stage)),
        blend=torch.full_like(seeded.slots.blend, int(Blend.LINEAR)),
        alpha=torch.ones_like(seeded.slots.alpha),
    )
    found = pass_through(engine, seeded.replace(slots=slots))
    blocks = engine.structure.host.blocks
    tied = [(tie.block, tie.param.name) for tie in blocks[-1].ties]
    rows = zip(blocks[:-1], arena.split_blocks(engine.structure.host, found.host)[:-1], strict=True)
    upstream = [
        torch.cat([g.flatten(1) for name, g in block.layout.views(row).items() if (index, name) not in tied], dim=1)
        for index, (block, row) in enumerate(rows)
    ]
    assert len(upstream) == 3
    for grad in upstream:
        assert (torch.linalg.vector_norm(grad, dim=1) > 1e-6).all() == (stage == Stage.SHADOWING)
        assert stage == Stage.SHADOWING or (grad == 0).all()
