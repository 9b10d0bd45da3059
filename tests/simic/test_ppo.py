"""The learner's arithmetic against its definitions."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.modules import set_recurrent_mode

import esper
from esper.leyline.config import ConfigError
from esper.runtime.interrupt import torch_draws_from
from esper.simic.advantages import KEPT, advantages, normalise, values_of
from esper.simic.chunks import as_whole
from esper.simic.environment import EsperEnv
from esper.simic.ppo import SEEN, Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.utils import rng


@pytest.fixture(scope="module")
def rollout(small_task):
    env = EsperEnv(esper.make(small_task, 6, horizon=5))
    policy = build_actor_critic(ActorCriticConfig(16, 8, 16), env.engine.codec, len(env.engine.columns), seed=3)
    collector = make_collector(env, policy)
    with torch_draws_from(5):
        batch = next(iter(collector))
    yield policy, batch
    collector.shutdown()


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=30)
def test_advantages_equal_their_quadratic_definition(seed, gamma, lam):
    envs, length = 3, 7
    values = rng.normal(rng.key(seed), (envs, length + 1, 1), torch.float64)
    rewards = rng.normal(rng.key(seed + 1), (envs, length, 1), torch.float64)
    done = rng.uniform(rng.key(seed + 2), (envs, length, 1)) < 0.2
    terminated = done & (rng.uniform(rng.key(seed + 3), (envs, length, 1)) < 0.5)
    config = PPOConfig(gamma=gamma, gae_lambda=lam)
    out = advantages(config, values, rewards, done, terminated)
    for env in range(envs):
        for start in range(length):
            total, weight = 0.0, 1.0
            for t in range(start, length):
                bootstrap = 0.0 if terminated[env, t] else gamma * values[env, t + 1].item()
                total += weight * (rewards[env, t].item() + bootstrap - values[env, t].item())
                weight *= gamma * lam
                if done[env, t]:
                    break
            assert out["advantage"][env, start].item() == pytest.approx(total, abs=1e-9)
            assert out["value_target"][env, start].item() == pytest.approx(total + values[env, start].item(), abs=1e-9)


def test_values_along_the_episode_are_those_of_acting_step_by_step(rollout):
    """And the last one is the successor's, with the memory that the episode has built up."""
    policy, batch = rollout
    values = values_of(policy, batch)
    assert values.shape == (6, 6, 1)
    memory = {name: torch.zeros(6, 1, 8) for name in ("recurrent_state_h", "recurrent_state_c")}
    operator = policy.get_value_operator()
    for t in range(6):
        source = batch[:, t] if t < 5 else batch[:, 4]["next"]
        td = (
            source.select("observation", "action_mask")
            .set("is_init", torch.zeros(6, 1, dtype=torch.bool))
            .update(memory)
        )
        with torch.no_grad():
            out = operator(td)
        torch.testing.assert_close(out["state_value"], values[:, t], rtol=1e-5, atol=1e-5)
        memory = {name: out["next", name] for name in memory}


def test_the_loss_equals_a_rendering_in_numpy(rollout):
    policy, batch = rollout
    learner = Learner(policy, PPOConfig(), rounds=3)
    learner.loss.entropy_coeff.fill_(0.03)
    shape = tuple(batch["next", "reward"].shape)
    advantage, target = (rng.normal(rng.key(k), shape) for k in (8, 9))
    old = batch["action_log_prob"] + 0.4 * rng.normal(rng.key(10), shape[:2])
    data = as_whole(batch.select(*KEPT)).set("advantage", advantage).set("value_target", target)
    data = data.set("action_log_prob", old)
    with set_recurrent_mode(True):
        out = learner.loss(data.clone())
        heads = policy.get_policy_operator()
        logits = heads(data.clone())["logits"].detach().double().numpy()
        values = policy.get_value_operator()(data.clone())["state_value"].detach().double().numpy()
    legal = batch["action_mask"].numpy()
    scores = np.where(legal, logits, -np.inf)
    log_p = (
        scores
        - np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - scores.max(-1, keepdims=True)
    )
    chosen = np.take_along_axis(log_p, batch["action"].numpy()[..., None], -1)[..., 0]
    ratio = np.exp(chosen - old.double().numpy())
    a = advantage.double().numpy()[..., 0]
    objective = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a).mean()
    entropy = -np.where(legal, np.exp(log_p) * np.where(legal, log_p, 0), 0).sum(-1).mean()
    critic = 0.5 * ((values - target.double().numpy()) ** 2).mean()
    assert ((ratio < 0.8) | (ratio > 1.2)).any(), "clipping must act"
    assert out["loss_objective"].item() == pytest.approx(objective, abs=1e-5)
    assert out["loss_critic"].item() == pytest.approx(critic, abs=1e-5)
    assert out["loss_entropy"].item() == pytest.approx(-0.03 * entropy, abs=1e-5)


