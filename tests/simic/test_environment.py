"""EsperEnv as TorchRL sees it."""

import pytest
import torch
from torchrl.envs import check_env_specs

import esper
from esper.leyline.actions import Action, Op
from esper.leyline.codes import Refusal
from esper.leyline.stages import Stage
from esper.runtime.rollout import rollout
from esper.runtime.tasks import TASKS
from esper.simic.environment import METRICS, EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.simic.rewards import DEFAULT_REWARD, build_reward_params, reward
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.policies import from_mask
from esper.tamiyo.scripted import wait


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
    expected = reward(DEFAULT_REWARD, build_reward_params({}, engine.config), engine.structure, before, state, event)
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


@pytest.mark.parametrize("far", [-1, -135, 0, 1, 2**40])
def test_a_number_that_is_no_action_is_refused_with_the_engines_code(env, far):
    """Below 0, as far below as there are actions, one past the last, and anything beyond."""
    size = env.interface.codec.size
    number = far if far < 0 else size + far
    out = env.step(env.reset().set("action", torch.full((3,), number)))["next"]
    _, event = env.engine.step(env.engine.init(0), torch.full((3,), number))
    assert out["refusal"].squeeze(1).tolist() == event.result.refusal.tolist() == [int(Refusal.OUT_OF_RANGE)] * 3
    assert bool((env.state.slots.stage == int(Stage.DORMANT)).all())


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_torchs_default_dtype_changes_no_spec_and_no_bit(small_task, double_by_default):
    environment = EsperEnv(esper.make(small_task, 2, steps_per_epoch=1))
    with torch.random.fork_rng(devices=[]):
        check_env_specs(environment)
    wait = torch.zeros(2, dtype=torch.int64)
    wide = environment.step(environment.reset().set("action", wait))["next"]
    torch.set_default_dtype(torch.float32)
    narrow = EsperEnv(esper.make(small_task, 2, steps_per_epoch=1), seed=environment.next_seed - 1)
    other = narrow.step(narrow.reset().set("action", wait))["next"]
    assert all(torch.equal(other[key], value) for key, value in wide.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_learner_takes_what_the_environment_gives_under_any_default_dtype(small_task, double_by_default, dtype):
    torch.set_default_dtype(dtype)
    environment = EsperEnv(esper.make(small_task, 4, steps_per_epoch=1, horizon=2))
    interface = environment.interface
    policy = build_actor_critic(ActorCriticConfig(8, 8), interface.codec, len(interface.columns), 0)
    with torch.random.fork_rng(devices=[]):
        collector = make_collector(environment, policy)
        row = Learner(policy, PPOConfig(epochs=1), 1).update([next(iter(collector))])
        collector.shutdown()
    assert row["skipped"] == 0 and row["epochs"] == 1


def test_accuracy_and_loss_are_no_numbers_before_an_epoch_counted(small_task):
    first = EsperEnv(esper.make(small_task, 2)).reset()
    assert bool(first["val_accuracy"].isnan().all()) and bool(first["val_loss"].isnan().all())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("backend", ["native", "eager"])
def test_a_step_is_the_same_under_every_grad_mode(small_task, mode, backend):
    idle = torch.zeros(2, dtype=torch.int64)
    engine = esper.make(small_task, 2, backend=backend, steps_per_epoch=1)
    plain = engine.step(engine.init(0), idle)[0]
    with mode():
        other = engine.step(engine.init(0), idle)[0]
        mixed = engine.step(plain, idle)[0]
    assert all(torch.equal(other.get(key), leaf) for key, leaf in plain.items(True, True))
    assert torch.equal(mixed.signals.val_loss, engine.step(plain, idle)[0].signals.val_loss)


@pytest.mark.parametrize("differentiable", [False, True])
def test_hyperparameters_and_rewards_that_ask_for_gradients_leave_no_graph_behind(small_task, differentiable):
    rate = torch.full((2,), 0.05, requires_grad=True)
    engine = esper.make(small_task, 2, steps_per_epoch=1, host_lr=rate, differentiable=differentiable)
    params = build_reward_params({"rent_weight": torch.tensor(0.1, requires_grad=True)}, engine.config)
    environment = EsperEnv(engine, params=params)
    for _ in range(2):
        out = environment.step(environment.reset().set("action", torch.zeros(2, dtype=torch.int64)))["next"]
    trace = rollout(engine, from_mask("wait", wait(engine.codec)), 0, params=params)[1].trace
    leaves = [*environment.state.values(True, True), *out.values(True, True), trace.terms, trace.loss]
    assert not any(leaf.requires_grad for leaf in leaves)
