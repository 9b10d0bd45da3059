"""A further blueprint between two steps: no number of a state is lost, nor the future of who never plants it changed.

The columns of the arenas are reckoned here from the layouts of the blueprints alone, not from the slots' own columns.
"""

import pytest
import torch

import esper
from esper.kasmina.bypass_blueprints import CONV8X2
from esper.kasmina.conv_blueprints import ATTENTION, CONV_HEAVY, CONV_LIGHT, NORM
from esper.kasmina.gate import layout as gate_layout
from esper.leyline.state import State
from esper.runtime.adopt import adopt
from esper.tamiyo.interface import translate

LENGTH = 6

SEEDS = ("seeds", "params"), ("seeds", "moments"), ("seed_buffers",)


def params_of(kind, slot):
    return kind.layout(slot.reads, slot.acts).size


def buffers_of(kind, slot):
    return kind.buffer_layout(slot.reads, slot.acts).size


def arena_columns(engine, width_of, kinds, with_gate):
    """Per slot, of the arena of these blueprints: which columns there are, (blueprint's, gate's)."""
    found, start = [], 0
    for slot in engine.structure.slots:
        fitting = [kind for kind in kinds if kind.suits(slot.reads, slot.acts, slot.is_bypass)]
        own, gate = max(width_of(kind, slot) for kind in fitting), gate_layout(slot.reads).size if with_gate else 0
        found.append((range(start, start + own), range(start + own, start + own + gate)))
        start += own + gate
    return found


def expect_kept(engine, after, state, wider, old_kinds):
    """Every leaf of ``state`` is in ``wider``; what is more there is 0."""
    new_kinds = after.structure.blueprints
    for name, leaf in state.items(include_nested=True, leaves_only=True):
        path = name if isinstance(name, tuple) else (name,)
        short, there = path[1:] if path[0] == "snapshot" else path, wider.get(name)
        assert there.dtype == leaf.dtype
        if short not in SEEDS:
            assert torch.equal(leaf, there), name
            continue
        held = short == ("seed_buffers",)
        size = buffers_of if held else params_of
        before, behind = (arena_columns(engine, size, kinds, not held) for kinds in (old_kinds, new_kinds))
        seen = torch.zeros(there.shape[-1], dtype=torch.bool)
        for old, new in zip(before, behind, strict=True):
            for olds, news in zip(old, new, strict=True):
                place = list(news[: len(olds)])
                assert torch.equal(leaf[..., list(olds)], there[..., place]), name
                seen[place] = True
        assert there.shape[-1] == sum(len(part) for slot in behind for part in slot)
        assert bool((there[..., ~seen] == 0).all()), name


CASES = {
    "wider": ((NORM, CONV_LIGHT), CONV_HEAVY),
    "no wider": ((NORM, CONV_HEAVY), CONV_LIGHT),
    "another site": ((NORM, CONV_LIGHT, CONV8X2), ATTENTION),
}


@pytest.mark.parametrize(("case", "backend"), [*((case, "native") for case in CASES), ("wider", "eager")])
def test_whoever_never_plants_it_goes_on_in_the_same_bits(small_task, walk, case, backend):
    """Gradients of seeds are clipped on ``native``, which sums over what a seed has, not over its whole row."""
    kinds, further = CASES[case]
    settings = {"slots": (0, 1, 2, "input:logits") if case == "another site" else (0, 1, 2)}
    settings |= {"seed_clip": 0.01} if backend == "native" else {}
    engine = esper.make(small_task._replace(blueprints=kinds), 4, backend=backend, **settings)
    states, actions = walk(engine, 3, LENGTH)
    for since in (0, 4):
        after, state = adopt(engine, states[since], further)
        expect_kept(engine, after, states[since], state, kinds)
        assert after.backend.name == backend and state.is_locked
        own = translate(engine.interface, after.interface)
        for number in range(since, LENGTH):
            assert torch.equal(own.mask(after.mask(state)), engine.mask(states[number]))
            state, _ = after.step(state, own.action(actions[number]))
            expect_kept(engine, after, states[number + 1], state, kinds)
    assert any(bool((each.slots.blueprint >= 0).any()) for each in states)


def test_the_new_one_grows_as_where_it_was_from_the_start(small_task, walk):
    """Adopted at the start it is the engine that was made with it, to the bit."""
    task = small_task._replace(blueprints=(NORM, CONV_LIGHT))
    whole = esper.make(task._replace(blueprints=(NORM, CONV_LIGHT, CONV_HEAVY)), 4, backend="native")
    engine = esper.make(task, 4, backend="native")
    engine, state = adopt(engine, engine.init(4), CONV_HEAVY)
    assert isinstance(state, State)
    states, actions = walk(whole, 4, LENGTH)
    assert bool((torch.stack([each.slots.blueprint for each in states]) == 2).any())
    assert engine.codec.actions == whole.codec.actions and engine.columns == whole.columns
    for number in range(LENGTH):
        state, _ = engine.step(state, actions[number])
        for name, leaf in states[number + 1].items(include_nested=True, leaves_only=True):
            assert torch.equal(leaf, state.get(name)), name


def test_what_cannot_be_adopted(small_task):
    engine = esper.make(small_task._replace(blueprints=(NORM,)), 2, backend="eager")
    state = engine.init(0)
    with pytest.raises(esper.ConfigError, match=r"^blueprint 'norm': known already; expected another name than norm$"):
        adopt(engine, state, NORM)
    with pytest.raises(
        esper.ConfigError, match=r"^blueprint 'conv8x2': fits no slot; expected one for block0 \(conv 2x4x4\)"
    ):
        adopt(engine, state, CONV8X2)
