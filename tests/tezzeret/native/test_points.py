"""Bypasses, seeds with batch norm and objective passes of the native network, against the definition in float64."""

from typing import Any

import pytest
import torch
from tezzeret_states import Pair, batch_of, double, evaluated, largest_gap, plan_of
from torch import Tensor

import esper
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.counterfactuals import coalitions, single_changes
from esper.kasmina.layers import apply_batch_norm, batch_norm, conv2d, linear, max_pool2, track
from esper.kasmina.layout import Params, constant, fan_in_uniform
from esper.kasmina.slot_table import take_table
from esper.leyline.config import Isolation
from esper.leyline.learners import learners_of
from esper.leyline.stages import Stage
from esper.tezzeret.native.library import library
from esper.tolaria.synthetic import synthetic

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")

ENVS, BATCH, CLASSES, WIDTH = 14, 21, 5, 3


def normed(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    """Convolution, batch norm, relu."""
    y, weights = conv2d(x, p["conv"]), (p["norm.weight"], p["norm.bias"])
    if not train:
        return torch.relu(apply_batch_norm(y, *weights, b["mean"], b["variance"])), b
    y, mean, variance = batch_norm(y, *weights)
    return torch.relu(y), {"mean": track(b["mean"], mean), "variance": track(b["variance"], variance)}


def between(
    name: str, kinds: tuple[str, str], width: Any, end: Any, head: bool = False, same: bool = False
) -> Blueprint:
    """A seed that begins with ``normed``, to ``width`` channels, and goes on by ``end``."""

    def params(source: Any, target: Any) -> Any:
        fan_in, out = 9 * source.channels, width(target)
        conv = fan_in_uniform("conv", (out, source.channels, 3, 3), fan_in)
        last = fan_in_uniform("weight", (CLASSES, out), out), constant("bias", (CLASSES,), 0.0)
        return conv, constant("norm.weight", (out,), 1.0), constant("norm.bias", (out,), 0.0), *(last if head else ())

    def buffers(source: Any, target: Any) -> Any:
        return constant("mean", (width(target),), 0.0), constant("variance", (width(target),), 1.0)

    def run(p: Params, b: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
        y, new = normed(p, b, x, train)
        return end(p, x, y), new

    return Blueprint(
        name,
        lambda s, t: (s.kind, t.kind) == kinds and (s == t) is same,
        params,
        lambda p, b, x, key: run(p, b, x, True),
        lambda p, b, x: run(p, b, x, False)[0],
        lambda source, target: 1,
        9.0,
        buffers,
        is_bypass=not same,
    )


BLUEPRINTS = (
    *CONV_BLUEPRINTS[:3],
    between(
        "net",
        ("conv", "logits"),
        lambda t: WIDTH,
        lambda p, x, y: linear(y.mean((-2, -1)), p["weight"], p["bias"]),
        True,
    ),
    between("halve", ("conv", "conv"), lambda t: t.channels, lambda p, x, y: max_pool2(y)),
    between("branch", ("conv", "conv"), lambda t: t.channels, lambda p, x, y: x + y, same=True),
)
SLOTS = {
    "around all": ("input:logits", 0, 1, "input:logits"),
    "from block to logits": (0, "block0:logits", "block1:logits", 1),
    "over a block": ("block0:block1", 0, "block0:block1", 1, "block1:logits"),
    "from the input": ("input:block0", 0, "block0:logits", "input:logits"),
}


def task(slots: tuple[Any, ...], isolation: Isolation) -> esper.Task:
    dataset = synthetic((2, 9, 8), num_classes=CLASSES, num_train=64, num_val=40)
    host = cnn_host((2, 9, 8), CLASSES, num_blocks=3, base_channels=4, pool_blocks=2)
    settings = {"slots": slots, "batch_size": BATCH, "steps_per_epoch": 2, "isolation": isolation}
    return esper.Task("t", host, BLUEPRINTS, dataset, settings)


@pytest.fixture(scope="module", params=[(slots, isolation) for slots in SLOTS for isolation in Isolation], ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    slots, isolation = request.param
    made = Pair(task(SLOTS[slots], isolation), ENVS)
    stages = set(made.state.slots.stage.flatten().tolist())
    assert {int(Stage.TRAINING), int(Stage.BLENDING), int(Stage.DORMANT), int(Stage.FOSSILIZED)} <= stages
    return made


def test_training_equals_the_definition(pair: Pair) -> None:
    pair.assert_near(batch_of(pair.fast, BATCH), 3e-4)


def test_an_epoch_moves_parameters_and_statistics_alike(pair: Pair) -> None:
    """Two minibatches: seeds' running statistics follow in the same rows, and others stay as they were."""
    wait = torch.zeros(ENVS, dtype=torch.int64)
    after, true = pair.fast.step(pair.state, wait)[0], pair.exact.step(double(pair.state), wait)[0]
    assert not torch.equal(after.seed_buffers, pair.state.seed_buffers)
    for name in ("seed_buffers", "buffers", ("seeds", "params"), ("host", "params"), ("signals", "val_loss")):
        assert largest_gap(after.get(name), true.get(name)) < 1e-3, name
    assert torch.equal(after.seed_buffers == pair.state.seed_buffers, (true.seed_buffers == pair.state.seed_buffers))


@pytest.mark.parametrize("kind", ["single changes", "coalitions"])
def test_counterfactuals_equal_the_definition(pair: Pair, kind: str) -> None:
    table = take_table(pair.state.slots)
    wanted = single_changes(table) if kind == "single changes" else coalitions(table)[0]
    outputs = evaluated(pair.fast, pair.state, wanted)[1]
    exact = evaluated(pair.exact, double(pair.state), wanted)[1]
    assert outputs.shape == exact.shape and largest_gap(outputs, exact) < 1e-4


def test_hosts_do_not_notice_a_seed_in_training(pair: Pair) -> None:
    """Bit for bit, without the seeds in TRAINING: the host, its statistics, and every other seed (straight-through's
    and own objectives' alike; without isolation a seed's input learns from it)."""
    if pair.fast.config.isolation is Isolation.NONE:
        pytest.skip("without isolation the host learns from what a seed in TRAINING reads")
    slots = pair.state.slots
    training = slots.stage == int(Stage.TRAINING)
    dormant = torch.where(training, int(Stage.DORMANT), slots.stage)
    without = pair.state.replace(
        slots=slots.replace(stage=dormant, blueprint=slots.blueprint.masked_fill(training, -1))
    )
    batch, found = batch_of(pair.fast, BATCH), []
    for state in (pair.state, without):
        args = (pair.fast.hypers, plan_of(pair.fast, state), learners_of(state), state.slots.alpha)
        found.append(pair.fast.backend.minibatch_step(*args, batch)[0])
    assert torch.equal(found[0].host.params, found[1].host.params)
    assert torch.equal(found[0].buffers, found[1].buffers)
    owner = pair.fast.structure.slot_of_column
    assert torch.equal(found[0].seeds.params[~training[:, owner]], found[1].seeds.params[~training[:, owner]])
