"""Surgery between two steps of a run: outputs, seeds and bits of others stay; training goes on as in plain PyTorch."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import esper
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.slot_table import take_table
from esper.kasmina.vector_blueprints import VECTOR_BLUEPRINTS
from esper.leyline.environments import select
from esper.leyline.learners import learners_of
from esper.leyline.stages import Stage
from esper.runtime.operate import operate
from esper.tezzeret import eager
from esper.tezzeret.batches import batch_at
from esper.tezzeret.surgery import AddSkip, InsertLayer, Log, ModifyLayer, RemoveLayer, SurgeryRules
from esper.tezzeret.surgery.orders import RemoveFossil
from esper.tolaria.synthetic import synthetic
from esper.tolaria.training import draw_batches
from esper.utils import rng

OPEN = SurgeryRules(topology=True, accuracy_loss=101.0, growth=9.0)
WAIT = torch.zeros(2, dtype=torch.int64)
F64 = torch.float64


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(16, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(F.relu(self.two(F.relu(self.one(x.flatten(1))))))


@cache
def made(name, **settings):
    data = synthetic((1, 4, 4), num_classes=4, num_train=32, num_val=24, num_test=16)
    given = {"slots": (0, 1), "batch_size": 8, "steps_per_epoch": 4, "precision": "float64"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Perceptron().double()
    host = (
        cnn_host((1, 4, 4), 4, 2, 4, pool_blocks=1)
        if name == "cnn"
        else esper.host(module, torch.zeros(2, 1, 4, 4, dtype=F64))
    )
    kinds = CONV_BLUEPRINTS if name == "cnn" else VECTOR_BLUEPRINTS
    engine = esper.make(esper.Task("own", host, kinds, data, given), 2, backend="eager")
    state = engine.init(0)
    for _ in range(2):
        state, _event = engine.step(state, WAIT)
    return engine, state


def leaves(state):
    return {path: leaf.clone() for path, leaf in state.items(include_nested=True, leaves_only=True)}


def sown(state, slot, stage=Stage.BLENDING, alpha=0.5):
    """A seed of the first kind in a slot of every environment."""
    values = {"stage": int(stage), "blueprint": 0, "blend": 0, "alpha": alpha, "measured": True}
    slots = state.slots.replace()
    for name, value in values.items():
        column = slots.get(name).clone()
        column[:, slot] = value
        slots = slots.replace(**{name: column})
    params = 0.1 * rng.normal(rng.fold_in(state.key, 3), state.seeds.params.shape[1:], F64)
    return state.replace(slots=slots, seeds=state.seeds.replace(params=params))


PRESERVING = {
    "wider": ("cnn", ModifyLayer("block0.conv", width=7)),
    "a kernel": ("cnn", ModifyLayer("block1.conv", kernel=5)),
    "a layer": ("perceptron", InsertLayer("new", "one")),
    "gradmax": ("perceptron", ModifyLayer("two", width=8, start="gradmax")),
}


@pytest.mark.parametrize("case", PRESERVING)
def test_outputs_stay_and_the_run_goes_on(case):
    name, op = PRESERVING[case]
    engine, state = made(name)
    before = leaves(state)
    other, grown, report = operate(engine, state, op, OPEN)
    assert report.done and report.networks == 2 and report.epoch == 2, str(report)
    assert other is not engine and other.structure.host.num_params == report.params[1] > report.params[0]
    for one, two in zip(engine.test(state), other.test(grown), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)
    grown, event = other.step(grown, WAIT)
    assert bool(event.epoch.finite.all()) and grown.is_locked
    assert all(torch.equal(leaf, before[path]) for path, leaf in leaves(state).items())


def test_seeds_stay_where_their_features_do():
    engine, state = made("cnn")
    state = sown(state, 1)
    other, grown, report = operate(engine, state, ModifyLayer("block0.conv", width=8), OPEN)
    assert report.done, str(report)
    for one, two in zip(engine.test(state), other.test(grown), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)
    old, new = engine.structure.slots[1], other.structure.slots[1]
    assert torch.equal(grown.seeds.params[:, new.columns], state.seeds.params[:, old.columns])
    refused = operate(engine, sown(state, 0), ModifyLayer("block0.conv", width=8), OPEN)
    assert refused.engine is engine and "slot 0: its features would change shape" in refused.report.reason
    around = operate(engine, state, AddSkip("block0.conv", "block2"), OPEN)
    assert around.state is state and "slot 0: features would pass by block0" in around.report.reason


def test_some_environments_are_operated_on_and_the_others_go_on_as_ever():
    engine, state = made("cnn")
    before = leaves(state)
    other, grown, report = operate(engine, select(state, torch.tensor([1])), ModifyLayer("block1.conv", width=12), OPEN)
    assert report.networks == 1 and grown.batch_size == (1,)
    other.step(grown, WAIT[:1])
    assert all(torch.equal(leaf, before[path]) for path, leaf in leaves(state).items())
    rest, whole = engine.step(select(state, torch.tensor([0])), WAIT[:1])[0], engine.step(state, WAIT)[0]
    torch.testing.assert_close(rest.host.params[0], whole.host.params[0], rtol=0, atol=1e-12)


def test_further_training_is_that_of_plain_pytorch_with_the_same_moments():
    engine, state = made("perceptron")
    engine, state, report = operate(engine, state, ModifyLayer("two", width=9), OPEN)
    engine, state, again = operate(engine, state, InsertLayer("new", "one"), OPEN, Log((report,)))
    assert report.done and again.done
    structure, env = engine.structure, 1
    plain = engine.network_of(state, env)
    layout = structure.host.layout.views(state.host.moments[env])
    numbers = {name: float(engine.hypers[name]) for name in ("host_lr", "momentum", "host_weight_decay", "host_clip")}
    optimizer = torch.optim.SGD(
        plain.parameters(), numbers["host_lr"], momentum=numbers["momentum"], weight_decay=numbers["host_weight_decay"]
    )
    for name, parameter in plain.named_parameters():
        short = name.split(".", 1)[1] if name.startswith("block") else name
        optimizer.state[parameter]["momentum_buffer"] = layout[short][0].reshape(parameter.shape).clone()
    batches = draw_batches(structure.config, state, engine.data)
    learners, plan = learners_of(state), eager.plan(structure, take_table(state.slots), torch.device("cpu"))
    for step in range(4):
        batch = batch_at(structure, batches, step)
        learners, seen = eager.minibatch_step(structure, engine.hypers, plan, learners, state.slots.alpha, batch)
        optimizer.zero_grad()
        loss = F.cross_entropy(plain(batch.inputs[env]), batch.targets[env])
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), numbers["host_clip"])
        optimizer.step()
        assert float(seen.loss[env]) == pytest.approx(loss.item(), abs=1e-9)


def test_a_fossil_goes_by_surgery_and_leaves_its_counterfactual():
    engine, state = made("cnn")
    state = sown(sown(state, 1), 0, Stage.FOSSILIZED, 1.0)
    without = state.replace(slots=state.slots.replace(alpha=torch.tensor([[0.0, 0.5]] * 2, dtype=F64)))
    wanted = engine.test(without)
    other, bare, report = operate(engine, state, RemoveFossil(0), OPEN)
    assert report.done and report.name == "remove_fossil" and other is engine
    for found, expected in zip(engine.test(bare), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert report.before.accuracy >= 0 and report.params[0] > report.params[1]
    assert bare.slots.stage[:, 0].tolist() == [int(Stage.DORMANT)] * 2
    column = engine.structure.slots[1].columns
    assert torch.equal(bare.seeds.params[:, column], state.seeds.params[:, column])
    assert not bare.seeds.params[:, engine.structure.slots[0].columns].any()
    for op, rules, reason in (
        (RemoveFossil(1), OPEN, "slot 1: no fossil"),
        (RemoveFossil(5), OPEN, "slot 5; expected one of 0 to 1"),
        (RemoveFossil(0), SurgeryRules(), "topology = False"),
    ):
        kept = operate(engine, state, op, rules)
        assert kept.state is state and reason in kept.report.reason


def test_what_cannot_be_read_is_a_report():
    engine, state = made("perceptron")
    found = operate(engine, state, RemoveLayer("tow"), OPEN)
    assert found.engine is engine and found.state is state and "did you mean 'two'" in found.report.reason


class Dropping(Perceptron):
    def forward(self, x):
        return self.head(F.dropout(F.relu(self.one(x.flatten(1))), 0.5, self.training))


@pytest.mark.parametrize("op", [RemoveLayer("one"), RemoveFossil(0)])
def test_a_host_that_no_graph_can_say_is_a_report_whatever_is_asked(op):
    with torch.random.fork_rng(devices=[]):
        module = Dropping().double()
    host = esper.host(module, torch.zeros(2, 1, 4, 4, dtype=F64), ())
    data = synthetic((1, 4, 4), num_classes=4, num_train=32, num_val=24, num_test=16)
    settings = {"slots": ("input",), "batch_size": 8, "steps_per_epoch": 1, "precision": "float64"}
    engine = esper.make(esper.Task("own", host, CONV_BLUEPRINTS, data, settings), 2, backend="eager")
    state = engine.init(0)
    kept = operate(engine, state, op, OPEN)
    assert kept.engine is engine and kept.state is state and not kept.report.done
    assert "draws random numbers" in kept.report.reason
