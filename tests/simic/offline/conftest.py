"""Windows of made-up episodes, and policies for them."""

import pytest
import torch
from tensordict import TensorDict

from esper.leyline.actions import Blend, build_codec
from esper.simic.offline.config import OfflineConfig
from esper.simic.offline.learner import OfflineLearner, build_objective
from esper.tamiyo.actor_critic import ActorCriticConfig, build_actor_critic
from esper.tamiyo.interface import Interface
from esper.utils import rng

SIZES = ActorCriticConfig(features=12, lstm=8, head=16, value_scale=3.0)
SEEN = Interface(
    tuple(f"column {n}" for n in range(5)), build_codec(((0, 1), (0,)), (Blend.LINEAR,), ("a", "b"), False)
)


def random_windows(seed, lengths=(6, 4, 1, 6), longest=6):
    """Ragged windows with random masks, in the form of ``Episodes.window``."""
    key, shape = rng.key(seed), (len(lengths), longest)
    valid = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    seen = rng.normal(rng.fold_in(key, 0), (*shape, 5))
    last = rng.normal(rng.fold_in(key, 1), (len(lengths), 1, 5))
    mask = rng.uniform(rng.fold_in(key, 2), (shape[0], longest + 1, SEEN.codec.size)) < 0.5
    mask[..., 0] = True
    action = rng.categorical(
        rng.fold_in(rng.fold_in(key, 3), torch.arange(valid.numel())),
        torch.where(mask[:, :-1].flatten(0, 1), 0.0, -torch.inf),
    ).reshape(shape)
    after = torch.cat((seen[:, 1:], last), 1)
    ends = torch.arange(longest) == torch.tensor(lengths).unsqueeze(1) - 1
    terminated = (ends & (torch.arange(shape[0]) % 2 == 0).unsqueeze(1)).unsqueeze(-1)
    truncated = ends.unsqueeze(-1) & ~terminated
    following = {
        "observation": after,
        "action_mask": mask[:, 1:],
        "reward": rng.normal(rng.fold_in(key, 4), (*shape, 1)),
        "terminated": terminated,
        "truncated": truncated,
        "done": terminated | truncated,
    }
    begins = torch.zeros(*shape, 1, dtype=torch.bool)
    begins[:, 0] = True
    steps = {
        "observation": seen,
        "action_mask": mask[:, :-1],
        "action": action,
        "probability": torch.full(shape, 0.5),
        "episode": torch.arange(shape[0]).unsqueeze(1).expand(shape).clone(),
        "step": torch.arange(longest).expand(shape).clone(),
        "is_init": begins,
        "valid": valid,
        "to_go": rng.normal(rng.fold_in(key, 5), shape),
        "next": following,
    }
    return TensorDict(steps, batch_size=shape)


def make_learner(algorithm, seed=0, **numbers):
    config = OfflineConfig(**({"value_scale": SIZES.value_scale} | numbers))
    policy = build_actor_critic(SIZES, SEEN.codec, len(SEEN.columns), seed)
    objective = build_objective(algorithm, policy, config, SIZES, SEEN, seed)
    return OfflineLearner(policy, objective, config, seed)


@pytest.fixture
def windows():
    return random_windows


@pytest.fixture
def learner():
    return make_learner
