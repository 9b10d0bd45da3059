"""A known optimum: on a tiny task whose best policy is known in closed form, PPO finds it.

The lens task. A sample is a side, -1 or 1 (its class), and a hardness; the host guesses the side from
side * (power + 1/2 - hardness), where power is 0 but for what seeds in its two slots add: a spark 1, a lens 2. So
validation accuracy is 40 % and 5 points more per unit of power, and a seed's contribution is exactly 5 or 10. A lens
has 50 parameters, which cost rent; a spark has one. Learning rates are 0, gates open as soon as a seed has spent an
epoch in its stage, and only ADVANCE advances: the reward, SHAPED with ``lens_model.PRICES``, depends on the decisions
alone.

An episode has ten decisions; the return is discounted with gamma = 0.995. A seed needs five decisions to become
permanent: GERMINATE, three times ADVANCE, FOSSILIZE. So two of them need all ten, and the best is

    decision  1         2         3        4        5        6        7        8        9         10
              GERMINATE GERMINATE ADVANCE  ADVANCE  ADVANCE  ADVANCE  ADVANCE  ADVANCE  FOSSILIZE FOSSILIZE
    slot      0         1         0        1        0        0        1        1        0         1

with lenses both times. What it earns, part by part (``closed_form``):

- credit 1 per epoch and merged lens (0.1 per point), from its first ADVANCE on; but half for ever for a seed that was
  born before the first validation, as the first one is: 1/2 in epochs 3 to 10 and 1 in epochs 4 to 10;
- the full bonus 0.5 + 0.1 * 10 of each FOSSILIZE, two epochs or more after its seed came to PROBATIONARY;
- at the horizon 3 per fossil and 0.05 per point of the accuracy, 60;
- rent ln(1 + 50/200) / 2 in epoch 1 and ln(1 + 100/200) / 2 from then on, and the cost of each decision;
- shaping, nothing: the potential is 0 at the horizon.

The bonus of a fossil and the terms at the horizon are as great as under any policy. Tempting and wrong
are to wait for the first validation, at the price of the second fossil (89 % of the optimum); to begin with a spark,
which costs next to no rent while it learns (91 %); and to grow sparks only (76 %).
"""

import importlib.util
import math
import random
import sys
from pathlib import Path

import pytest
import torch

import esper
from esper.kasmina.blueprint import preserving
from esper.kasmina.host import Host, plain_block
from esper.kasmina.layout import constant
from esper.kasmina.site import Site
from esper.leyline.config import Precision
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.simic.rewards import RewardMode, build_reward_params, reward
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tolaria.data import Dataset, Part
from esper.utils import rng

_spec = importlib.util.spec_from_file_location("lens_model", Path(__file__).with_name("lens_model.py"))
model = importlib.util.module_from_spec(_spec)
sys.modules["lens_model"] = model
_spec.loader.exec_module(model)

SITE = Site("vector", (3,), 0)
POWER = tuple(points / 5 for points in model.CONTRIBUTION)
ENVS, ROUNDS, ENOUGH = 64, 25, 0.95
SEEDS = range(5)


# The task


def host_block(name, function, site):
    """A block that scales by one trained number."""

    def apply(params, x):
        return params[name].unsqueeze(1) * function(x)

    return plain_block((constant(name, (1,), 1.0),), apply, site, flops=1)


def without_power(x):
    return torch.cat((x, torch.zeros_like(x[..., :1])), dim=-1)


def guess(x):
    side, hardness, power = x.unbind(-1)
    margin = side * (power + 0.5 - hardness)
    return torch.stack((-margin, margin), dim=-1)


def booster(name, power, size):
    """A blueprint that adds the mean of ``size`` parameters to the power."""

    def apply(params, x):
        side, hardness, present = x.unbind(-1)
        return torch.stack((side, hardness, present + params["power"].mean(1, keepdim=True)), dim=-1)

    layout = (constant("power", (size,), power),)
    return preserving(name, frozenset({"vector"}), lambda site: layout, apply, lambda site: 0, power)


