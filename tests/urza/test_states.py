"""States on the disk: the same tree, the same bits, and the same future."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

import esper
from esper.urza.checkpoint import CheckpointError, load, save


@pytest.fixture(scope="module")
def engine():
    return esper.make("synthetic", 3, backend="eager", steps_per_epoch=1, val_samples=8)


def leaves(state):
    return {name: value for name, value in state.items(include_nested=True, leaves_only=True)}


def assert_same(one, other):
    assert leaves(one).keys() == leaves(other).keys()
    for name, value in leaves(one).items():
        found = leaves(other)[name]
        assert found.dtype == value.dtype and found.numpy().tobytes() == value.numpy().tobytes(), name


@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(st.data())
def test_a_loaded_state_goes_on_with_the_same_bits(engine, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("states")
    state = engine.init(data.draw(st.integers(0, 2**20)))
    for _ in range(data.draw(st.integers(0, 3))):
        state, _ = engine.step(state, torch.tensor(data.draw(st.lists(st.integers(0, 40), min_size=3, max_size=3))))
    esper.save(folder / "state", state)
    again = esper.load(folder / "state")
    assert_same(state, again)
    assert again.is_locked and again.slots.is_locked and again.slots.batch_size == state.slots.batch_size
    assert type(again.snapshot.host) is type(state.snapshot.host)
    action = torch.tensor(data.draw(st.lists(st.integers(0, 40), min_size=3, max_size=3)))
    assert_same(engine.step(state, action)[0], engine.step(again, action)[0])


def test_what_is_no_state_is_refused_in_one_line(engine, tmp_path):
    save(tmp_path / "other", {"x": torch.zeros(2)}, {"done": 3})
    with pytest.raises(CheckpointError, match=r"other: holds done; expected a state$"):
        esper.load(tmp_path / "other")
    esper.save(tmp_path / "state", engine.init(0))
    with pytest.raises(CheckpointError, match="state: there already"):
        esper.save(tmp_path / "state", engine.init(0))
    tensors, table = load(tmp_path / "state")
    save(tmp_path / "more", tensors | {"slots.colour": torch.zeros(3)}, table)
    with pytest.raises(CheckpointError, match=r"more: a state with slots.colour, of another version$"):
        esper.load(tmp_path / "more")
    del tensors["slots.alpha"]
    save(tmp_path / "less", tensors, table)
    with pytest.raises(CheckpointError, match=r"less: a state without slots.alpha, of another version$"):
        esper.load(tmp_path / "less")


def test_what_is_no_state_is_not_written(tmp_path):
    """A table of tensors has no fields that are known: nothing of it would be kept."""
    with pytest.raises(CheckpointError, match="got TensorDict; expected a State"):
        esper.save(tmp_path / "kept", TensorDict({"x": torch.ones(2)}, [2]))
    assert not list(tmp_path.iterdir())
