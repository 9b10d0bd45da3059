"""The policy that grows by a score: its rule in plain Python, and that it sees no other environment."""

import math

import pytest
import torch

import esper
from esper.leyline.actions import Blend, Op
from esper.leyline.environments import select
from esper.runtime.policies import gradient_of
from esper.runtime.scene import Rules, Scene
from esper.runtime.tasks import named
from esper.simic.rewards import RewardMode, build_reward_params
from esper.tamiyo.gradient import gradient_policy
from esper.tamiyo.policies import PolicyInput
from esper.tolaria.slopes import birth_norms
from esper.utils import rng

ENVS = 6


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, ENVS, backend="eager")


def input_of(engine, state):
    return PolicyInput(state, engine.observe(state), engine.mask(state), state.key)


def plain_choice(codec, legal, scores):
    """The rule for one environment: ``legal`` a set of indices, ``scores`` by index."""
    for op in (Op.FOSSILIZE, Op.ADVANCE):
        for index in sorted(legal):
            if codec.actions[index].op is op:
                return index
    new = [i for i in sorted(legal) if codec.actions[i].op is Op.GERMINATE and codec.actions[i].blend == Blend.SIGMOID]
    sound = [i for i in new if math.isfinite(scores[i])]
    return max(sound, key=lambda i: (scores[i], -i)) if sound else 0


def masked(engine, seed):
    """What is seen, with random legal actions, of which WAIT is always one."""
    codec = engine.codec
    drawn = rng.uniform(rng.key(seed), (ENVS, codec.size))
    rare = torch.isin(codec.op, torch.tensor([int(Op.FOSSILIZE), int(Op.ADVANCE)]))
    return PolicyInput(engine.init(0), None, (drawn < torch.where(rare, 0.1, 0.3)) | (codec.op == int(Op.WAIT)), None)


def test_the_rule(engine):
    """On random masks, with scores that tie and are not finite."""
    codec, chosen = engine.codec, set()
    table = (rng.uniform(rng.key(1), (ENVS, codec.size)) * 4).floor()
    table[0] = math.nan
    table[1, ::2], table[2, 1::3] = math.inf, -math.inf
    policy = gradient_policy(codec, lambda state, index: table[:, index])
    for seed in range(30):
        seen = masked(engine, seed)
        memory, decision = policy.act(policy.init(ENVS), seen)
        for env, action in enumerate(decision.action.tolist()):
            legal = set(seen.mask[env].nonzero().flatten().tolist())
            assert action in legal and action == plain_choice(codec, legal, table[env].tolist())
            chosen.add(codec.actions[action].op)
    assert memory is None and chosen == {Op.WAIT, Op.GERMINATE, Op.ADVANCE, Op.FOSSILIZE}


def test_it_asks_only_about_what_could_be_grown(engine):
    asked = []

    def promise(state, index):
        asked.append(index)
        return torch.ones(state.batch_size[0])

    seen, codec = masked(engine, 7), engine.codec
    gradient_policy(codec, promise).act(None, seen)
    ending = (seen.mask & ((codec.op == int(Op.FOSSILIZE)) | (codec.op == int(Op.ADVANCE)))).any(1)
    wanted = (codec.op == int(Op.GERMINATE)) & (codec.blend == int(Blend.SIGMOID)) & seen.mask[~ending].any(0)
    assert asked == wanted.nonzero().flatten().tolist() and 0 < len(asked) < 21


def test_by_the_gradient_it_grows_the_largest_norm_wherever_it_looks_from(engine, walk):
    state = walk(engine, 2, 1)[0][-1]
    scene = Scene(Rules(), engine, RewardMode.SHAPED, build_reward_params({}, engine.config), named("digits"))
    policy, samples = gradient_of(scene), (engine.data.validation.inputs, engine.data.validation.targets)
    action = policy.act(None, input_of(engine, state))[1].action
    env = int((engine.codec.op[action] == int(Op.GERMINATE)).nonzero()[-1])
    alone = select(state, torch.tensor([env]))
    assert policy.act(None, input_of(engine, alone))[1].action.tolist() == [action[env].item()]
    legal = engine.mask(alone)[0]
    norms = {
        index: birth_norms(engine.structure, engine.hypers, alone, each, samples).item()
        for index, each in enumerate(engine.codec.actions)
        if each.op is Op.GERMINATE and each.blend == Blend.SIGMOID and legal[index]
    }
    assert norms[int(action[env])] >= max(norms.values()) * (1 - 1e-5)
