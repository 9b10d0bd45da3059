"""A dataset of recorded episodes as learners take it: what is refused, how it is parted, and what is to come."""

import numpy as np
import pytest
import torch

from esper.simic.episodes.columns import columns_for
from esper.simic.episodes.dataset import Episodes
from esper.simic.episodes.shards import EpisodesError
from esper.simic.episodes.writer import write_episodes
from esper.simic.offline.windows import offline_data
from esper.utils import rng

LENGTHS = (4, 2, 5, 3, 1, 5)


def write(folder, change=lambda steps, ends: None):
    """A dataset of six episodes of different lengths, after a change to its columns."""
    count, key = sum(LENGTHS), rng.key(3)
    mask = (rng.uniform(rng.fold_in(key, 0), (count, 4)) < 0.6).numpy()
    mask[:, 0] = True
    inside = np.concatenate([np.arange(length) for length in LENGTHS])
    last = np.concatenate([np.arange(length) == length - 1 for length in LENGTHS])
    steps = {
        "observation": rng.normal(rng.fold_in(key, 1), (count, 3)).numpy(),
        "action_mask": mask,
        "action": mask.argmax(1) * 0 + np.array([row.nonzero()[0][-1] for row in mask]),
        "probability": np.full(count, 0.5, np.float32),
        "policy": np.zeros(count, np.int64),
        "episode": np.repeat(np.arange(len(LENGTHS)), LENGTHS),
        "step": inside,
        "reward": rng.normal(rng.fold_in(key, 2), (count,)).numpy(),
        "terms": np.zeros((count, 1), np.float32),
        "refusal": np.zeros(count, np.int64),
        "val_accuracy": np.zeros(count, np.float32),
        "val_loss": np.zeros(count, np.float32),
        "seed_params": np.zeros(count, np.float32),
        "terminated": np.zeros(count, bool),
        "truncated": last,
    }
    ends = {
        "last_observation": np.ones((len(LENGTHS), 3), np.float32),
        "last_mask": np.ones((len(LENGTHS), 4), bool),
        "number": np.arange(len(LENGTHS)),
        "seed": np.zeros(len(LENGTHS), np.int64),
        "length": np.array(LENGTHS),
    }
    change(steps, ends)
    with write_episodes(folder, {"task": "made up", "terms": ["all"]}, columns_for(3, 4, 1)) as writer:
        writer.policy("somebody", asked="somebody")
        writer.append(0, steps, ends)
    return Episodes.open(folder)


def test_what_is_to_come_equals_its_definition(tmp_path):
    gamma = 0.9
    data = offline_data(write(tmp_path / "data"), seed=1, gamma=gamma)
    reward, starts = data.episodes.read("reward").double(), np.cumsum((0, *LENGTHS[:-1]))
    for start, length in zip(starts, LENGTHS, strict=True):
        for t in range(length):
            whole = sum(gamma**k * reward[start + t + k].item() for k in range(length - t))
            assert data.to_go[start + t].item() == pytest.approx(whole, abs=1e-6)
    batch = data.windows(data.taught)
    reached = torch.cat([data.to_go[first : first + size] for first, size in data.taught.tolist()])
    assert torch.equal(batch["to_go"][batch["valid"]], reached)


@pytest.mark.parametrize("window", [0, 2])
def test_every_step_is_learned_from_or_held_out(tmp_path, window):
    data = offline_data(write(tmp_path / "data"), seed=1, gamma=0.9, window=window, held_out=0.3)
    taught = {row for first, size in data.taught.tolist() for row in range(first, first + size)}
    apart = {
        row for first, size in data.episodes.windows(0, data.held_out).tolist() for row in range(first, first + size)
    }
    assert taught | apart == set(range(sum(LENGTHS))) and not taught & apart
    assert len(data.held_out) == 2
    assert window == 0 or data.taught[:, 1].max() <= window


def illegal(steps, ends):
    row = int((~steps["action_mask"]).any(1).argmax())
    steps["action"][row] = int((~steps["action_mask"][row]).argmax())


def no_index(steps, ends):
    steps["action"][7] = 4


def not_finite(steps, ends):
    steps["reward"][8] = np.nan


def last_not_finite(steps, ends):
    ends["last_observation"][2, 1] = np.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (illegal, "outside its mask"),
        (no_index, "episode 2, step 1: action 4 is outside its mask"),
        (not_finite, "episode 2, step 2: reward is not finite"),
        (last_not_finite, "episode 2, step 4: observation is not finite"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_at_load(tmp_path, change, words):
    with pytest.raises(EpisodesError, match=words):
        offline_data(write(tmp_path / "data", change), seed=1, gamma=0.9)


def test_no_episode_is_left(tmp_path):
    with pytest.raises(EpisodesError, match="1 episodes, of which 1 are held out"):
        offline_data(write(tmp_path / "data"), seed=1, gamma=0.9, held_out=0.5, places=torch.tensor([2]))
