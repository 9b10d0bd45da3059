"""Numbers that are not finite, anywhere and in any share of the environments: the others keep their bits.

Small here; ``pytest -m large tests/laws/test_bombs.py`` drops many more.
"""

from dataclasses import replace

import pytest
import torch

import esper
from esper.leyline.config import SampleOrder
from esper.leyline.stages import ACTIVE
from esper.leyline.state import lock
from esper.runtime import debug
from esper.runtime.rollout import policy_input
from esper.simic.rewards import DEFAULT_REWARD, build_reward_params, reward
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.policies import learned_policy
from esper.tezzeret.native.library import library
from esper.tolaria.synthetic import synthetic
from esper.tolaria.training import sample_indices
from esper.utils import rng
from esper.utils.fingerprint import row_fingerprints, tables_of

PLACES = ("host parameters", "host moments", "statistics", "seed parameters", "data", "signals")
"""Signals are what observations and rewards are made of."""

SIZES, SEED, LENGTH, AFTER = ActorCriticConfig(features=16, lstm=16, head=8), 5, 9, 3

pytestmark = pytest.mark.skipif(library() is None, reason="needs the native library")


@pytest.fixture(scope="module", autouse=True)
def unwatched():
    with debug.watching(False):
        yield


class Played:
    """An episode without bombs, and what is needed to take it up at any of its steps."""

    def __init__(self, task, num_envs):
        data = synthetic((1, 8, 8), num_classes=4, num_train=40 * 16 * num_envs, num_val=30, noise=0.7)
        settings = {"sample_order": SampleOrder.INDEPENDENT, "deterministic": "strict"}
        self.engine = esper.make(task._replace(data=data), num_envs, backend="native", **settings)
        self.params = build_reward_params({}, self.engine.config, torch.device("cpu"))
        network = build_actor_critic(SIZES, self.engine.codec, len(self.engine.columns), seed=2)
        self.policy = learned_policy(network, SIZES.lstm, strict=True)
        self.states, self.memories = [self.engine.init(SEED)], [self.policy.init(num_envs)]
        self.rows = []
        for step in range(LENGTH + AFTER):
            state, memory, row = self.step(self.engine, self.states[-1], self.memories[-1], step)
            self.states.append(state)
            self.memories.append(memory)
            self.rows.append(row)

    def step(self, engine, state, memory, number):
        keys = rng.fold_in(state.key, 77, number)
        memory, decision = self.policy.act(memory, policy_input(engine, state, keys))
        after, event = engine.step(state, decision.action)
        earned = reward(DEFAULT_REWARD, self.params, engine.structure, state, after, event).total
        told = {"action": decision.action, "observation": engine.observe(after), "reward": earned}
        return after, memory, row_fingerprints(tables_of(after) | told)


def bombed(state, place, victims, value):
    """A state with a value in one number of every victim; of seeds, in the first of an active slot."""

    def hit(leaf):
        leaf = leaf.clone()
        leaf.flatten(1)[victims, 0] = value
        return leaf

    if place == "host parameters":
        return state.replace(host=state.host.replace(params=hit(state.host.params)))
    if place == "host moments":
        return state.replace(host=state.host.replace(moments=hit(state.host.moments)))
    if place == "statistics":
        return state.replace(buffers=hit(state.buffers))
    if place == "seed parameters":
        return state.replace(
            seeds=state.seeds.replace(
                params=torch.full_like(state.seeds.params, value).where(victims.unsqueeze(1), state.seeds.params)
            )
        )
    signals = state.signals
    return state.replace(signals=signals.replace(val_accuracy=hit(signals.val_accuracy.unsqueeze(1)).squeeze(1)))


def with_bad_data(engine, state, victims, value):
    """The engine with a sample of each victim's next epoch broken that nobody else draws in it."""
    drawn = sample_indices(engine.config, state, engine.data.train.size).flatten(1)
    inputs, others = engine.data.train.inputs.clone(), set(drawn[~victims].flatten().tolist())
    for rows in drawn[victims].tolist():
        inputs[next(row for row in rows if row not in others), 0, 1, 1] = value
    return replace(engine, data=engine.data._replace(train=engine.data.train._replace(inputs=inputs)))


def assert_contained(played, place, count, draw):
    """Bombs in ``count`` environments at a random step; from there on, every other one is as it was without them."""
    engine, num_envs = played.engine, played.engine.config.num_envs
    key = rng.fold_in(rng.key(draw), PLACES.index(place), count)
    at = int(rng.uniform(rng.fold_in(key, 0), ()) * LENGTH)
    value = (torch.nan, torch.inf, -torch.inf)[int(rng.uniform(rng.fold_in(key, 1), ()) * 3)]
    victims = torch.zeros(num_envs, dtype=torch.bool)
    victims[rng.permutation(rng.fold_in(key, 2), num_envs)[:count]] = True
    state, memory = played.states[at], played.memories[at]
    first = with_bad_data(engine, state, victims, value) if place == "data" else engine
    state = state if place == "data" else lock(bombed(state, place, victims, value))
    harmed = False
    for number in range(at, at + AFTER):
        state, memory, rows = played.step(first if number == at else engine, state, memory, number)
        for env, (ours, clean) in enumerate(zip(rows, played.rows[number], strict=True)):
            assert victims[env] or ours == clean, f"environment {env}, step {number}, {place} of {count}"
            harmed |= bool(victims[env]) and ours != clean
    return harmed


@pytest.fixture(scope="module")
def played(small_task):
    found = Played(small_task, 10)
    stages = torch.stack([state.slots.stage for state in found.states])
    assert torch.isin(stages, torch.tensor([int(stage) for stage in ACTIVE])).any()
    return found


@pytest.mark.parametrize("place", PLACES)
def test_bombs_stay_where_they_fell(played, place):
    assert any([assert_contained(played, place, count, draw) for count in (1, 5) for draw in (1, 2)])


@pytest.mark.large
@pytest.mark.parametrize("place", PLACES)
def test_many_bombs_stay_where_they_fell(small_task, place):
    """1, 10 and 50 % of a hundred environments, at random steps."""
    many = Played(small_task, 100)
    assert any([assert_contained(many, place, count, draw) for count in (1, 10, 50) for draw in range(6)])
