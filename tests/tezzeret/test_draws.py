"""Modules that draw random numbers while they train: dropout in a host and in a seed, by key."""

import pytest
import torch
from torch.nn import functional as F

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host import Host, HostBlock, plain_block
from esper.kasmina.layers import conv2d, linear
from esper.kasmina.layout import Param
from esper.kasmina.objectives import cross_entropy
from esper.kasmina.site import conv_site
from esper.kasmina.slot_table import SlotTable
from esper.kasmina.structure import build_structure
from esper.leyline.actions import Blend
from esper.leyline.config import Config, Isolation, Precision
from esper.leyline.hypers import build_hypers
from esper.leyline.learners import Learners, Weights
from esper.leyline.stages import Stage
from esper.leyline.streams import Stream
from esper.tezzeret import eager, oracle
from esper.tezzeret.batches import Batch
from esper.utils import rng

E, B, F64, CPU = 3, 4, torch.float64, torch.device("cpu")
SHAPE, MAPS = (1, 4, 4), (2, 4, 4)
KERNEL = Param("conv", (2, 1, 3, 3), "normal", 0.5)
HEAD = Param("weight", (3, 2), "normal", 0.5)
STAGES = [Stage.TRAINING, Stage.BLENDING, Stage.SHADOWING]
RATE, ALPHA = 0.3, 0.4


def dropout(x, key):
    """Half of the numbers, doubled."""
    return x if key is None else 2 * x * (rng.uniform(key, tuple(x.shape[1:]), dtype=x.dtype) < 0.5)


def block(params, buffers, x, key):
    return dropout(torch.tanh(conv2d(x, params["conv"])), key), buffers


def branch(params, buffers, x, key):
    return x + dropout(torch.tanh(conv2d(x, params["own"])), key), buffers


HOST = Host(
    "drawing",
    SHAPE,
    3,
    (
        HostBlock((KERNEL,), (), block, lambda p, b, x: block(p, b, x, None)[0], conv_site(*MAPS), 1, draws=True),
        plain_block((HEAD,), lambda p, x: linear(x.mean((-2, -1)), p["weight"]), None, 1),
    ),
)
DROPPED = Blueprint(
    "dropped",
    lambda source, target: source == target,
    lambda source, target: (Param("own", (2, 2, 3, 3), "normal", 0.5),),
    branch,
    lambda p, b, x: branch(p, b, x, None)[0],
    lambda source, target: 1,
    9.0,
    draws=True,
)
SETTINGS = {"batch_size": B, "precision": Precision.FLOAT64, "isolation": Isolation.STRAIGHT_THROUGH}
CONFIG = Config(E, (0,), (Blend.LINEAR,), **SETTINGS)
STRUCTURE = build_structure(CONFIG, HOST, (DROPPED,), cross_entropy(), CPU)
HYPERS = build_hypers(
    {"host_lr": RATE, "seed_lr": RATE, "momentum": 0.0, "host_weight_decay": 0.0}
    | {"host_clip": float("inf"), "seed_clip": float("inf")},
    E,
    F64,
    CPU,
)
ALPHAS = torch.tensor([[0.0], [ALPHA], [ALPHA]], dtype=F64)


def scene(stages):
    """Everything the same in all environments but their stages and keys."""
    stage = torch.tensor([[int(each)] for each in stages]).numpy()
    table = SlotTable(stage, 0 * stage, 0 * stage)
    params, seeds = (rng.normal(rng.key(i), (size,), F64).repeat(E, 1) for i, size in ((1, 24), (2, 36)))
    steps, none = torch.zeros(E, 1, dtype=torch.int64), torch.zeros(E, 0, dtype=F64)
    host = Weights(params, torch.zeros(E, 1, 24, dtype=F64), steps[:, 0])
    learners = Learners(host, none, Weights(seeds, torch.zeros(E, 1, 36, dtype=F64), steps), none)
    inputs = rng.normal(rng.key(3), (B, *SHAPE), F64).expand(E, B, *SHAPE)
    keys = rng.fold_in(rng.key(4), torch.arange(E))
    return table, learners, Batch(inputs, torch.tensor([0, 1, 2, 0]).expand(E, B), keys)


def mask(key, stream):
    """What the composite is given."""
    return 2.0 * (rng.uniform(rng.fold_in(key, int(stream), 0), (B, *MAPS), dtype=F64) < 0.5)


def composite_step(host, seed, inputs, targets, key, stage, alpha):
    """One environment with given masks, by autograd."""
    host, seed = (row.clone().requires_grad_() for row in (host, seed))
    kernel, head = host[:18].view(2, 1, 3, 3), host[18:].view(3, 2)
    h = torch.tanh(F.conv2d(inputs, kernel, padding=1)) * mask(key, Stream.BLOCK)
    x = h if stage == Stage.SHADOWING else h.detach()
    s = x + torch.tanh(F.conv2d(x, seed.view(2, 2, 3, 3), padding=1)) * mask(key, Stream.SEED)
    h = h + (s - s.detach()) if stage == Stage.TRAINING else torch.lerp(h, s, alpha)
    loss = F.cross_entropy(F.linear(h.mean((-2, -1)), head), targets)
    of_host, of_seed = torch.autograd.grad(loss, (host, seed))
    return (host - RATE * of_host).detach(), (seed - RATE * of_seed).detach()


@pytest.mark.parametrize("backend", [eager, oracle], ids=["eager", "oracle"])
def test_a_step_equals_the_composite_with_the_same_masks(backend):
    table, learners, batch = scene(STAGES)
    runs = backend.build(STRUCTURE, CPU)
    found, _ = runs.minibatch_step(HYPERS, runs.plan(table, CPU), learners, ALPHAS, batch)
    for env, stage in enumerate(STAGES):
        rows = learners.host.params[env], learners.seeds.params[env], batch.inputs[env], batch.targets[env]
        host, seed = composite_step(*rows, batch.key[env], stage, float(ALPHAS[env]))
        torch.testing.assert_close(found.host.params[env], host, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.seeds.params[env], seed, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", [eager, oracle], ids=["eager", "oracle"])
@pytest.mark.parametrize("stages", [[Stage.DORMANT] * E, [Stage.SHADOWING] * E], ids=["host", "seed"])
def test_a_key_decides_the_mask(backend, stages):
    table, learners, batch = scene(stages)
    runs = backend.build(STRUCTURE, CPU)
    plan, alphas = runs.plan(table, CPU), torch.full((E, 1), ALPHA, dtype=F64)

    def outputs(keys):
        return runs.forward(plan, learners, alphas, batch._replace(key=keys))[0]

    first = outputs(batch.key)
    assert torch.equal(first, outputs(batch.key)), "the same key, the same bits"
    assert not torch.isclose(first[0], first[1]).any(), "another environment's key, another mask"
    shared = outputs(batch.key[:1].expand(E, 2))
    assert torch.equal(shared[0], first[0]) and torch.equal(shared[1], first[0]) and torch.equal(shared[2], first[0])
