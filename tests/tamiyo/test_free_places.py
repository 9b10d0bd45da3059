"""Free places of an interface: nothing can be done there before a name stands there, and no number changes by it."""

import pytest
import torch

import esper
from esper.kasmina.conv_blueprints import CONV_HEAVY, CONV_LIGHT, NORM
from esper.leyline.actions import Op
from esper.tamiyo.free_places import filled, free_places, with_free_places
from esper.tamiyo.interface import from_table, to_table, translate

KINDS = (NORM, CONV_LIGHT)


@pytest.fixture(scope="module")
def engines(small_task):
    """Without and with a third blueprint."""
    return [
        esper.make(small_task._replace(blueprints=kinds), 3, backend="eager") for kinds in (KINDS, (*KINDS, CONV_HEAVY))
    ]


def test_places_are_arms_and_columns_of_nothing(engines):
    own = engines[0].interface
    wide = with_free_places(own, 2)
    slots, blends = 3, len(engines[0].config.blends)
    assert with_free_places(own, 0) is own
    assert wide.columns[: len(own.columns)] == own.columns
    assert len(wide.columns) == len(own.columns) + 2 * slots
    assert wide.codec.size == own.codec.size + 2 * 2 * slots * blends  # germinate and change
    assert free_places(wide) == (2, 3) and free_places(own) == ()
    between, state = translate(wide, own), engines[0].init(0)
    mask, legal = between.mask(engines[0].mask(state)), engines[0].mask(state)
    assert not mask[:, wide.codec.blueprint >= 2].any() and mask.sum() == legal.sum()
    assert not between.observation(engines[0].observe(state))[:, len(own.columns) :].any()


def test_filling_keeps_every_number_and_opens_what_the_task_has(engines):
    wide = with_free_places(engines[0].interface, 2)
    full = filled(wide, 3, CONV_HEAVY.name)
    assert full.codec.actions == wide.codec.actions and len(full.columns) == len(wide.columns)
    assert [a for a, b in zip(full.columns, wide.columns, strict=True) if a != b] == [
        f"slot{slot}.blueprint=conv_heavy" for slot in range(3)
    ]
    assert free_places(full) == (2,)
    engine = engines[1]
    between, state = translate(full, engine.interface), engine.init(0)
    mask = between.mask(engine.mask(state))
    assert mask.sum() == engine.mask(state).sum() and not mask[:, full.codec.blueprint == 2].any()
    arm = torch.nonzero(mask[0] & (full.codec.blueprint == 3) & (full.codec.op == int(Op.GERMINATE)))[-1].expand(3)
    state, event = engine.step(state, between.action(arm.reshape(-1)))
    assert not event.result.refusal.any()
    seen = between.observation(engine.observe(state))
    slot = int(full.codec.slot[arm[0]])
    assert bool((seen[:, full.columns.index(f"slot{slot}.blueprint=conv_heavy")] == 1).all())


def test_places_survive_a_file(engines):
    full = filled(with_free_places(engines[0].interface, 2), 2, CONV_HEAVY.name)
    back = from_table(to_table(full))
    assert to_table(back) == to_table(full)
    assert back.codec.actions == full.codec.actions and free_places(back) == (3,)


def test_what_cannot_be_filled(engines):
    wide = with_free_places(engines[0].interface, 1)
    with pytest.raises(esper.ConfigError, match=r"^place 1: not free; expected one of \[2\]$"):
        filled(wide, 1, "another")
    with pytest.raises(esper.ConfigError, match=r"^blueprint 'norm': known already; expected another name than norm, "):
        filled(wide, 2, "norm")
