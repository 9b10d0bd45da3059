"""The case of learning from records: samples of a replay buffer over recorded episodes, read from their files."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensordict import TensorDictBase

from esper.bench.case import SEED, Bench, Case, Trial
from esper.runtime.mix import Player, Share
from esper.runtime.play_episodes import Mix, columns_of, facts_of, play_episodes, terms_of
from esper.runtime.policies import NAMED
from esper.runtime.scene import Rules, Scene
from esper.simic.episodes.dataset import SMALL, Episodes
from esper.simic.episodes.manifest import SHARDS
from esper.simic.episodes.storage import replay
from esper.simic.episodes.writer import write_episodes
from esper.simic.rewards import DEFAULT_REWARD, build_reward_params

LENGTH, BATCH = 8, 32
"""Decisions of a window, and windows of a sample, at most."""

WHO = "random"
"""Policy that plays the episodes; it tells from what it draws."""


class RecordedRaw(NamedTuple):
    """A dataset's columns as NumPy reads the files: what samples are compared with.

    Attributes:
      columns: by name, in the order of the episodes.
      starts: int64 [N]; first row of each episode.
    """

    columns: Mapping[str, np.ndarray]
    starts: np.ndarray


def _replay(bench: Bench, envs: int) -> Trial:
    """A dataset in a temporary folder: E episodes, and copies of them where that makes it too large for memory."""
    engine = bench.engine(envs)
    params = build_reward_params({"gamma": Rules().gamma, **bench.task.rewards}, engine.config, bench.device)
    scene = Scene(Rules(task=bench.task.name), engine, DEFAULT_REWARD, params, bench.task)
    folder = tempfile.TemporaryDirectory(prefix="esper-bench-")
    try:
        buffer = replay(_record(scene, Path(folder.name) / "episodes", bench.quick), LENGTH, _batch(scene), SEED)
    except BaseException:
        folder.cleanup()
        raise
    state = engine.init(SEED)
    return Trial(buffer.sample, engine, state, Path(folder.name) / "episodes", folder.cleanup)


def _batch(scene: Scene) -> int:
    """Windows of a sample: no more than there are."""
    config = scene.engine.config
    return min(BATCH, config.num_envs * -(-config.horizon // LENGTH))


def _record(scene: Scene, folder: Path, quick: bool) -> Episodes:
    """Play E episodes and write them down, as often as it takes for a dataset that is read from its files."""
    terms, envs = terms_of(scene), scene.engine.config.num_envs
    columns = columns_of(scene, len(terms))
    with write_episodes(folder, facts_of(scene, terms), columns) as writer:
        index = writer.policy(WHO, kind="told", digest="", numbers={})
        player = Player(WHO, NAMED[WHO](scene, None), "told")
        parts = play_episodes(scene, Mix([Share(WHO, 1.0)], [player], SEED, 0.0, [index]), 0, envs)
        rows = {"step": envs * scene.engine.config.horizon, "episode": envs}
        size = sum(column.row_bytes * rows[column.per] for column in columns)
        copies = 1 if quick else 1 + SMALL // size
        steps, episodes = ({name: np.concatenate([value] * copies) for name, value in part.items()} for part in parts)
        writer.append(0, steps, episodes)
    return Episodes.open(folder)


def read_raw(folder: Path) -> RecordedRaw:
    """A dataset's files, read without Esper; they are mapped, not loaded."""
    (shard,) = (folder / SHARDS).iterdir()
    columns = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in shard.glob("*.npy")}
    return RecordedRaw(columns, np.flatnonzero(columns["step"] == 0))


def _replay_gate(trial: Trial) -> str | None:
    return sample_wrong(read_raw(trial.extra), trial.run())


SEEN = ("observation", "action_mask", "action", "probability", "policy")
AHEAD = ("reward", "terminated", "truncated")


def sample_wrong(raw: RecordedRaw, batch: TensorDictBase) -> str | None:
    """What is wrong with a sample [B, T], row by row against the files, if anything."""
    valid = batch["valid"].numpy()
    episode, step = batch["episode"].numpy()[valid], batch["step"].numpy()[valid]
    rows = raw.starts[episode] + step
    firsts = [(int(e), int(s)) for e, s in zip(batch["episode"][:, 0], batch["step"][:, 0], strict=True)]
    if len(set(firsts)) < len(firsts):
        return f"{len(firsts) - len(set(firsts))} of {len(firsts)} windows stand twice in a sample; expected each once"
    first_step = np.broadcast_to(batch["step"].numpy()[:, :1] + np.arange(valid.shape[1]), valid.shape)
    if not np.array_equal(batch["step"].numpy()[valid], first_step[valid]) or not valid[:, 0].all():
        return "a window's steps do not follow each other"
    pairs = [(name, batch[name], raw.columns[name][rows]) for name in SEEN]
    pairs += [(f"next {name}", batch["next", name].squeeze(-1), raw.columns[name][rows]) for name in AHEAD]
    pairs += [(f"next {name}", batch["next", name], _after(raw, rows, episode, name)) for name in SEEN[:2]]
    for name, found, expected in pairs:
        if not np.array_equal(found.numpy()[valid], expected, equal_nan=expected.dtype.kind == "f"):
            return f"{name} of a sample is not what its file has"
    return None


def _after(raw: RecordedRaw, rows: np.ndarray, episode: np.ndarray, name: str) -> np.ndarray:
    """A column one step later; of an episode's last step, what is kept of its end."""
    last = rows + 1 == raw.starts[episode] + raw.columns["length"][episode]
    ends = raw.columns[{"observation": "last_observation", "action_mask": "last_mask"}[name]][episode]
    later = raw.columns[name][np.where(last, rows, rows + 1)]
    found: np.ndarray = np.where(last[:, None], ends, later)
    return found


REPLAY = Case(
    "replay-sample",
    f"sample of up to {BATCH} windows of {LENGTH} decisions from the files of recorded episodes",
    _replay,
    _replay_gate,
)
