"""What leaves a function of the engine is locked, with all its parts."""

import pytest
import torch
from tensordict import TypedTensorDict

import esper
from esper.leyline.environments import concatenate, replace, select
from esper.leyline.state import lock

E = 3
PARTS = (
    *((), ("host",), ("slots",), ("seeds",), ("signals",), ("governor",), ("context",)),
    *(("snapshot",), ("snapshot", "host"), ("snapshot", "seeds")),
)


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, E, backend="eager")


@pytest.fixture(scope="module")
def left(engine, walk):
    """States by the function that they leave."""
    states, actions = walk(engine, 1, 2)
    state = states[-1]
    rows = torch.tensor([2, 0])
    return {
        "init": states[0],
        "step": engine.step(state, actions[-1])[0],
        "reset": engine.reset(state, torch.tensor([True, False, False]), 7),
        "select": select(state, rows),
        "concatenate": concatenate([state, state]),
        "replace": replace(state, rows, select(state, rows)),
    }


FUNCTIONS = ("init", "step", "reset", "select", "concatenate", "replace")
WRITES = {
    "set": lambda part, name: part.set(name, part.get(name)),
    "item": lambda part, name: part.__setitem__(name, part.get(name)),
    "update": lambda part, name: part.update({name: part.get(name)}),
    "attribute": lambda part, name: setattr(part, name, part.get(name)),
    "new": lambda part, name: part.set("another", part.get(name)),
    "del": lambda part, name: part.pop(name),
    "rename": lambda part, name: part.rename_key_(name, "another"),
}


def part_of(state, path):
    for name in path:
        state = state.get(name)
    return state


def test_every_part_is_known(left):
    state = left["init"]
    nested = {path for path in state.keys(include_nested=True) if not torch.is_tensor(state.get(path))}
    assert {path if isinstance(path, tuple) else (path,) for path in nested} == set(PARTS) - {()}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("path", PARTS, ids=lambda path: ".".join(path) or "state")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_part_of_what_leaves_can_be_set(left, function, path, write):
    part = part_of(left[function], path)
    name = next(name for name, leaf in part.items() if torch.is_tensor(leaf))
    with pytest.raises(RuntimeError, match=r"lock"):
        WRITES[write](part, name)


@pytest.mark.parametrize("path", PARTS, ids=lambda path: ".".join(path) or "state")
def test_a_replaced_state_is_open_and_its_original_stays_locked(left, path):
    state = left["step"]
    other = state.replace(epoch=state.epoch + 1)
    assert state.is_locked and not other.is_locked
    assert part_of(state, path).is_locked


def test_a_step_takes_an_open_state_and_leaves_it_open(engine, walk):
    states, actions = walk(engine, 1, 3)
    given = states[2].replace(epoch=states[2].epoch.clone())
    after, _ = engine.step(given, actions[2])
    assert not any(part_of(given, path).is_locked for path in PARTS)
    assert all(part_of(after, path).is_locked for path in PARTS)
    assert torch.equal(after.host.params, states[3].host.params)


def test_lock_returns_its_argument(left):
    state = left["init"].replace(epoch=left["init"].epoch)
    assert lock(state) is state and state.snapshot.seeds.is_locked


def test_hyperparameters_of_an_engine_are_locked_copies(small_task):
    rates = torch.full((E,), 0.25)
    engine = esper.make(small_task, E, backend="eager", host_lr=rates)
    rates.fill_(0.5)
    assert engine.hypers.host_lr.tolist() == [0.25] * E
    with pytest.raises(RuntimeError, match=r"lock"):
        engine.hypers["host_lr"] = rates


def test_replace_is_that_of_tensordict(left):
    """Types, parts and tensors, not their copies; what does not fit is refused as there."""
    state = left["step"]
    given = {"epoch": state.epoch + 1, "slots": state.slots.replace(alpha=state.slots.alpha + 1)}
    quick, plain = state.replace(**given), TypedTensorDict.replace(state, **given)
    for path in PARTS:
        mine, theirs = part_of(quick, path), part_of(plain, path)
        assert type(mine) is type(theirs) and mine.batch_size == theirs.batch_size
        assert mine.is_locked == theirs.is_locked is False and list(mine.keys()) == list(theirs.keys())
        for name, leaf in theirs.items():
            assert not torch.is_tensor(leaf) or mine.get(name) is leaf, (path, name)
    for wrong in ({"epoch": torch.zeros(E + 1)}, {"slots": state.slots[:1]}):
        with pytest.raises(RuntimeError, match="batch"):
            state.replace(**wrong)
