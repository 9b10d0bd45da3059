"""Derivatives that say what a seed would be worth: against a plain composite, and central differences."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import esper
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.site import conv_site
from esper.kasmina.slot_table import take_table
from esper.leyline.actions import Action, Blend, Op
from esper.leyline.config import Precision
from esper.leyline.learners import learners_of
from esper.leyline.stages import Stage
from esper.tolaria.slopes import alpha_slopes, birth_norms, last_layer, losses_at
from esper.tolaria.synthetic import synthetic

_folder = Path(__file__).parents[1] / "tezzeret"
_spec = importlib.util.spec_from_file_location("tezzeret_composites", _folder / "composites.py")
plain = sys.modules.setdefault("tezzeret_composites", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(plain)

E, TARGET = 4, 0.7
NET = Action(Op.GERMINATE, 0, 0, int(Blend.LINEAR))
SAME = Action(Op.GERMINATE, 1, 2, int(Blend.LINEAR))


@pytest.fixture(scope="module")
def engine():
    """The composite's host and seeds in float64, on clusters; 14 validation samples, 5 at a time."""
    dataset = synthetic(plain.SHAPE, plain.CLASSES, num_train=24, num_val=14)
    settings = {"slots": plain.Shortcut.slots, "blends": (Blend.LINEAR,), "batch_size": 8, "steps_per_epoch": 2}
    settings |= {"eval_batch_size": 5, "precision": Precision.FLOAT64, "alpha_target": TARGET, "host_lr": 0.1}
    settings |= {"min_training_epochs": 10, "seed_lr": 0.1}
    return esper.make(esper.Task("composite", plain.HOST, plain.BLUEPRINTS, dataset, settings), E, backend="eager")


@pytest.fixture(scope="module")
def states(engine):
    """Two epochs old; and four epochs later, with the seeds of both slots in TRAINING."""
    state, wait = engine.init(3), torch.zeros(E, dtype=torch.int64)
    for _ in range(2):
        state, _ = engine.step(state, wait)
    grown = state
    for action in (NET, SAME):
        grown, _ = engine.step(grown, wait + engine.codec.encode(action))
        grown, _ = engine.step(grown, wait)
    assert (grown.slots.stage == int(Stage.TRAINING)).all()
    return state, grown


def samples_of(engine):
    return engine.data.validation.inputs, engine.data.validation.targets


def composed(engine, learners, env, slots):
    """One environment as modules with seeds in some slots."""
    kind, numbers = plain.Shortcut, {f"{who}_{what}": 0.1 for who in ("host", "seed") for what in ("lr", "clip")}
    numbers |= {"momentum": 0.9, "host_weight_decay": 0.0, "seed_weight_decay": 0.0}
    with torch.random.fork_rng(devices=[]):  # modules draw initial values; all are overwritten
        host = plain.TrainedModule(plain.PlainHost(), learners.host.params[env], learners.buffers[env], numbers, "host")
        seeds = {}
        for number in slots:
            slot = engine.structure.slots[number]
            row = learners.seeds.params[env, slot.blueprint_columns(kind.kinds[number])]
            held = learners.seed_buffers[env, slot.buffer_columns][: slot.buffer_row(kind.kinds[number]).size]
            seeds[number] = plain.TrainedModule(kind.modules[number](), row, held, numbers, "seed")
    composite = kind(host, seeds, engine.config.isolation, TARGET)
    for part in (composite.host, *seeds.values()):
        part.module.eval()
    return composite


@pytest.mark.parametrize(("action", "last"), [(NET, ("head.bias",)), (SAME, ("norm.weight", "norm.bias"))])
def test_norms_at_birth_are_autograds(engine, states, action, last):
    state, (inputs, targets) = states[0], samples_of(engine)
    found = birth_norms(engine.structure, engine.hypers, state, action, (inputs, targets))
    frozen = engine.hypers.replace(host_lr=torch.zeros((), dtype=torch.float64))  # the step sows, and moves nothing
    frozen = esper.engine.Engine(engine.structure, engine.backend, frozen, engine.data)
    sown = learners_of(frozen.step(state, torch.full((E,), engine.codec.encode(action)))[0])
    sown = sown._replace(host=learners_of(state).host, buffers=learners_of(state).buffers)
    for env in range(E):
        composite = composed(engine, sown, env, (action.slot,))
        alphas = [TARGET if number == action.slot else 0.0 for number in range(2)]
        loss = F.cross_entropy(composite.run(inputs, {action.slot: Stage.FOSSILIZED}, alphas)[0], targets)
        params = dict(composite.seeds[action.slot].module.named_parameters())
        truth = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [params[name] for name in last])]).norm()
        assert truth > 1e-3 and abs(found[env] / truth - 1) < 1e-10


def test_slopes_are_autograds_and_central_differences(engine, states):
    state, (inputs, targets) = states[1], samples_of(engine)
    table, learners = take_table(state.slots), learners_of(state)
    for alphas in (torch.zeros(E, 2, dtype=torch.float64), torch.tensor([0.2, 0.7], dtype=torch.float64).expand(E, 2)):
        found = alpha_slopes(engine.structure, engine.hypers, state, alphas, (inputs, targets))
        for env in range(E):
            composite, own = composed(engine, learners, env, (0, 1)), alphas[env].clone().requires_grad_()
            there = dict.fromkeys((0, 1), Stage.FOSSILIZED)
            loss = F.cross_entropy(composite.run(inputs, there, list(own.unbind()))[0], targets)
            torch.testing.assert_close(found[env], torch.autograd.grad(loss, own)[0], rtol=1e-9, atol=1e-12)
        for slot, step in enumerate(1e-5 * torch.eye(2, dtype=torch.float64)):
            ends = [
                losses_at(engine.structure, engine.hypers, table, learners, alphas + side * step, (inputs, targets))
                for side in (1, -1)
            ]
            torch.testing.assert_close((ends[0] - ends[1]) / 2e-5, found[:, slot], rtol=1e-5, atol=1e-8)
        assert found.abs().min() > 1e-7


def test_a_slope_at_birth_is_nothing(engine, states):
    """So it cannot rank what does not train yet: a bypass starts at zero, other seeds as the identity."""
    state, _ = engine.step(states[0], torch.full((E,), engine.codec.encode(NET)))
    slopes = alpha_slopes(
        engine.structure, engine.hypers, state, torch.zeros_like(state.slots.alpha), samples_of(engine)
    )
    assert (slopes == 0).all()


def test_rows_are_their_own(engine, states):
    state = states[0]
    every = birth_norms(engine.structure, engine.hypers, state, NET, samples_of(engine))
    some = esper.leyline.environments.select(state, torch.tensor([2, 0]))
    found = birth_norms(engine.structure, engine.hypers, some, NET, samples_of(engine))
    torch.testing.assert_close(found, every[[2, 0]], rtol=1e-12, atol=0)


def test_last_layers_of_shipped_seeds():
    site, names = conv_site(4, 8, 8), {}
    for blueprint in CONV_BLUEPRINTS:
        layout = blueprint.layout(site)
        last = last_layer(layout)
        names[blueprint.name] = [p.name for p in layout.params if layout.columns(p.name).start >= last.start]
        assert last.stop == layout.size
    assert names == {
        "norm": ["scale"],
        "attention": ["excite"],
        "depthwise": ["norm.weight", "norm.bias"],
        "conv_small": ["point"],
        "conv_light": ["norm.weight", "norm.bias"],
        "conv_heavy": ["norm2.weight", "norm2.bias"],
        "bottleneck": ["up"],
    }
