"""What decisions were taken, as policies may see it: against a list in plain Python, and off unless asked for."""

import random

import pytest
import torch

import esper
from esper.leyline.actions import Op
from esper.leyline.config import ConfigError
from esper.tamiyo.decision_columns import decisions_seen
from esper.urza.states import batches_of, load_state, save_state, state_of, tensors_of

E, D = 3, 3

ILLEGAL = 10_000
"""No action; it is refused."""


@pytest.fixture(scope="module")
def plain(small_task):
    return esper.make(small_task, E, backend="eager")


@pytest.fixture(scope="module", params=[False, True], ids=["", "retarget"])
def engine(small_task, request):
    return esper.make(small_task, E, backend="eager", decision_history=D, retarget=request.param)


def walk(engine, seed, steps, start=None):
    """Random decisions, legal or not, and what was carried out: (operation, slot, refused) of every environment."""
    draw, state, told = random.Random(seed), engine.init(seed) if start is None else start, [[] for _ in range(E)]
    for _ in range(steps):
        legal = engine.mask(state)
        chosen = [
            ILLEGAL if draw.random() < 0.2 else draw.choice(legal[env].nonzero().flatten().tolist()) for env in range(E)
        ]
        for env, index in enumerate(chosen):
            action = None if index == ILLEGAL else engine.codec.actions[index]
            told[env].append((Op.WAIT, -1, True) if action is None else (action.op, action.slot, False))
        state, _ = engine.step(state, torch.tensor(chosen))
    return state, told


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_the_last_decisions_are_flagged_and_absent_ones_are_not(engine, steps):
    state, told = walk(engine, steps, steps)
    seen, ops = engine.observe(state), engine.codec.ops
    for env in range(E):
        row = dict(zip(engine.columns, seen[env].tolist(), strict=True))
        for age in range(1, D + 1):
            op, slot, refused = told[env][-age] if age <= steps else (None, None, False)
            expected = {f"decision[-{age}]={each.name}": float(each is op) for each in ops}
            expected |= {f"decision[-{age}].slot{place}": float(place == slot) for place in range(3)}
            expected |= {f"decision[-{age}].refused": float(refused)}
            assert {name: row[name] for name in row if name.startswith(f"decision[-{age}]")} == expected
    assert decisions_seen(engine.columns) == D and seen.abs().max() <= 1


def test_without_it_nothing_is_different(plain, engine):
    """State, columns and bits are those of an engine that never heard of it; with it, the rest is the same."""
    if Op.RETARGET in engine.codec.ops:
        pytest.skip("decides otherwise")
    (bare, _), (state, _) = walk(plain, 5, 6), walk(engine, 5, 6)
    assert "signals.decisions" not in tensors_of(bare) and decisions_seen(plain.columns) == 0
    more = tensors_of(state)
    assert more.pop("signals.decisions").shape == (E, D, 3)
    assert all(torch.equal(value, more[name]) for name, value in tensors_of(bare).items()) and len(more) == len(
        tensors_of(bare)
    )
    kept = [place for place, name in enumerate(engine.columns) if not name.startswith("decision[")]
    assert [engine.columns[place] for place in kept] == plain.columns
    assert torch.equal(engine.observe(state)[:, kept], plain.observe(bare))


def test_it_is_saved_loaded_and_renewed_with_the_rest(engine, plain, tmp_path):
    state, _ = walk(engine, 1, 4)
    save_state(tmp_path / "state", state)
    loaded = load_state(tmp_path / "state")
    assert torch.equal(loaded.signals.decisions, state.signals.decisions)
    assert walk(engine, 2, 2, loaded)[0].signals.decisions.equal(walk(engine, 2, 2, state)[0].signals.decisions)
    bare = plain.init(0)
    assert "decisions" not in state_of(tensors_of(bare), batches_of(bare)).signals.keys()  # noqa: SIM118
    fresh = engine.reset(state, torch.tensor([True, False, True]), 9)
    assert (fresh.signals.decisions[[0, 2]] == -1).all()
    assert torch.equal(fresh.signals.decisions[1], state.signals.decisions[1])


def test_a_rollback_is_remembered_with_the_decision_before_it(small_task):
    """A loss above the limit rolls back at once; what was decided stays known."""
    always = {"loss_limit": 0.0, "min_history": 3, "loss_sigmas": 0.0, "loss_multiple": 1.0, "spikes_in_a_row": 1}
    engine = esper.make(small_task, E, backend="eager", decision_history=2, **always)
    state, rolled = engine.init(0), torch.zeros(E, dtype=torch.bool)
    germinate = next(i for i, action in enumerate(engine.codec.actions) if action.op is Op.GERMINATE)
    for _ in range(8):
        legal = engine.mask(state)[:, germinate]
        state, event = engine.step(state, torch.where(legal, germinate, 0))
        rolled |= event.judgement.rolled_back
        assert torch.equal(state.signals.decisions[:, -1, 0], event.result.op)
    assert rolled.any()


@pytest.mark.parametrize("value", [-1, 1 << 13, 1.5])
def test_a_number_that_is_not_allowed_is_one_line(small_task, value):
    with pytest.raises(ConfigError, match=r"^config\.decision_history = .*: expected an integer"):
        esper.make(small_task, E, decision_history=value)
