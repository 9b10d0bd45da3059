"""Learners of other libraries: gymnasium's checker and wrappers, and MaskablePPO, which is not told of Esper."""

import warnings

import numpy as np
import pytest
import torch

import esper
from esper.simic.environment import EsperEnv

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'esper-growth[gym]'")

from gymnasium.utils.env_checker import check_env  # noqa: E402
from gymnasium.wrappers.vector import RecordEpisodeStatistics  # noqa: E402

from esper.simic.gymnasium_env import EsperSingleEnv, EsperVectorEnv  # noqa: E402

HORIZON = 3


@pytest.fixture
def make(small_task):
    def build(num_envs, seed=0):
        return EsperEnv(esper.make(small_task, num_envs, steps_per_epoch=1, horizon=HORIZON), seed=seed)

    return build


def test_gymnasiums_own_checker_passes_without_a_warning(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(spec|render).*")  # it was made by hand, and draws nothing
        check_env(EsperSingleEnv(make(1)), skip_render_check=True)


def played(env, actions, seed=5):
    steps = [env.reset(seed=seed)]
    return steps + [env.step(action) for action in actions]


def test_the_vector_environment_is_the_torchrl_environment(make):
    batch, plain = EsperVectorEnv(make(4)), make(4, seed=5)
    now = plain.reset()
    observation, info = batch.reset(seed=5)
    for number in range(HORIZON):
        assert batch.observation_space.contains(observation) and observation.dtype == np.float32
        assert np.array_equal(observation, now["observation"].numpy())
        assert np.array_equal(info["action_mask"], batch.action_masks())
        assert np.array_equal(info["action_mask"], now["action_mask"].numpy())
        action = [int(np.flatnonzero(mask)[-1 - number]) for mask in info["action_mask"]]
        observation, reward, terminated, truncated, info = batch.step(action)
        now = plain.step(now.set("action", torch.tensor(action)))["next"]
        assert np.array_equal(reward, now["reward"].squeeze(1).numpy()) and not terminated.any()
        assert truncated.all() == (number == HORIZON - 1)
    assert np.array_equal(info["final_obs"], now["observation"].numpy()) and info["_final_obs"].all()
    assert info["final_info"]["_val_loss"].all() and not info["_val_loss"].any()
    assert np.array_equal(observation, plain.reset()["observation"].numpy())  # the next episode, begun in the same step


def test_seeds_repeat_episodes_and_environments_do_not_depend_on_the_batch(make):
    batch, again, larger = EsperVectorEnv(make(2)), EsperVectorEnv(make(2)), EsperVectorEnv(make(3))
    one, two = played(batch, [[0, 1]] * 4), played(again, [[0, 1]] * 4)
    for mine, theirs in zip(one, two, strict=True):
        assert np.array_equal(mine[0], theirs[0])
    assert np.array_equal(larger.reset(seed=5)[0][:2], one[0][0])
    assert np.array_equal(batch.reset(seed=[5, 6])[0], one[0][0])


def test_numbers_that_are_no_actions_wait_and_are_counted(make):
    batch = EsperVectorEnv(make(2))
    batch.reset(seed=0)
    info = batch.step([-1, 10**6])[4]
    assert info["refused"].tolist() == [1, 1] and info["_refused"].all()


def test_gymnasiums_statistics_see_whole_episodes(make):
    env = RecordEpisodeStatistics(EsperVectorEnv(make(2)))
    env.reset(seed=0)
    rewards = [env.step([0, 0]) for _ in range(HORIZON)]
    episode = rewards[-1][4]["episode"]
    assert episode["l"].tolist() == [HORIZON] * 2
    assert episode["r"] == pytest.approx(sum(step[1] for step in rewards), rel=1e-5)


def test_maskable_ppo_trains_unmodified_and_plays_legal_actions(make):
    contrib = pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed: pip install sb3-contrib")
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

    from esper.simic.sb3_env import EsperVecEnv

    env = EsperVecEnv(make(4))
    assert is_masking_supported(env) and env.env_method("action_masks", indices=[1])[0].shape == (env.action_space.n,)
    with torch.random.fork_rng(devices=[]):
        learner = contrib.MaskablePPO("MlpPolicy", env, n_steps=2 * HORIZON, batch_size=8, n_epochs=2, seed=0)
        before = [parameter.clone() for parameter in learner.policy.parameters()]
        learner.learn(4 * 2 * HORIZON)
        moved = [not torch.equal(a, b) for a, b in zip(before, learner.policy.parameters(), strict=True)]
        assert any(moved) and all(bool(p.isfinite().all()) for p in learner.policy.parameters())
        observation, refused = env.reset(), 0.0
        for _ in range(HORIZON):
            action, _ = learner.predict(observation, action_masks=get_action_masks(env))
            observation, _, done, infos = env.step(action)
            refused += float(env.batch.now["refused"].sum())
    assert refused == 0 and done.all() and all(info["TimeLimit.truncated"] for info in infos)
    assert infos[0]["terminal_observation"].shape == env.observation_space.shape


def test_other_parts_say_what_they_need(make):
    with pytest.raises(ValueError, match="EsperSingleEnv: 2 environments; expected 1"):
        EsperSingleEnv(make(2))