def test_an_update_changes_the_policy_and_stops_when_it_has_moved_too_far(rollout):
    policy, batch = rollout
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    learner = Learner(policy, PPOConfig(target_kl=1e-9, epochs=8, lr=3e-3, warmup=0.0), rounds=10)
    assert learner.update([batch])["epochs"] < 8
    assert any(not torch.equal(value, before[name]) for name, value in policy.state_dict().items())


BOMBS = (("next", "reward"), "observation", ("next", "observation"), "action_log_prob")


@pytest.mark.parametrize("broken", [1, 3, 5])
@pytest.mark.parametrize("bomb", [float("nan"), float("inf")])
def test_an_update_with_broken_episodes_is_the_update_without_them(rollout, broken, bomb):
    """Of six, to the bit; wherever the number that is not finite stands, and in several tasks."""
    policy, batch = rollout
    poisoned, alone = batch.clone(), batch[broken:]
    for env in range(broken):
        place = BOMBS[env % len(BOMBS)]
        poisoned[place].view(6, -1)[env, env] = bomb
    ends = []
    for episodes in (poisoned, alone):
        learner = Learner(deepcopy(policy), PPOConfig(minibatches=2, epochs=2), rounds=2, seed=4)
        told = learner.update([episodes, batch])
        ends.append({name: value.clone() for name, value in learner.policy.state_dict().items()})
        assert told["left_out"] == pytest.approx(broken / 12 if episodes is poisoned else 0)
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_nothing_changes_where_every_episode_is_broken(rollout):
    policy, batch = rollout
    poisoned = batch.clone()
    poisoned["next", "reward"][:, 0] = torch.nan
    learner = Learner(deepcopy(policy), PPOConfig(), rounds=2)
    with pytest.raises(ConfigError, match="round 1: in no episode are all numbers finite"):
        learner.update([batch, poisoned])
    for name, value in learner.policy.state_dict().items():
        assert torch.equal(value, policy.state_dict()[name])


def test_steps_that_are_not_finite_teach_nothing_and_disturb_no_other():
    """A NaN reward spoils its environment's steps up to it; all others are normalised as if those did not exist."""
    shape = (3, 5, 1)
    values, rewards = rng.normal(rng.key(1), (3, 6, 1), torch.float64), rng.normal(rng.key(2), shape, torch.float64)
    done = torch.zeros(shape, dtype=torch.bool)
    done[:, -1] = True
    rewards[1, 2] = torch.nan
    estimate = advantages(PPOConfig(), values, rewards, done, torch.zeros_like(done))
    out = normalise(estimate, values[:, :-1])
    spoilt = torch.zeros(shape, dtype=torch.bool)
    spoilt[1, :3] = True
    assert torch.equal(~torch.isfinite(estimate["advantage"]), spoilt)
    sound = estimate["advantage"][~spoilt].numpy()
    np.testing.assert_allclose(out["advantage"][~spoilt], (sound - sound.mean()) / sound.std(ddof=1), rtol=1e-12)
    assert (out["advantage"][spoilt] == 0).all()
    assert torch.equal(out["value_target"][spoilt], values[:, :-1][spoilt])
    assert torch.equal(out["value_target"][~spoilt], estimate["value_target"][~spoilt])


def test_gradients_of_one_minibatch_do_not_leak_into_the_next(rollout):
    """At rate 0 the parameters stand still, so that every pass over the same whole batch has the same gradient."""
    policy, batch = rollout
    config = PPOConfig(lr=0.0, minibatches=1, epochs=3, target_kl=1e9)
    norms = [
        Learner(policy, PPOConfig(**vars(config) | {"epochs": k}), 1).update([batch])["gradient_norm"] for k in (1, 3)
    ]
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_nothing_counts_beyond_the_horizon(rollout):
    """The last decision's target is its reward alone, whatever the critic says of the state behind it."""
    policy, batch = rollout
    learner = Learner(policy, PPOConfig(lr=0.0, epochs=1), 1)
    seen = []
    learner._minibatch = lambda parts, steps: seen.extend(parts) or torch.zeros(len(SEEN))
    learner.update([batch])
    target = torch.cat([part["value_target"] for part in seen])[:, -1]
    expected = batch["next", "reward"][:, -1]
    assert torch.allclose(target.flatten().sort().values, expected.flatten().sort().values, atol=1e-5)


def test_two_tasks_weigh_as_their_decisions(rollout):
    """The same episodes twice, as two tasks, teach what they teach once."""
    policy, batch = rollout
    config = PPOConfig(lr=0.0, minibatches=1, epochs=1)
    once = Learner(policy, config, 1).update([batch])
    twice = Learner(policy, config, 1).update([batch, batch])
    for name in ("policy_loss", "value_loss", "entropy", "gradient_norm", "explained_variance"):
        assert twice[name] == pytest.approx(once[name], rel=1e-4, abs=1e-7)
