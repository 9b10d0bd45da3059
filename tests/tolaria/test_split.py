"""Which samples validate and test: facts about a dataset, the same for ever, and nothing a run could change.

The law that the other tests rest on: what a step does is a function of the training part and of the validation samples
in use. Nobody looks at the test part before the report is made.
"""

import hashlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import esper
from esper.bench import plain
from esper.leyline.config import ConfigError
from esper.tamiyo.baselines import random_legal
from esper.tolaria.data import Part
from esper.tolaria.split import draw, half, limit_validation, tenth
from esper.tolaria.synthetic import synthetic
from esper.utils import rng


@given(seed=st.integers(0, 2**32), total=st.integers(1, 300), number=st.integers(0, 400))
def test_a_draw_is_a_set_of_places_that_grows(seed, total, number):
    index = draw(seed, total, number).tolist()
    assert index == sorted(set(index)) and len(index) == min(number, total)
    assert all(0 <= place < total for place in index)
    assert set(index) <= set(draw(seed, total, number + 1).tolist())


def test_every_sample_is_as_likely_to_be_drawn():
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[draw(seed, 10, 3)] += 1
    assert (counts - 600).abs().max() < 5 * (2000 * 0.3 * 0.7) ** 0.5


@pytest.mark.parametrize(
    ("index", "size", "checksum"),
    [
        (tenth(60_000), 6_000, "35d7527db165bcb0"),
        (tenth(50_000), 5_000, "cc643239da633999"),
        (half(360), 180, "44e1cf43f062b207"),
    ],
    ids=["mnist", "cifar10", "halves"],
)
def test_the_splits_never_change(index, size, checksum):
    """Recorded once: another split would make figures of two versions figures of different samples."""
    assert len(index) == size
    assert hashlib.sha256(",".join(map(str, index.tolist())).encode()).hexdigest()[:16] == checksum


def test_a_limited_validation_is_a_subset_that_the_record_names():
    data = synthetic(num_val=100)
    some, fewer = limit_validation(data, 30), limit_validation(data, 7)
    rows = [{tuple(row) for row in part.inputs.flatten(1).tolist()} for part in (data[2], some[2], fewer[2])]
    assert rows[2] < rows[1] < rows[0] and [len(each) for each in rows] == [100, 30, 7]
    assert some.split == f"{data.split}; of 100 validation samples 30 are used, drawn by a fixed key"
    assert some.train is data.train and some.test is data.test and limit_validation(data, 100) is data
    places = [next(i for i, row in enumerate(data[2].inputs) if torch.equal(row, kept)) for kept in some[2].inputs]
    assert places == sorted(places) and torch.equal(data[2].targets[places], some[2].targets)


def test_decisions_are_made_on_twice_the_training_samples_of_an_epoch(small_task):
    """Two steps of eight samples: 32 of more."""
    task = small_task._replace(data=synthetic((1, 8, 8), num_classes=4, num_train=48, num_val=90, num_test=70))
    used = {most: esper.make(task, 2, backend="eager", val_samples=most).data.validation for most in (None, 5, 90, 900)}
    assert {most: part.size for most, part in used.items()} == {None: 32, 5: 5, 90: 90, 900: 90}
    wider = esper.make(task, 2, backend="eager", batch_size=16)
    assert wider.data.sizes == {"train": 48, "validation": 64, "test": 70}
    assert wider.describe()[-1].startswith("data synthetic: 48 train + 64 validation + 70 test samples; ")


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "all"])
def test_a_wrong_number_is_named(small_task, wrong):
    with pytest.raises(ConfigError) as error:
        esper.make(small_task, 2, val_samples=wrong)
    assert str(error.value) == f"config.val_samples = {wrong!r}: expected an integer >= 1, or None"


def play(engine, length=6):
    """A random legal walk: final state and every number that was reported."""
    state, policy, seen = engine.init(3), random_legal(engine.codec), []
    keys = rng.fold_in(rng.key(9), torch.arange(engine.config.num_envs))
    for step in range(length):
        state, event = engine.step(state, policy(engine.mask(state), rng.fold_in(keys, step)))
        seen += [*event.epoch[:3], *event.evaluation, *event.judgement, engine.observe(state)]
    return state, seen


def assert_same(one, other):
    for (name, mine), theirs in zip(
        one[0].items(include_nested=True, leaves_only=True),
        other[0].values(include_nested=True, leaves_only=True),
        strict=True,
    ):
        assert torch.equal(mine, theirs), name
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_a_step_never_touches_the_test_part(small_task, backend):
    """NaN for inputs and labels that are no classes: had anything been read, trajectories would differ or stop."""
    engine = esper.make(small_task, 5, backend=backend)
    test = engine.data.test
    poison = Part(torch.full_like(test.inputs, torch.nan), torch.full_like(test.targets, 2**40))
    poisoned = replace(engine, data=engine.data._replace(test=poison))
    clean = play(engine)
    assert_same(clean, play(poisoned))
    gone = replace(engine, data=engine.data._replace(test=Part(test.inputs[:0], test.targets[:0])))
    assert_same(clean, play(gone))
    hurt = replace(
        engine,
        data=engine.data._replace(validation=Part(-engine.data.validation.inputs, engine.data.validation.targets)),
    )
    with pytest.raises(AssertionError):  # the walk does notice what it reads
        assert_same(clean, play(hurt))


def test_validation_samples_out_of_use_change_nothing(small_task):
    data = small_task.data
    used = esper.make(small_task, 4, backend="eager", val_samples=12)
    kept = torch.tensor(
        [bool((row == used.data.validation.inputs).flatten(1).all(1).any()) for row in data.validation.inputs]
    )
    assert int(kept.sum()) == 12
    inputs = torch.where(kept[:, None, None, None], data.validation.inputs, 1e6)
    targets = torch.where(kept, data.validation.targets, 3 - data.validation.targets)
    other = small_task._replace(data=data._replace(validation=Part(inputs, targets)))
    assert_same(play(used), play(esper.make(other, 4, backend="eager", val_samples=12)))


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_the_test_is_the_validation_on_other_samples(small_task, backend):
    """Where both parts are the same samples and no seed blends, both say the same of a network."""
    same = small_task._replace(data=small_task.data._replace(test=small_task.data.validation))
    engine = esper.make(same, 5, backend=backend)
    state, wait = engine.init(1), torch.zeros(5, dtype=torch.int64)
    for _ in range(2):
        state, event = engine.step(state, wait)
    found = engine.test(state)
    assert torch.equal(found.loss, event.evaluation.loss) and torch.equal(found.accuracy, event.evaluation.accuracy)


def test_the_test_is_that_of_a_plain_network_in_float64(small_task):
    """The instrument's second source: one environment at a time, plain torch, on the test samples."""
    engine = esper.make(small_task, 4, backend="eager")
    state, _ = play(engine, 9)
    found, test = engine.test(state), engine.data.test
    assert test.size > engine.config.eval_batch_size and (state.slots.alpha > 0).any()
    told = replace(engine, data=engine.data._replace(validation=test))
    for env in range(4):
        expected = plain.validate(told, state, env)
        assert float(found.loss[env]) == pytest.approx(float(expected.losses.mean()), rel=1e-4)
        assert abs(float(found.accuracy[env]) - 100 * float(expected.scores[0].mean())) <= 100.001 / test.size


def test_swept_numbers_and_states_must_fit(small_task):
    engine = esper.make(small_task, 3, backend="eager", host_lr=torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match=r"hypers.host_lr has 3 values, the state 2 environments"):
        engine.test(esper.make(small_task, 2, backend="eager").init(0))
