"""Demonstrations: how episodes count, that a policy takes up what it was shown, and that runs with them go on."""

import io
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from esper.runtime import demonstrations
from esper.runtime.interrupt import Stopped
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.rollout import policy_input
from esper.runtime.scene import Rules, build_scene
from esper.runtime.scripts import play, waiting
from esper.runtime.task import Script
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings
from esper.simic import imitation
from esper.simic.environment import EsperEnv
from esper.simic.imitation import TEMPERATURE, Shown, lessons, to_go, weights
from esper.simic.ppo import Learner
from esper.simic.ppo_config import PPOConfig
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.policies import learned_policy

finite = st.floats(-100, 100)


@given(st.lists(finite, min_size=1, max_size=5), finite)
def test_episodes_count_by_a_softmax_of_their_returns(returns, all_of_them):
    """By its closed form; beside an environment in which one return is broken, and one in which all are."""
    column = torch.tensor(returns, dtype=torch.float64)
    parts = [math.exp((value - max(returns)) / TEMPERATURE) for value in returns]
    expected = torch.tensor([part / sum(parts) for part in parts], dtype=torch.float64)
    broken = torch.cat((column[:-1], column.new_tensor([math.nan])))
    found = weights(torch.stack((column, column + all_of_them, broken, column * math.nan), dim=1))
    torch.testing.assert_close(found[:, 0], expected)
    torch.testing.assert_close(found[:, 1], expected, rtol=1e-6, atol=1e-9)
    assert found[-1, 2] == 0 and float(found[:, 2].sum()) == pytest.approx(float(len(returns) > 1))
    assert not found[:, 3].any()


@given(st.lists(finite, min_size=1, max_size=6), st.floats(0, 1))
def test_what_is_to_come_is_discounted(rewards, gamma):
    expected = [sum(gamma**k * reward for k, reward in enumerate(rewards[t:])) for t in range(len(rewards))]
    torch.testing.assert_close(
        to_go(torch.tensor([rewards], dtype=torch.float64), gamma), torch.tensor([expected], dtype=torch.float64)
    )


def test_a_policy_takes_up_the_script_that_pays(monkeypatch):
    """Shown waiting and one script that ends higher, it does in environments of other seeds what the script does."""
    monkeypatch.setattr(imitation, "PASSES", 30)
    scene = build_scene(Rules(task="digits", engine={"val_samples": 60, "steps_per_epoch": 4}, horizon=12), 6, "auto")
    engine, script = scene.engine, Script("conv8x2")
    policy = build_actor_critic(ActorCriticConfig(32, 32, 32, 20.0), engine.codec, len(engine.columns), seed=3)
    learner = Learner(policy, PPOConfig(lr=3e-3, value_scale=20.0), rounds=1, seed=3)
    env = EsperEnv(engine, scene.mode, scene.params)
    shown = [demonstrations.show(env, each(engine), 20, 32) for each in (waiting, lambda engine: play(engine, script))]
    assert (shown[1].reward.sum(1) > shown[0].reward.sum(1) + TEMPERATURE).all()
    line = demonstrations.demonstrate([(env, scene.task._replace(scripts=(script,)))], learner, (20, 22), 32)
    assert line.startswith("shown 24 episodes") and learner.done == 0
    taken, wanted = learned_policy(policy, 32, True), play(engine, script)
    state, memory, agreed = engine.init(1), taken.init(6), []
    for _ in range(engine.config.horizon):
        seen = policy_input(engine, state, state.key)
        memory, decision = taken.act(memory, seen)
        action = wanted.act(None, seen)[1].action
        agreed.append(decision.action == action)
        state, _ = engine.step(state, action)
    assert float(torch.stack(agreed).float().mean()) > 0.9


class Interrupting(io.StringIO):
    """Asks its own process to stop when it is told of demonstrations."""

    def write(self, text):
        if text.startswith("shown"):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


def test_a_run_that_was_stopped_after_its_demonstrations_ends_in_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(imitation, "PASSES", 3)
    numbers = {"engine": {"steps_per_epoch": 1}, "features": 8, "lstm": 8, "head": 8, "horizon": 4, "eval_envs": 0}
    asked = TrainSettings(num_envs=4, rounds=1, demonstrations=1, out=str(tmp_path / "whole"), **numbers)
    told = io.StringIO()
    train(asked, told)
    assert told.getvalue().startswith("shown 8 episodes of scripts")
    part = replace(asked, out=str(tmp_path / "part"))
    with pytest.raises(Stopped):
        train(part, Interrupting())
    train(replace(part, resume="auto"), io.StringIO())
    one, other = load_run(tmp_path / "whole"), load_run(tmp_path / "part")
    assert one.table["done"] == other.table["done"] == 1
    assert all(torch.equal(one.tensors[name], value) for name, value in other.tensors.items())


@pytest.mark.parametrize("count", [1, 3, 30])
def test_episodes_that_hardly_count_are_left_out_and_broken_ones_teach_nothing(count):
    """Of deciders that end alike all are kept; of one that is better by far, and of broken ones, it alone, or none."""

    def episodes(*returns):
        shape = (1, 2)
        data = {"observation": torch.zeros(*shape, 3), "action": torch.zeros(shape, dtype=torch.int64)}
        return [Shown(TensorDict(data, shape), torch.tensor([[0.0, value]])) for value in returns]

    alike = lessons(episodes(*[1.0] * count), 0.5)
    assert len(alike) == count and torch.allclose(alike["weight"], torch.full((count, 2), 1 / count))
    assert alike["value_target"][0].tolist() == [0.5, 1.0]
    best = lessons(episodes(*[0.0] * count, 100.0), 0.5)
    assert best["value_target"].tolist() == [[50.0, 100.0]]
    assert len(lessons(episodes(*[math.nan] * count), 0.5)) == 0


def test_a_task_without_scripts_is_refused(tmp_path):
    asked = TrainSettings(task="synthetic", demonstrations=1, out=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="--demonstrations: task 'synthetic' names no script"):
        train(asked, io.StringIO())
    assert not (tmp_path / "none").exists()