def lens_task():
    hardness = torch.tensor([0.0] * 8 + [1.0, 2.0, 3.0, 4.0] + [9.0] * 8)
    side = torch.tensor([-1.0, 1.0] * 10)
    every = Part(torch.stack((side, hardness), dim=1), (side > 0).long())
    host = Host("guess", (2,), 2, (host_block("gain", without_power, SITE), host_block("scale", guess, None)))
    kinds = tuple(booster(*row) for row in zip(("spark", "lens"), POWER, model.SIZE, strict=True))
    settings = {
        "slots": (0, 0),
        "blends": (esper.Blend.LINEAR,),
        "batch_size": 4,
        "steps_per_epoch": 1,
        "val_samples": 20,
        "horizon": model.HORIZON,
        "auto_advance": False,
        "host_lr": 0.0,
        "seed_lr": 0.0,
        "min_training_epochs": 1,
        "min_blending_epochs": 1,
        "blend_epochs": 1,
        "min_gradient_ratio": 0.0,
    }
    return esper.Task("lens", host, kinds, Dataset("lens", every, every, every, 2), settings)


def named(engine, index):
    """An action's number as a move of the model."""
    action = engine.codec.decode(index)
    return model.Move(action.op.name.lower().replace("change_blueprint", "change"), action.slot, action.blueprint)


# What is best


def closed_form():
    def over(first, last, per_epoch):
        return sum(model.GAMMA ** (epoch - 1) * per_epoch for epoch in range(first, last + 1))

    credit = over(3, 10, 0.5) + over(4, 10, 1.0)
    bonus = over(9, 10, 0.5 + 0.1 * 10)
    horizon = over(10, 10, 2 * 3.0 + 0.05 * 60)
    rent = over(1, 1, math.log(1.25) / 2) + over(2, 10, math.log(1.5) / 2)
    costs = over(1, 2, 0.02) + over(3, 10, 0.01)
    return credit + bonus + horizon - rent - costs


@pytest.fixture(scope="module")
def worth():
    return model.solve(max)


@pytest.fixture(scope="module")
def engine():
    return esper.make(lens_task(), 512, backend="eager", precision=Precision.FLOAT64)


def earn(engine, state, action):
    after, event = engine.step(state, action)
    params = build_reward_params(model.PRICES, engine.config)
    return after, reward(RewardMode.SHAPED, params, engine.structure, state, after, event).total


def test_the_closed_form_is_what_dynamic_programming_finds(worth):
    assert worth(model.World()) == pytest.approx(closed_form(), abs=1e-9)


def test_the_tempting_plans_are_wrong(worth):
    optimum = worth(model.World())

    def after(*move):
        world, gained = model.step(model.World(), model.Move(*move))
        return (gained + model.GAMMA * worth(world)) / optimum

    assert after("germinate", 0, model.LENS) == pytest.approx(1.0, abs=1e-9)
    assert after("wait") == pytest.approx(0.893, abs=1e-3)
    assert after("germinate", 0, model.SPARK) == pytest.approx(0.912, abs=1e-3)
    assert model.solve(max, (model.SPARK,))(model.World()) / optimum == pytest.approx(0.755, abs=1e-3)


def test_uniform_legal_play_earns_next_to_nothing(worth):
    """Its exact expectation."""
    mean = model.solve(lambda values: sum(values) / len(values))(model.World())
    assert 0 < mean < 0.07 * worth(model.World())


def test_the_engine_pays_the_optimum_for_the_best_script(worth, engine):
    state, paid = engine.init(7), []
    moves = {named(engine, index): index for index in range(engine.codec.size)}
    for move in model.best_script(worth):
        action = torch.full((engine.config.num_envs,), moves[move])
        state, gained = earn(engine, state, action)
        paid.append(gained)
    returns = model.discounted(paid)
    torch.testing.assert_close(returns, torch.full_like(returns, closed_form()), rtol=0, atol=1e-9)


