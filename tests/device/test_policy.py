"""Deciding and learning on a device that is not there: a pass over the minibatches asks for its numbers, once."""

import pytest
import torch
from device_fake import THERE, device, engine_there

import esper
from esper.runtime import debug
from esper.simic import ppo, rewards
from esper.simic.environment import EsperEnv
from esper.simic.ppo import SEEN, Learner, PPOConfig, make_collector
from esper.simic.rewards import RewardMode, build_reward_params
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.arms import BanditConfig
from esper.tamiyo.bandit_parts import Viability
from esper.tamiyo.bandits import bandit_policy, build_bandit
from esper.tamiyo.baselines import HeuristicConfig
from esper.tamiyo.interface import translate
from esper.tamiyo.policies import PolicyInput, heuristic_policy, learned_policy, random_policy
from esper.tamiyo.selection import STRATEGIES
from esper.utils import rng

E, T, WIDTH = 4, 3, 8
SIZES = ActorCriticConfig(WIDTH, WIDTH, WIDTH)


@pytest.fixture(scope="module")
def played(small_task):
    """An engine, two of its states with what happened between them, and a batch of episodes; on the CPU."""
    engine = esper.make(small_task, E, backend="eager", horizon=T)
    policy = build_actor_critic(SIZES, engine.codec, len(engine.columns), 0)
    collector = make_collector(EsperEnv(engine), policy)
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(collector))
    before = engine.init(0)
    after, event = engine.step(before, engine.mask(before).long().cumsum(1).argmax(1))
    return engine, (before, after, event), batch


def policy_there(engine):
    """Numbers drawn there; ``Module.to`` would swap tensors in place, which have no values to swap."""
    policy = build_actor_critic(SIZES, engine.codec, len(engine.columns), 0)
    for module in policy.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach().to(THERE)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer.to(THERE))
    return policy


def test_a_decision_and_its_reward_cross_nothing(played):
    engine, (before, after, event), _ = played
    with debug.watching(False), device() as (bring, crossings):
        there = engine_there(engine, bring)
        states, happened, keys = (bring(before), bring(after)), bring(event), bring(rng.split(rng.key(0), E))
        params = bring(build_reward_params({}, engine.config))
        own = there.interface
        learned = learned_policy(policy_there(there), WIDTH, translation=translate(own, own))
        policies = [learned, random_policy(there.codec), heuristic_policy(there.codec)]
        sizes = (there.structure.action_sizes, there.structure.sizes, there.hypers.seed_budget)
        numbers = (BanditConfig(), HeuristicConfig())
        made = {name: build_bandit(name, there.codec, Viability(*sizes), *numbers) for name in STRATEGIES}
        policies += [bandit_policy(name, bandit) for name, bandit in made.items()]
        memories = [policy.init(E) for policy in policies]
        crossings.seen.clear()
        seen = PolicyInput(states[1], there.observe(states[1]), there.mask(states[1]), keys)
        for policy, memory in zip(policies, memories, strict=True):
            _, decision = policy.act(memory, seen)
            assert decision.action.device == THERE and decision.action.shape == (E,), policy.name
            assert all(part is None or part.device == THERE for part in decision.account), policy.name
        earned = rewards.reward(RewardMode.SHAPED, params, there.structure, *states, happened)
        assert earned.total.device == THERE and crossings.seen == []


def test_an_update_asks_once_a_pass(played, monkeypatch):
    """And before the first for what there is to learn. Only the fused optimizer is left out."""
    engine, _, batch = played
    asked, passes = [], 2

    def told(numbers):
        rows, columns = torch.stack(list(numbers)).shape
        asked.append((rows, columns))
        return [[0.0] * columns] * rows

    monkeypatch.setattr(ppo, "told", told)
    monkeypatch.setattr(ppo, "step_if", lambda optimizer, sound: None)
    with debug.watching(False), device() as (bring, crossings):
        crossings.answers = {THERE.type: True}  # while TorchRL's loss is built, it looks at its own coefficients
        learner = Learner(policy_there(engine_there(engine, bring)), PPOConfig(epochs=passes, minibatches=2), rounds=3)
        # that no episode begins within a row is a flag that the host has; that all entropies are finite is not
        crossings.answers = {"cpu": False, THERE.type: True}
        episodes = bring(batch)
        crossings.seen.clear()
        crossings.asked.clear()
        learner.update([episodes])
        assert asked == [(1, 3)] + [(2, len(SEEN))] * passes
        assert crossings.downloads == 0
        assert crossings.asked.count(THERE.type) == 2 * passes, "TorchRL's loss looks at the entropies of a minibatch"
        assert crossings.uploads == passes, "a key for the order of each pass"
