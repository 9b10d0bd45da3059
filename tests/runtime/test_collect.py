"""Rounds in parts: the same bits as in one piece, wherever they are left and taken up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.runtime.collect import from_tensors, make_track, part_of, play, to_tensors
from esper.runtime.interrupt import Watch, torch_draws_from
from esper.runtime.scene import Rules, build_scene
from esper.simic.environment import EsperEnv
from esper.simic.ppo import Learner, make_collector
from esper.simic.ppo_config import PPOConfig
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic

USED = ("observation", "action_mask", "action", "action_log_prob", "recurrent_state_h", "recurrent_state_c", "is_init")
BEHIND = ("observation", "reward", "done", "val_accuracy", "val_loss", "seed_params", "refused", "rolled_back")


@pytest.fixture(scope="module")
def scene():
    return build_scene(Rules(task="synthetic", horizon=8, engine={"steps_per_epoch": 1, "val_samples": 8}), 3, "eager")


@pytest.fixture(scope="module")
def learner(scene):
    codec, columns = scene.engine.codec, scene.engine.columns
    return Learner(build_actor_critic(ActorCriticConfig(8, 8, 8), codec, len(columns), seed=5), PPOConfig(), rounds=3)


@pytest.fixture
def track(scene, learner):
    track = make_track(scene, scene.engine.interface, learner, Watch())
    yield track
    track.collector.shutdown()


def assert_same(one, other):
    assert one.shape == other.shape
    for name in USED:
        assert torch.equal(one[name], other[name]), name
    for name in BEHIND:
        assert torch.equal(one["next", name].nan_to_num(-1), other["next", name].nan_to_num(-1)), name


@given(st.integers(1, 1000))
def test_the_parts_of_an_episode_are_equally_long_and_as_long_as_may_be(horizon):
    part = part_of(horizon)
    assert horizon % part == 0 and part <= max(1, horizon // 4)
    assert all(horizon % longer for longer in range(part + 1, max(1, horizon // 4) + 1))


def test_parts_are_the_whole(scene, learner, track):
    """Against TorchRL's collector of whole episodes, two rounds in a row."""
    env = EsperEnv(scene.engine, scene.mode, scene.params, interface=scene.engine.interface)
    collector = make_collector(env, learner.policy)
    batches = iter(collector)
    for seed in (4, 9):
        env.next_seed = seed
        with torch_draws_from(seed):
            whole = next(batches).clone()
        assert_same(play(track, seed, None, lambda begun: None), whole)
    collector.shutdown()


def test_an_episode_is_taken_up_wherever_it_was_left(track):
    left = []
    whole = play(track, 6, None, left.append)
    assert [begun.played.shape[1] for begun in left] == [2, 4, 6, 8]
    play(track, 7, None, lambda begun: None)  # something else in between
    for begun in left:
        tensors, table = to_tensors(begun, "begun.0.")
        again = from_tensors(tensors | {"policy.x": torch.zeros(1)}, table, "begun.0.", torch.device("cpu"))
        assert_same(play(track, 6, again, lambda begun: None), whole)
    assert_same(play(track, 6, None, lambda begun: None), whole)
