"""Environments of a State: chosen, joined, exchanged, and stepped in batches of any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import esper
from esper.leyline.config import Precision, SampleOrder
from esper.leyline.environments import OF_THE_RUN, concatenate, replace, select

E = 5
KINDS = [
    ("eager", Precision.FLOAT64, SampleOrder.INDEPENDENT),
    ("eager", Precision.FLOAT64, SampleOrder.SHARED),
    ("oracle", Precision.FLOAT64, SampleOrder.INDEPENDENT),
    ("native", Precision.FLOAT32, SampleOrder.SHARED),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join((kind[0], kind[2].value)))
def engine(request, small_task):
    backend, precision, order = request.param
    return esper.make(small_task, E, backend=backend, precision=precision, sample_order=order)


@pytest.fixture(scope="module")
def walked(engine, walk):
    """A state in which many stages occur, a legal action of every environment, and what follows."""
    states, actions = walk(engine, 3, 8)
    state, action = states[-2], actions[-1]
    assert len(state.slots.stage.unique()) >= 4
    return state, action, states[-1]


def leaves(state):
    return dict(state.items(include_nested=True, leaves_only=True))


def assert_same(actual, expected, within=0.0):
    assert actual.batch_size == expected.batch_size and type(actual) is type(expected)
    for path, leaf in leaves(expected).items():
        other = leaves(actual)[path]
        assert other.dtype == leaf.dtype, path
        if within and leaf.is_floating_point():
            torch.testing.assert_close(other, leaf, rtol=within, atol=within, equal_nan=True, msg=str(path))
        else:
            assert torch.equal(other, leaf), path


def near(engine):
    """float64: rounding of sums; float32: a row depends on its own numbers only, to the bit."""
    return 1e-12 if engine.config.precision is Precision.FLOAT64 else 0.0


@given(rows=st.lists(st.integers(0, E - 1), min_size=1, max_size=2 * E))
@settings(max_examples=10)
def test_a_selection_is_rows_of_every_leaf(walked, rows):
    state, rows = walked[0], torch.tensor(rows)
    chosen = select(state, rows)
    for path, leaf in leaves(state).items():
        assert torch.equal(leaves(chosen)[path], leaf[rows]), path
    assert chosen.slots.batch_size == (len(rows), 3) and chosen.snapshot.host.batch_size == (len(rows),)


@given(mask=st.lists(st.booleans(), min_size=E, max_size=E).filter(any))
@settings(max_examples=5)
def test_a_mask_selects_as_its_rows_do(walked, mask):
    mask = torch.tensor(mask)
    assert_same(select(walked[0], mask), select(walked[0], mask.nonzero().squeeze(1)))


@given(cuts=st.sets(st.integers(1, E - 1)))
@settings(max_examples=8)
def test_concatenating_selections_is_the_identity(walked, cuts):
    parts = torch.arange(E).tensor_split(sorted(cuts))
    assert_same(concatenate([select(walked[0], part) for part in parts]), walked[0])


@given(rows=st.lists(st.integers(0, E - 1), min_size=1, max_size=E, unique=True))
@settings(max_examples=5)
def test_replacing_puts_environments_in_the_place_of_others(walked, rows):
    state, _, later = walked
    rows = torch.tensor(rows)
    rest = torch.tensor([row for row in range(E) if row not in rows.tolist()], dtype=torch.int64)
    mixed = replace(state, rows, select(later, rows))
    for path, leaf in leaves(state).items():
        assert torch.equal(leaves(mixed)[path][rest], leaf[rest]), path
        source = leaf if path in OF_THE_RUN else leaves(later)[path]
        assert torch.equal(leaves(mixed)[path][rows], source[rows]), path
    mask = torch.zeros(E, dtype=torch.bool).index_fill(0, rows, True)
    assert_same(replace(state, mask, select(later, mask)), mixed)


def test_results_share_no_memory_with_their_inputs(walked):
    state = walked[0]
    everything = torch.arange(E)
    held = {leaf.data_ptr() for leaf in leaves(state).values() if leaf.numel()}
    for result in (select(state, everything), concatenate([state]), replace(state, everything, state)):
        fresh = {path: leaf for path, leaf in leaves(result).items() if leaf.numel() and path not in OF_THE_RUN}
        assert not held & {leaf.data_ptr() for leaf in fresh.values()}


@pytest.mark.parametrize("rows", [[3, 0], [2], [4, 4, 1, 0, 2, 3, 3]])
def test_a_step_of_a_selection_is_the_selection_of_the_step(engine, walked, rows):
    state, action, after = walked
    rows = torch.tensor(rows)
    chosen, event = engine.step(select(state, rows), action[rows])
    assert_same(chosen, select(after, rows), near(engine))
    assert event.evaluation.effect.shape == (len(rows), 3)


@pytest.mark.parametrize("rows", [[3, 0], [2], [4, 4, 1, 0, 2, 3, 3]])
def test_mask_and_observation_of_a_selection_are_those_of_its_rows(engine, walked, rows):
    chosen, rows = select(walked[0], torch.tensor(rows)), torch.tensor(rows)
    assert torch.equal(engine.mask(chosen), engine.mask(walked[0])[rows])
    assert torch.equal(engine.observe(chosen), engine.observe(walked[0])[rows])


@pytest.mark.parametrize("numbers", [[3, 0], [2], [0, 1, 2, 3, 4, 5, 6]])
def test_initial_environments_by_number_are_rows_of_a_larger_batch(small_task, engine, numbers):
    config = engine.config
    large = esper.make(
        small_task, 9, backend="eager", precision=config.precision, sample_order=config.sample_order
    ).init(11)
    assert_same(engine.init(11, torch.tensor(numbers)), select(large, torch.tensor(numbers)))


def test_a_reset_of_another_number_of_environments(engine, walked):
    chosen = select(walked[0], torch.tensor([4, 1]))
    fresh = torch.tensor([False, True])
    renewed = engine.reset(chosen, fresh, 5, torch.tensor([4, 1]))
    start = engine.init(5, torch.tensor([4, 1]))
    assert torch.equal(renewed.host.params[1], start.host.params[1]) and not renewed.epoch[1]
    assert_same(select(renewed, ~fresh), select(chosen, ~fresh))
    plain = engine.reset(chosen, fresh, 5)
    assert torch.equal(plain.host.params[1], engine.init(5, torch.tensor([0, 1])).host.params[1])


def test_numbers_of_every_environment_fit_their_own_number_only(small_task):
    engine = esper.make(small_task, E, backend="eager", host_lr=torch.linspace(0.01, 0.05, E))
    state = engine.init(0, torch.arange(3))
    message = f"hypers.host_lr has {E} values, the state 3 environments; expected as many"
    for function in (lambda: engine.step(state, torch.zeros(3, dtype=torch.int64)), lambda: engine.mask(state)):
        with pytest.raises(ValueError) as error:
            function()
        assert str(error.value) == message
    engine.observe(state)


def test_an_action_for_every_environment(engine, walked):
    with pytest.raises(ValueError) as error:
        engine.step(walked[0], walked[1][:1])
    assert (
        str(error.value)
        == f"step: action: found torch.int64 [1]; expected a tensor torch.int64 [{E}], one for each environment"
    )


WRONG = {
    "rows int32 [2]; expected int64 [n] or bool [5]": lambda s: select(s, torch.tensor([0, 1], dtype=torch.int32)),
    "rows int64 []; expected int64 [n] or bool [5]": lambda s: select(s, torch.tensor(1)),
    "rows bool [2]; expected bool [5]": lambda s: select(s, torch.tensor([True, False])),
    "rows name no environment; expected at least one of 5": lambda s: select(s, torch.zeros(E, dtype=torch.bool)),
    "rows = [0, 5]: expected 0 to 4": lambda s: select(s, torch.tensor([0, 5])),
    "rows = [-1]: expected 0 to 4": lambda s: select(s, torch.tensor([-1])),
    "no states; expected at least one": lambda s: concatenate([]),
    "states[1].rounds = [8, 8, 8, 8, 8]: expected 7 in every row, as in states[0]": lambda s: concatenate(
        [s, s.replace(rounds=s.rounds + 1)]
    ),
    "states[0].rounds = [7, 7, 7, 7, 8]: expected 7 in every row, as in states[0]": lambda s: concatenate(
        [s.replace(rounds=torch.tensor([7, 7, 7, 7, 8]))]
    ),
    "states[1].buffers is float16 [E, 28] on cpu; expected float64 [E, 28] on cpu": lambda s: concatenate(
        [s, s.replace(buffers=s.buffers.half())]
    ),
    "states[1].signals.loss_history is float64 [E, 3] on cpu; expected float64 [E, 5] on cpu": lambda s: concatenate(
        [s, s.replace(signals=s.signals.replace(loss_history=s.signals.loss_history[:, :3]))]
    ),
    "rows = [1, 1]: expected every place once": lambda s: replace(s, torch.tensor([1, 1]), select(s, torch.arange(2))),
    "other has 3 environments; expected 2, as rows": lambda s: replace(
        s, torch.tensor([1, 2]), select(s, torch.arange(3))
    ),
    "other.seeds.steps is int32 [E, 3] on cpu; expected int64 [E, 3] on cpu": lambda s: replace(
        s, torch.arange(E), s.replace(seeds=s.seeds.replace(steps=s.seeds.steps.int()))
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_done_is_one_line(small_task, walk, message):
    engine = esper.make(small_task, E, backend="eager", precision=Precision.FLOAT64)
    states, _ = walk(engine, 3, 0)
    state = states[0].replace(rounds=states[0].rounds + 7)
    with pytest.raises(ValueError) as error:
        WRONG[message](state)
    place, _, found = str(error.value).partition(": ")
    assert place in ("select", "concatenate", "replace") and found == message


def test_states_of_two_runs_are_joined_by_giving_one_the_others_run(engine):
    one, two = engine.init(1), engine.init(2)
    with pytest.raises(ValueError, match=r"concatenate: states\[1\].order_key"):
        concatenate([one, two])
    joined = concatenate([one, two.replace(order_key=one.order_key, rounds=one.rounds)])
    assert joined.batch_size == (2 * E,)
    after, _ = engine.step(joined, torch.zeros(2 * E, dtype=torch.int64))
    alone, _ = engine.step(one, torch.zeros(E, dtype=torch.int64))
    assert_same(select(after, torch.arange(E)), alone, near(engine))
