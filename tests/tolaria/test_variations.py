"""Environments that differ: what they draw, and what they are given of one dataset."""

import io
import math

import numpy as np
import pytest
import torch

import esper
from esper.leyline.config import ConfigError
from esper.leyline.contexts import CONTEXT_NUMBERS, FIXED, Choice, Spread, Variation
from esper.runtime.rollout import rollout
from esper.simic.rewards import RewardMode, build_reward_params
from esper.tamiyo import scripted
from esper.tamiyo.policies import from_mask
from esper.tezzeret.batches import batch_at
from esper.tolaria.training import draw_batches
from esper.tolaria.variations import stand_ins, told_labels, with_levels
from esper.utils import rng

E, SEED = 5, 13
ALL = Variation(
    {
        "host_lr": Spread(0.5, 2.0, log=True),
        "price": Spread(0.5, 4.0),
        "data_share": Choice((0.25, 0.5, 1.0)),
        "label_noise": Choice((0.0, 0.4)),
        "input_noise": Choice((0.0, 0.5, 1.0)),
        "shift": Choice((0.0, 0.5)),
    }
)


def varied(task, variation):
    return task._replace(data=task.data._replace(variation=variation))


def make(task, variation=ALL, envs=E, backend="eager", **numbers):
    return esper.make(varied(task, variation), envs, backend=backend, **numbers)


def leaves(state):
    return dict(state.items(include_nested=True, leaves_only=True))


def same(first, other):
    assert first.keys() == other.keys()
    for name, leaf in first.items():
        assert torch.equal(leaf, other[name]), name


def block(key, counter):
    """Threefry-2x32-20 of one counter, as its authors describe it, in Python's integers."""
    words = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x, y = (counter[0] + key[0]) % 2**32, (counter[1] + key[1]) % 2**32
    for group in range(5):
        for shift in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = (x + y) % 2**32
            y = ((y << shift | y >> 32 - shift) % 2**32) ^ x
        x, y = (x + words[(group + 1) % 3]) % 2**32, (y + words[(group + 2) % 3] + group + 1) % 2**32
    return x, y


def folded(key, *data):
    for datum in data:
        key = block(key, (0, datum))
    return key


ENVIRONMENT, CONTEXT, LABELS = 0, 9, 11


def test_contexts_are_those_of_the_keys(small_task):
    engine = make(small_task, precision="float64")
    context = engine.init(SEED).context
    for env in range(E):
        own = folded((0, SEED), ENVIRONMENT, env)
        for place, name in enumerate(CONTEXT_NUMBERS):
            x, y = block(folded(own, CONTEXT, place), (0, 0))
            u, spread = ((x ^ y) >> 9) / 2**23, ALL.distributions[name]
            if isinstance(spread, Choice):
                expected = spread.values[math.floor(u * len(spread.values))]
            elif spread.log:
                expected = math.exp(math.log(spread.low) + u * math.log(spread.high / spread.low))
            else:
                expected = (1 - u) * spread.low + u * spread.high
            assert float(context.get(name)[env]) == pytest.approx(expected, rel=1e-12), (env, name)


def test_wrong_labels_are_those_of_the_keys(small_task):
    classes, noise = small_task.data.num_classes, torch.tensor([0.3, 0.8])
    targets = small_task.data.train.targets
    places = torch.arange(len(targets)).reshape(1, -1)
    key = rng.fold_in(rng.key(3), torch.arange(2))
    told = told_labels(targets.expand(2, 1, -1), places, noise, key, classes)
    for env in range(2):
        own = folded((0, 3), env, LABELS)
        for place, right in enumerate(targets.tolist()):
            first, second = folded(own, place)
            wrong = (right + 1 + second % (classes - 1)) % classes
            assert int(told[env, 0, place]) == (wrong if first / 2**32 < float(noise[env]) else right)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.6, 1.0])
