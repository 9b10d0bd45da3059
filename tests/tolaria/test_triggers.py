"""The three triggers on constructed cases: a plateau, an idle layer and an idle fossil, vanishing gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import esper
from esper.kasmina.vector_blueprints import VECTOR_BLUEPRINTS
from esper.leyline.learners import learners_of
from esper.leyline.stages import Stage
from esper.runtime.operate import operate, samples_of, tend
from esper.tezzeret.surgery import InsertLayer, Log, Samples, SurgeryRules, layers_of, learned_of
from esper.tezzeret.surgery.forward import Forward
from esper.tolaria import operating
from esper.tolaria.synthetic import synthetic
from esper.tolaria.triggers import (
    DECISIONS,
    TRIGGERS,
    InsertOnPlateau,
    PruneIdle,
    SkipOnVanishing,
    SurgeryDecision,
    Watched,
    gradient_norms,
    layer_contributions,
    planned,
)

OPEN = SurgeryRules(topology=True, accuracy_loss=101.0)


class Deep(nn.Module):
    """Hidden layers, all alike."""

    def __init__(self, count, activation) -> None:
        super().__init__()
        self.first, self.head, self.act = nn.Linear(16, 6), nn.Linear(6, 4), activation
        self.inner = nn.ModuleList(nn.Linear(6, 6) for _ in range(count))

    def forward(self, x):
        x = self.act(self.first(x.flatten(1)))
        for layer in self.inner:
            x = self.act(layer(x))
        return self.head(x)


def engine_of(count=2, activation=F.relu, **settings):
    data = synthetic((1, 4, 4), num_classes=4, num_train=32, num_val=64, num_test=16)
    given = {"slots": (), "batch_size": 8, "steps_per_epoch": 2} | settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Deep(count, activation)
    host = esper.host(module, torch.zeros(2, 1, 4, 4), "auto", start="shuffled")
    return esper.make(esper.Task("own", host, VECTOR_BLUEPRINTS, data, given), 2, backend="eager")


def watched_of(engine, state, log=Log(), targets=None):  # noqa: B008
    host, samples = engine.structure.host, samples_of(engine)
    samples = samples if targets is None else Samples(samples.inputs, targets)
    return Watched(state, operating.anatomy(engine.structure), learned_of(host, learners_of(state)), samples, log)


def test_a_plateau_inserts_once():
    """Hosts that do not learn stall from the first epoch on."""
    engine = engine_of(host_lr=0.0)
    state, log, wait = engine.init(0), Log(), torch.zeros(2, dtype=torch.int64)
    layers = list(layers_of(operating.anatomy(engine.structure)))
    epochs = list[int]()
    for _ in range(7):
        state, _event = engine.step(state, wait)
        engine, state, log = tend(engine, state, [InsertOnPlateau(patience=3)], OPEN, log)
        epochs.append(len(log.reports))
    first = epochs.index(1)
    assert epochs == [0] * first + [1] * (7 - first) and first in (2, 3)
    assert log.reports[0].done and isinstance(log.reports[0].op, InsertLayer)
    assert len(layers_of(operating.anatomy(engine.structure))) == len(layers) + 1


def test_no_plateau_no_layer():
    engine = engine_of()
    state = engine.init(0)
    assert int(state.signals.plateau.min()) == 0
    assert InsertOnPlateau()(watched_of(engine, state)) is None


def loud(state):
    """Two networks alike, whose weights are three times as large: every layer makes itself heard."""
    return state.replace(host=state.host.replace(params=3 * state.host.params[:1].expand(2, -1)))


def own_targets(engine, state):
    """What the first network says itself."""
    seen = watched_of(engine, state)
    return Forward(seen.body.graph)(seen.learned.params, {}, seen.inputs).output[0].argmax(-1)


def test_an_idle_layer_goes_and_one_that_matters_stays():
    """Right is what a network says itself: every layer matters but the one that passes on what it sees."""
    engine = engine_of()
    engine, state, report = operate(engine, loud(engine.init(0)), InsertLayer("idle", "inner.0"), OPEN)
    assert report.done
    targets = own_targets(engine, state)
    seen = watched_of(engine, state, targets=targets)
    found = layer_contributions(seen)
    assert found["remove_layer", "idle"] == (0.0, 0.0)
    others = {name: mean for (_, name), (mean, _) in found.items() if name != "idle"}
    assert others.keys() == {"inner.0", "inner.1"} and min(others.values()) > 5, others
    decision = PruneIdle()(seen)
    assert decision[:2] == ("remove_layer", "idle")
    after, state, removed = operate(engine, state, planned(seen.body, decision), OPEN)
    assert removed.done and removed.before == removed.after
    assert PruneIdle()(watched_of(after, state, targets=targets)) is None


def test_an_idle_fossil_goes_and_one_that_matters_stays():
    engine = engine_of(slots=(0, 1))
    state = loud(engine.init(0))
    fields = {name: state.slots.get(name).clone() for name in ("stage", "alpha", "blueprint", "blend", "measured")}
    fields["stage"][:], fields["alpha"][:], fields["measured"][:] = int(Stage.FOSSILIZED), 1.0, True
    fields["blueprint"][:], fields["blend"][:] = 0, 0
    contribution = torch.tensor([[8.0, -0.2], [9.0, 0.2]])
    slots = state.slots.replace(**fields, contribution=contribution, contribution_error=torch.full((2, 2), 0.1))
    state = state.replace(slots=slots)
    seen = watched_of(engine, state, targets=own_targets(engine, state))
    decision = PruneIdle(limit=0.3)(seen)
    assert decision[:2] == ("remove_fossil", "1")
    _, bare, report = operate(engine, state, planned(seen.body, decision), OPEN)
    assert report.done and bare.slots.stage.tolist() == [[int(Stage.FOSSILIZED), int(Stage.DORMANT)]] * 2
    assert PruneIdle(limit=0.1)(seen) is None


def test_a_deep_sigmoid_network_gets_its_skip_and_early_gradients_rise():
    engine = engine_of(count=6, activation=torch.sigmoid)
    state = engine.init(0)
    seen = watched_of(engine, state)
    before = gradient_norms(seen)
    assert before["first"] < 1e-3 * before["inner.5"]
    decision = SkipOnVanishing()(seen)
    assert decision[:3] == ("add_skip", "first", "inner.5")
    engine, state, log = tend(engine, state, [SkipOnVanishing()], OPEN, Log())
    assert log.counters["add_skip"] == 1
    after = watched_of(engine, state, log)
    assert gradient_norms(after)["first"] > 50 * before["first"]
    assert SkipOnVanishing()(after) is None
    shallow = engine_of(count=2, activation=F.relu)
    assert SkipOnVanishing()(watched_of(shallow, shallow.init(0))) is None


def test_every_decision_has_its_operation():
    engine = engine_of()
    body = watched_of(engine, engine.init(0)).body
    names = {
        kind: type(planned(body, SurgeryDecision(kind, "inner.0" if kind != "remove_fossil" else "0", "new"))).__name__
        for kind in DECISIONS
    }
    assert names == {
        "add_layer": "InsertLayer",
        "remove_layer": "RemoveLayer",
        "add_neurons": "ModifyLayer",
        "remove_neurons": "ModifyLayer",
        "add_skip": "AddSkip",
        "rewire": "Rewire",
        "remove_fossil": "RemoveFossil",
    }
    assert planned(body, SurgeryDecision("add_neurons", "inner.0")).width == 12
    assert planned(body, SurgeryDecision("remove_neurons", "inner.0")).width == 3
    assert sorted(TRIGGERS) == ["idle", "plateau", "vanishing"]
    with pytest.raises(ValueError, match="decision 'grow': expected add_layer"):
        planned(body, SurgeryDecision("grow", "inner.0"))
    with pytest.raises(ValueError, match="no layer 'outer'; expected first"):
        planned(body, SurgeryDecision("add_layer", "outer", "new"))
