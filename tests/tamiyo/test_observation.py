"""The observation: bounded, finite, named, and absent is not zero."""

import math
from dataclasses import fields, replace

import pytest
import torch

import esper
from esper.leyline.actions import Action, Op
from esper.leyline.config import ConfigError
from esper.leyline.stages import Stage
from esper.tamiyo.observation import ABSENT, BASE, PER_SLOT, STANDARD, Scales, build_scales

E = 3


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, E)


def grown(engine, epochs):
    state = engine.init(2)
    for epoch in range(epochs):
        action = engine.codec.encode(Action(Op.GERMINATE, 1, 4, 1)) if epoch == 0 else 0
        state, _ = engine.step(state, torch.full((E,), action))
    return state


def test_width_and_order_come_from_the_table(engine):
    names, config = engine.columns, engine.config
    assert len(set(names)) == len(names) == engine.observe(engine.init(0)).shape[1]
    width = sum(len(column.labels(config, "abcdefg")) for column in BASE)
    each = sum(len(column.labels(config, "abcdefg")) for column in PER_SLOT)
    assert len(names) == width + config.num_slots * each
    assert names[0] == "epoch" and names[width] == "slot0.alpha" and names[width + each] == "slot1.alpha"


@pytest.mark.parametrize("epochs", [0, 1, 4, 9])
def test_columns_are_bounded_and_equal_their_definition(engine, epochs):
    state = grown(engine, epochs)
    table = engine.observe(state)
    assert table.dtype == torch.float32 and torch.isfinite(table).all() and (table.abs() <= 1).all()
    for env in range(E):
        seen = dict(zip(engine.columns, table[env].tolist(), strict=True))
        signals, slot = state.signals[env], state.slots[env, 1]
        loss = signals.val_loss.item()
        expected = {
            "epoch": epochs / 12,
            "seen": float(epochs > 0),
            "val_loss": loss / (1 + loss),
            "val_accuracy": signals.val_accuracy.item() / 100,
            "loss_delta": math.tanh(5 * signals.loss_delta.item()),
            "accuracy_delta": max(-1, min(1, signals.accuracy_delta.item() / 10)),
            "best_loss": 1.0 if epochs == 0 else signals.best_loss.item() / (1 + signals.best_loss.item()),
            "occupied": (state.slots.blueprint[env] >= 0).sum().item() / 3,
            "slot1.alpha": slot.alpha.item(),
            "slot1.stage_age": min(1, slot.stage_age.item() / 10),
            "slot1.contribution": max(-1, min(1, slot.contribution.item() / 10)),
            f"slot1.stage={Stage(slot.stage.item()).name}": 1.0,
            "slot0.stage=DORMANT": 1.0,
            "slot0.blueprint=conv_light": 0.0,
        }
        if slot.blueprint >= 0:
            expected |= {"slot1.blueprint=conv_light": 1.0, "slot1.blend=SIGMOID": 1.0, "slot1.blend=LINEAR": 0.0}
        for name, value in expected.items():
            assert seen[name] == pytest.approx(value, abs=1e-5), name


def test_absent_differs_from_zero(engine):
    columns = engine.columns.index
    blank = engine.observe(engine.init(0))[0]
    assert blank[columns("loss_history[-1]")] == ABSENT and blank[columns("accuracy_history[-1]")] == ABSENT
    seen = engine.observe(grown(engine, 1))[0]
    assert seen[columns("loss_history[-1]")] > 0 and seen[columns("loss_history[-2]")] == ABSENT
    assert seen[columns("slot1.measured")] == 0 and seen[columns("slot1.prospect_known")] == 0


def test_reset_renews_some_environments_and_leaves_the_rest(engine):
    state = grown(engine, 3)
    before = {key: leaf.clone() for key, leaf in state.items(True, True)}
    fresh = torch.tensor([False, True, False])
    renewed, start = engine.reset(state, fresh, 77), engine.init(77)
    assert type(renewed) is type(state) and type(renewed.slots) is type(state.slots)
    for key, leaf in renewed.items(True, True):
        assert torch.equal(state.get(key), before[key]), key
        assert torch.equal(leaf[~fresh], before[key][~fresh]), key
        if key not in ("rounds", "order_key"):
            assert torch.equal(leaf[fresh], start.get(key)[fresh]), key
    assert renewed.rounds.tolist() == [3, 3, 3] and renewed.epoch.tolist() == [3, 0, 3]


def test_units_of_columns_are_settings() -> None:
    """Half the unit is twice the number, before it is cut; a column without a unit of its own stays."""
    half = {entry.name: getattr(STANDARD, entry.name) / 2 for entry in fields(Scales)}
    engine = esper.make("synthetic", 2, backend="eager", steps_per_epoch=1)
    other = replace(engine, scales=build_scales(half))
    state = engine.step(engine.init(0), torch.zeros(2, dtype=torch.int64))[0]
    state = state.replace(signals=state.signals.replace(plateau=torch.tensor([3, 8]), loss_delta=torch.ones(2)))
    names, seen, again = engine.columns, engine.observe(state), other.observe(state)
    plateau, delta = names.index("plateau"), names.index("loss_delta")
    assert seen[:, plateau].tolist() == pytest.approx([0.3, 0.8])
    assert again[:, plateau].tolist() == pytest.approx([0.6, 1.0])
    assert again[0, delta].item() == pytest.approx(math.tanh(2.5))
    assert torch.equal(seen[:, names.index("val_accuracy")], again[:, names.index("val_accuracy")])
    for given in ({"plateau": 0}, {"plateau": math.nan}, {"plateaus": 1}, {"spikes": True}, {"spikes": "x"}):
        with pytest.raises(ConfigError, match=r"^observation\."):
            build_scales(given)