def test_labels_are_wrong_as_often_as_declared(noise):
    """Over 60,000 labels within five standard deviations of the binomial; what is wrong is spread evenly."""
    count, classes = 60_000, 5
    right = torch.arange(count).reshape(1, 1, -1) % classes
    told = told_labels(right, torch.arange(count).reshape(1, -1), torch.tensor([noise]), rng.key(1)[None], classes)
    wrong = told != right
    assert abs(int(wrong.sum()) - noise * count) <= 5 * math.sqrt(noise * (1 - noise) * count)
    shares = torch.bincount(((told - right) % classes)[wrong], minlength=classes)[1:] / max(int(wrong.sum()), 1)
    if noise:
        assert float((shares - 1 / (classes - 1)).abs().max()) < 5 * math.sqrt(0.19 / int(wrong.sum()))


def test_an_environment_is_told_the_same_in_every_epoch(small_task):
    engine = make(small_task, Variation({"label_noise": Choice((0.5,))}), steps_per_epoch=12)
    state, seen = engine.init(SEED), [dict() for _ in range(E)]
    for epoch in range(4):
        batches = draw_batches(engine.config, state.replace(rounds=state.rounds + epoch), engine.data)
        for step in range(batches.length):
            for env, (places, labels) in enumerate(
                zip(batches.picks[step].tolist(), batches.targets_at(step).tolist(), strict=True)
            ):
                for place, label in zip(places, labels, strict=True):
                    assert seen[env].setdefault(place, label) == label
    assert all(len(each) == small_task.data.train.size for each in seen)
    assert len({tuple(sorted(each.items())) for each in seen}) == E


