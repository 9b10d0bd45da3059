"""EsperEnv as TorchRL sees it."""

import pytest
import torch
from torchrl.envs import check_env_specs

import esper
from esper.leyline.actions import Action, Op
from esper.runtime.tasks import TASKS
from esper.simic.environment import METRICS, EsperEnv
from esper.simic.rewards import RewardMode, build_reward_params, reward


@pytest.fixture
def env(small_task):
    return EsperEnv(esper.make(small_task, 3))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_envs", [1, 2, 64])
def test_specs_hold_for_every_preset(task, num_envs):
    """Random actions ignore the mask: illegal ones are defined."""
    environment = EsperEnv(esper.make(task, num_envs, steps_per_epoch=1, batch_size=4))
    with torch.random.fork_rng(devices=[]):
        check_env_specs(environment)


def test_a_step_is_the_engines_step_and_its_reward(env):
    first, engine = env.reset(), env.engine
    action = torch.tensor(
        [engine.codec.encode(Action(Op.GERMINATE, 0, 2, 1)), 0, engine.codec.encode(Action(Op.CULL, 1))]
    )
    before = env.state
    out = env.step(first.set("action", action))["next"]
    state, event = engine.step(before, action)
    assert all(torch.equal(leaf, env.state.get(key)) for key, leaf in state.items(True, True))
    assert torch.equal(out["observation"], engine.observe(state)) and torch.equal(
        out["action_mask"], engine.mask(state)
    )
    expected = reward(RewardMode.SHAPED, build_reward_params({}, engine.config), engine.structure, before, state, event)
    torch.testing.assert_close(out["reward"].squeeze(1), expected.total.float())
    assert out["refused"].squeeze(1).tolist() == [0, 0, 1]
    assert set(METRICS) <= set(out.keys())


def test_only_small_things_are_written(env):
    """The engine's state stays in the shell: a step's TensorDict is a few kilobytes per environment."""
    out = env.rollout(2, lambda td: td.set("action", torch.zeros(3, dtype=torch.int64)))
    step = out[:, -1]
    size = sum(leaf.numel() * leaf.element_size() for leaf in step.values(True, True))
    assert size / 3 < 8_000
    assert sum(leaf.numel() * leaf.element_size() for leaf in env.state.values(True, True)) / 3 > 30_000


def test_the_horizon_truncates_and_does_not_terminate(env):
    wait = torch.zeros(3, dtype=torch.int64)
    td = env.reset()
    for decision in range(1, 13):
        td = env.step(td.set("action", wait))["next"]
        over = decision == 12
        assert bool(td["truncated"].all()) == bool(td["done"].all()) == over
        assert not td["terminated"].any() and not (td["done"].any() and not over)


def test_partial_reset_renews_only_what_it_is_asked_to(env):
    td = env.reset()
    td = env.step(td.set("action", torch.zeros(3, dtype=torch.int64)))["next"]
    before = env.state
    seed = env.next_seed
    asked = td.clone().set("_reset", torch.tensor([[False], [True], [False]]))
    env.reset(asked)
    start = env.engine.init(seed)
    assert env.state.epoch.tolist() == [1, 0, 1]
    assert torch.equal(env.state.host.params[1], start.host.params[1])
    assert torch.equal(env.state.host.params[0], before.host.params[0])


def test_state_can_be_read_and_set(env):
    td = env.reset().set("action", torch.zeros(3, dtype=torch.int64))
    kept = env.state
    one = env.step(td.clone())["next"]
    env.state = kept
    again = env.step(td.clone())["next"]
    assert torch.equal(one["observation"], again["observation"]) and torch.equal(one["reward"], again["reward"])
