"""Seeds are drawn as asked, placed where they belong, and start as the engine would draw them."""

from collections import Counter

import pytest
import torch

import esper
from esper.kasmina.seeding import Seeds, draw_seeds, own_columns, place_seeds
from esper.leyline.actions import NONE, Action, Blend, Op
from esper.leyline.stages import ACTIVE, MERGED, Stage

E, BLENDS = 5, (Blend.LINEAR, Blend.GATED)


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, E, backend="eager", blends=BLENDS)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_seeds_are_dealt_and_placed_as_asked(engine, share):
    structure, kinds = engine.structure, tuple(range(len(engine.structure.blueprints)))
    seeds = draw_seeds(structure, share, kinds, ACTIVE, BLENDS, 3)
    state = place_seeds(structure, engine.init(3), seeds)
    held = seeds.blueprint != NONE
    assert held.sum() == round(share * E * 3)
    for column, choices in ((seeds.stage, ACTIVE), (seeds.blend, BLENDS), (seeds.blueprint, kinds)):
        counts = Counter(column[held].tolist())
        assert max(counts[c] for c in choices) - min(counts[c] for c in choices) <= 1
    for name in Seeds._fields:
        assert torch.equal(state.slots.get(name), getattr(seeds, name))
    assert bool((state.slots.stage[~held] == int(Stage.DORMANT)).all())
    assert torch.equal(state.slots.alpha > 0, torch.isin(state.slots.stage, torch.tensor(MERGED)))
    own = own_columns(structure, seeds.blueprint)
    shaken = place_seeds(structure, engine.init(3), seeds, shake=0.1)
    assert not bool(state.seeds.params[~own].any()) and torch.equal(shaken.seeds.params != state.seeds.params, own)


def test_a_seed_starts_as_the_engine_would_draw_it(engine):
    """A seed that germinates by an action and one that is placed train to the same numbers."""
    start, kind = engine.init(1), 2
    action = engine.codec.encode(Action(Op.GERMINATE, 1, kind, Blend.GATED))
    grown, _ = engine.step(start, torch.full((E,), action))
    empty = torch.full((E, 3), NONE)
    seeds = Seeds(torch.full((E, 3), int(Stage.DORMANT)), empty.clone(), empty.clone(), torch.zeros(E, 3))
    seeds.stage[:, 1], seeds.blueprint[:, 1], seeds.blend[:, 1] = int(Stage.GERMINATED), kind, int(Blend.GATED)
    placed, _ = engine.step(place_seeds(engine.structure, start, seeds), torch.zeros(E, dtype=torch.int64))
    for name in ("seeds", "host"):
        assert torch.equal(grown.get(name).params, placed.get(name).params)
    assert torch.equal(grown.slots.stage, placed.slots.stage)


def test_what_does_not_fit_is_replaced(small_task):
    fussy = small_task.blueprints[0]._replace(name="fussy", fits=lambda source, target: source.channels == 4)
    task = small_task._replace(blueprints=(fussy, *small_task.blueprints[1:3]))
    structure = esper.make(task, E, backend="eager").structure
    seeds = draw_seeds(structure, 1.0, (0,), (Stage.FOSSILIZED,), (Blend.LINEAR,), 0)
    assert set(seeds.blueprint[:, 1].tolist()) == {0} and 0 not in seeds.blueprint[:, 0]