@pytest.mark.parametrize("order", ["shared", "independent"])
def test_an_environment_sees_its_share_of_the_samples(small_task, order):
    """Whole passes over 48 samples: 12, 24 or 48 different ones, each equally often, the same ones in every pass."""
    number = small_task.data.train.size
    engine = make(
        small_task, Variation({"data_share": Choice((0.25, 0.5, 1.0))}), steps_per_epoch=6, sample_order=order
    )
    state, passes = engine.init(SEED), []
    for epoch in range(2):
        shifted = state.replace(rounds=state.rounds + epoch, epoch=state.epoch + epoch)
        picks = draw_batches(engine.config, shifted, engine.data).picks.transpose(0, 1).flatten(1)
        passes.append(torch.stack([torch.bincount(row, minlength=number) for row in picks]))
    for env, counts in enumerate(passes[0]):
        kept = round(number * float(state.context.data_share[env]))
        assert torch.equal(counts[counts > 0], torch.full((kept,), number // kept)), env
    assert torch.equal(*passes)
    assert state.context.data_share.unique().numel() > 1


def test_a_share_that_does_not_divide_the_samples_comes_as_evenly_as_can_be():
    allowed = torch.ones(3, 50, dtype=torch.bool)
    places = stand_ins(torch.tensor([0.3, 0.01, 1.0]), rng.fold_in(rng.key(2), torch.arange(3)), allowed)
    counts = [torch.bincount(row, minlength=50) for row in places]
    assert [int((row > 0).sum()) for row in counts] == [15, 1, 50]
    assert counts[0][counts[0] > 0].sort().values.tolist() == [3] * 10 + [4] * 5


def test_at_a_shift_the_second_half_of_the_classes_takes_the_place_of_the_first(small_task):
    """Of 12 epochs the first 0, 3 or 12 teach classes 0 and 1, the others 2 and 3; without a shift all are taught."""
    variation = Variation({"shift": Choice((0.0, 0.25, 1.0)), "data_share": Choice((0.5,))})
    engine = make(small_task, variation, envs=9, steps_per_epoch=6, horizon=12)
    state, targets = engine.init(SEED), small_task.data.train.targets
    assert state.context.shift.unique().tolist() == [0.0, 0.25, 1.0]
    for epoch in (0, 2, 3, 11):
        batches = draw_batches(engine.config, state.replace(epoch=state.epoch + epoch), engine.data)
        for env, places in enumerate(batches.picks.transpose(0, 1).flatten(1)):
            shift = float(state.context.shift[env])
            old = epoch < 12 * shift
            classes = {0, 1, 2, 3} if not shift else {0, 1} if old else {2, 3}
            there = sum(int(label) in classes for label in targets)
            assert {int(label) for label in targets[places]} <= classes
            assert len(places.unique()) == round(there / 2), (epoch, env)
    with pytest.raises(ConfigError, match=r"has tokens; a shift is for classes of samples$"):
        make(esper.runtime.tasks.synthetic_tokens(), Variation({"shift": Choice((0.5,))}))


def test_noise_of_inputs_is_of_its_level_and_keeps_the_labels(small_task):
    data = with_levels(small_task.data._replace(variation=Variation({"input_noise": Choice((2.0, 0.0, 0.5))})))
    clean, noisy = data.train, data.at_levels
    copies = noisy.inputs.unflatten(0, (3, -1)) - clean.inputs
    assert torch.equal(noisy.targets.unflatten(0, (3, -1)), clean.targets.expand(3, -1))
    assert torch.equal(copies[0], torch.zeros_like(copies[0]))
    torch.testing.assert_close(copies[2], 4 * copies[1], rtol=0, atol=1e-5)
    assert float(copies[2].std()) == pytest.approx(2.0, rel=0.05) and abs(float(copies[2].mean())) < 0.2


def test_tokens_are_replaced_and_mislabelled_at_every_position():
    task = esper.runtime.tasks.synthetic_tokens()
    engine = make(task, Variation({"input_noise": Choice((0.4,)), "label_noise": Choice((0.3,))}), envs=2)
    batches = draw_batches(engine.config, engine.init(SEED), engine.data)
    batch, places = (
        batch_at(engine.structure, batches, 0),
        draw_batches(engine.config, engine.init(SEED), engine.data).picks[0],
    )
    inputs, targets = task.data.train.inputs[places], task.data.train.targets[places]
    count, classes = inputs.numel(), task.data.num_classes
    for given, right, rate in ((batch.inputs, inputs, 0.4 * (1 - 1 / classes)), (batch.targets, targets, 0.3)):
        changed = int((given != right).sum())
        assert abs(changed - rate * count) <= 5 * math.sqrt(rate * (1 - rate) * count)
        assert 0 <= int(given.min()) <= int(given.max()) < classes
    assert not torch.equal(*batch.targets) and bool((batch.inputs[0] != inputs[0]).any(0).all())


def test_native_equals_the_definition(small_task, walk):
    """Every number varies, seeds of all stages: the library reads other samples, labels and rates in every row."""
    numbers = {"batch_size": 8, "steps_per_epoch": 3}
    eager, native = (make(small_task, backend=name, **numbers) for name in ("eager", "native"))
    states, actions = walk(eager, SEED, 6)
    state = native.init(SEED)
    same(leaves(state.context), leaves(states[0].context))
    for action in actions:
        state, _ = native.step(state, action)
    for name in ("host", "seeds"):
        found, expected = state.get(name).params, states[-1].get(name).params
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
    assert torch.equal(state.slots.stage, states[-1].slots.stage)


def test_environments_do_not_depend_on_how_many_there_are(small_task, walk):
    many, few = make(small_task), make(small_task, envs=2)
    states, actions = walk(many, SEED, 4)
    state = few.init(SEED)
    for action in actions:
        state, _ = few.step(state, action[:2])
    same({name: leaf[:2] for name, leaf in leaves(states[-1]).items()}, leaves(state))


def test_resuming_from_bytes_is_bit_equal(small_task, walk):
    engine = make(small_task)
    states, actions = walk(engine, SEED, 5)
    stored = io.BytesIO()
    torch.save(states[2], stored)
    stored.seek(0)
    state = torch.load(stored, weights_only=False)
    for action in actions[2:]:
        state, _ = make(small_task).step(state, action)
    same(leaves(state), leaves(states[-1]))


def test_a_reset_draws_anew_for_those_that_start_anew(small_task):
    engine, fresh = make(small_task), torch.tensor([False, True, False, True, False])
    before, other = engine.init(SEED), engine.init(SEED + 1)
    after = engine.reset(before, fresh, SEED + 1)
    for name in CONTEXT_NUMBERS:
        expected = torch.where(fresh, other.context.get(name), before.context.get(name))
        assert torch.equal(after.context.get(name), expected)
    assert not torch.equal(after.context.price, before.context.price)


def test_a_rate_of_its_own_is_as_if_it_were_set(small_task, walk):
    engine = make(small_task, Variation({"host_lr": Spread(0.5, 2.0)}))
    factors = engine.init(SEED).context.host_lr
    plain = make(small_task, FIXED, host_lr=0.05 * factors)
    states, actions = walk(engine, SEED, 3)
    state = plain.init(SEED)
    for action in actions:
        state, _ = plain.step(state, action)
    torch.testing.assert_close(states[-1].host.params, state.host.params, rtol=0, atol=1e-6)
    assert not torch.equal(*states[-1].signals.train_loss[:2])


def test_what_does_not_vary_keeps_its_bits(small_task, walk):
    """A price of one's own is no part of training; and without variation nothing is drawn from the samples."""
    plain, priced = make(small_task, FIXED), make(small_task, Variation({"price": Spread(1.0, 9.0)}))
    states, actions = walk(plain, SEED, 4)
    state = priced.init(SEED)
    for action in actions:
        state, _ = priced.step(state, action)
    same(leaves(state.exclude("context")), leaves(states[-1].exclude("context")))
    batches = draw_batches(plain.config, states[0], plain.data)
    assert batches.labels is None and batches.inputs is plain.data.train.inputs and batches.order.dim() == 2
    neutral = {name: torch.full((E,), trait.neutral) for name, trait in CONTEXT_NUMBERS.items()}
    same(dict(states[0].context.items()), neutral)


def test_validation_and_test_stay_clean(small_task):
    plain, noisy = (make(small_task, each).data for each in (FIXED, ALL))
    for part in ("validation", "test"):
        assert all(torch.equal(*pair) for pair in zip(getattr(plain, part), getattr(noisy, part), strict=True))


def test_utility_is_paid_at_each_environments_price(small_task):
    """J in reports and the sum of rewards: accuracy less 2 pp times the factor, per e-fold, in plain floats."""
    engine = make(small_task, Variation({"price": Choice((0.0, 1.0, 5.0))}))
    params = build_reward_params(
        {"price": 2.0, "gamma": 1.0, "shaping_weight": 0.0, "rollback_penalty": 0.0}, engine.config
    )
    policy = from_mask("grow", scripted.grow(engine.codec, "conv_light"))
    state, outcome = rollout(engine, policy, SEED, RewardMode.UTILITY, params)
    host, factors = engine.structure.host.num_params, state.context.price.tolist()
    for env, factor in enumerate(factors):
        cost = 2.0 * factor * math.log(1 + float(outcome.added[env]) / host)
        assert float(outcome.utility[env]) == pytest.approx(float(outcome.test_accuracy[env]) - cost, abs=1e-4)
        assert float(outcome.total_reward[env]) == pytest.approx(float(outcome.val_accuracy[env]) - cost, abs=1e-3)
    assert len(set(factors)) > 1 and float(outcome.added.min()) > 0


def test_a_policy_sees_what_a_user_knows_and_nothing_else(small_task):
    engine, plain = make(small_task), make(small_task, FIXED)
    new = [name for name in engine.columns if name not in plain.columns]
    assert new == ["context.host_lr", "context.price", "context.data_share"]
    assert [name for name in engine.columns if name not in new] == plain.columns
    state = engine.init(SEED)
    seen = engine.observe(state)[:, [engine.columns.index(name) for name in new]]
    rate, price, share = state.context.host_lr, state.context.price, state.context.data_share
    expected = torch.tensor(np.stack([rate / (1 + rate), price / (1 + price), share], axis=1))
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"colour": Choice((1.0,))}, "variation.colour: unknown; known are host_lr, price"),
        ({"price": Choice(())}, "expected Choice or Spread of numbers"),
        ({"price": 2.0}, "expected Choice or Spread of numbers"),
        ({"data_share": Spread(0.0, 1.0)}, "expected numbers from 1e-06 to 1"),
        ({"price": Spread(2.0, 1.0)}, "expected the lower number first"),
        ({"label_noise": Choice((0.1, math.nan))}, "expected numbers from 0 to 1"),
        ({"price": Spread(0.0, 1.0, log=True)}, "and above 0 if logarithms are drawn"),
        ({"input_noise": Spread(0.0, 1.0)}, "expected Choice of numbers"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(given, said):
    with pytest.raises(ConfigError) as caught:
        Variation(given)
    assert said in str(caught.value) and "\n" not in str(caught.value)