def test_shaping_changes_no_decision(worth):
    """In every world of many: with shaping each decision is worth what it is without, less the potential (Ng et al.
    1999), though the horizon ends the learner's task. So the best ones are the same."""
    plain, draw, seen = model.solve(max, shaping_weight=0.0), random.Random(7), set()
    for _ in range(200):
        world = model.World()
        while world.epoch < model.HORIZON:
            moves = list(model.moves(world))
            outcomes = [(model.step(world, move, 0.0), model.step(world, move)) for move in moves]
            bare = [gained + model.GAMMA * plain(after) for (after, gained), _ in outcomes]
            paid = [gained + model.GAMMA * worth(after) for _, (after, gained) in outcomes]
            left = model.PRICES["shaping_weight"] * sum(map(model.phi, world.slots))
            assert paid == pytest.approx([value - left for value in bare], abs=1e-9)
            seen.add(world)
            world = outcomes[draw.randrange(len(moves))][0][0]
    assert len(seen) > 500


def test_the_model_is_the_engine(engine):
    """Along random legal walks: the same decisions are legal, and each earns the same."""
    state = engine.init(3)
    moves = [named(engine, index) for index in range(engine.codec.size)]
    worlds, seen = [model.World()] * engine.config.num_envs, set()
    taste = {"wait": 1.0, "germinate": 2.0, "advance": 2.5, "fossilize": 0.5, "cull": 0.0, "change": -0.5}
    preference = torch.tensor([taste[move.op] for move in moves])
    for decision in range(model.HORIZON):
        mask = engine.mask(state)
        for world, row in zip(worlds, mask.tolist(), strict=True):
            assert {move for move, legal in zip(moves, row, strict=True) if legal} == set(model.moves(world))
        keys = rng.fold_in(rng.key(5), torch.arange(len(worlds)), decision)
        action = rng.categorical(keys, torch.where(mask, preference, -torch.inf))
        state, gained = earn(engine, state, action)
        outcomes = [model.step(world, moves[index]) for world, index in zip(worlds, action.tolist(), strict=True)]
        expected = torch.tensor([value for _, value in outcomes], dtype=torch.float64)
        torch.testing.assert_close(gained, expected, rtol=0, atol=1e-9)
        seen |= {(moves[index].op, slot.stage) for index, w in zip(action, worlds, strict=True) for slot in w.slots}
        worlds = [world for world, _ in outcomes]
    stages = {"dormant", "training", "blending", "shadowing", "probation", "fossil", "blocked"}
    assert {stage for _, stage in seen} == stages and {op for op, _ in seen} == set(model.COST)


# What PPO finds


def returns_of(batch):
    """Discounted return of every environment, [E]."""
    rewards = batch["next", "reward"].squeeze(-1)
    return model.discounted(list(rewards.unbind(1)))


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_reaches_the_optimum(seed):
    """Actions are drawn, also in the episodes that count, whose environments were never trained on."""
    engine = esper.make(lens_task(), ENVS)
    env = EsperEnv(engine, RewardMode.SHAPED, build_reward_params(model.PRICES, engine.config))
    policy = build_actor_critic(ActorCriticConfig(), engine.codec, len(engine.columns), seed)
    learner = Learner(policy, PPOConfig(gamma=model.GAMMA, lr=3e-3), ROUNDS, seed)
    collector = make_collector(env, policy)
    batches = iter(collector)

    def collect(number):
        env.next_seed = number
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            return next(batches)

    first = 1000 * seed
    for number in range(ROUNDS):
        learner.update([collect(first + number)])
    mean = returns_of(collect(first + ROUNDS)).mean().item()
    collector.shutdown()
    assert mean >= ENOUGH * closed_form()
