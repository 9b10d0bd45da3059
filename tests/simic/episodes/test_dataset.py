"""Datasets of episodes against a plain list of them; what is written, altered, interrupted, and how much is read."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from esper.leyline.config import ConfigError
from esper.simic.episodes.columns import EpisodeColumn, columns_for
from esper.simic.episodes.dataset import Episodes
from esper.simic.episodes.shards import EpisodesError
from esper.simic.episodes.storage import replay
from esper.simic.episodes.writer import write_episodes
from esper.urza.lock import LockError
from esper.utils.failpoints import Fault, awaiting

OBSERVED, ACTIONS, TERMS = 3, 5, 2
FACTS = {"task": "made up", "terms": ["a", "b"], "limit": float("inf")}
COLUMNS = columns_for(OBSERVED, ACTIONS, TERMS)


def episode(number, length, policy=0):
    """An episode as Python has it: a dict of arrays, with one observation and one mask more than steps."""
    rng = np.random.default_rng(number)
    mask = rng.random((length + 1, ACTIONS)) < 0.6
    mask[:, 0] = True
    return {
        "observation": rng.normal(size=(length + 1, OBSERVED)).astype("f4"),
        "mask": mask,
        "action": rng.integers(0, ACTIONS, length),
        "reward": rng.normal(size=length).astype("f4"),
        "number": number,
        "policy": policy,
    }


def arrays(episodes):
    """The same as columns."""
    lengths = [len(each["action"]) for each in episodes]
    total = sum(lengths)

    def joined(name, cut=None):
        return np.concatenate([each[name][:cut] for each in episodes])

    ends = np.zeros(total, bool)
    ends[np.cumsum(lengths) - 1] = True
    steps = {
        "observation": joined("observation", -1),
        "action_mask": joined("mask", -1),
        "action": joined("action"),
        "reward": joined("reward"),
        "probability": np.full(total, 0.5, "f4"),
        "policy": np.repeat([each["policy"] for each in episodes], lengths),
        "terms": np.zeros((total, TERMS), "f4"),
        "terminated": np.zeros(total, bool),
        "truncated": ends,
    }
    steps |= {name: np.zeros(total, "i8") for name in ("refusal",)}
    steps |= {name: np.zeros(total, "f4") for name in ("val_accuracy", "val_loss", "seed_params")}
    per_episode = {
        "last_observation": np.stack([each["observation"][-1] for each in episodes]),
        "last_mask": np.stack([each["mask"][-1] for each in episodes]),
        "number": np.array([each["number"] for each in episodes]),
        "seed": np.full(len(episodes), 2),
        "length": np.array(lengths),
    }
    return steps, per_episode


LENGTHS = [[5, 5, 3], [1, 7], [2], [5, 5, 5, 5]]


def model():
    """Shards of episodes."""
    numbers = iter(range(100))
    return [[episode(next(numbers), length, policy=length % 2) for length in shard] for shard in LENGTHS]


def write(folder, shards):
    with write_episodes(folder, FACTS, COLUMNS) as writer:
        for name in ("even", "odd"):
            writer.policy(name)
        writer.part(0, {"kind": "made up", "first": 0, "episodes": sum(map(len, shards))})
        for shard in shards:
            writer.append(writer.next_episode, *arrays(shard))
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("episodes") / "set", model())


def files_of(folder):
    """Every file that matters, with its bytes."""
    skipped = ("lock", "owner.json")
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in skipped}


@pytest.fixture(params=["held in memory", "from the files"])
def size(request, monkeypatch):
    """Both ways of reading: a small dataset's columns stay in memory."""
    if request.param == "from the files":
        monkeypatch.setattr("esper.simic.episodes.dataset.SMALL", 0)


@pytest.mark.usefixtures("size")
def test_what_is_read_is_what_was_written(dataset):
    every, read = [each for shard in model() for each in shard], Episodes.open(dataset)
    read.verify()
    assert len(read) == len(every) and read.steps == sum(len(each["action"]) for each in every)
    assert read.manifest.by_policy == {
        "even": sum(each["policy"] == 0 for each in every),
        "odd": sum(each["policy"] == 1 for each in every),
    }
    for place, each in enumerate(every):
        rows = torch.arange(int(read.starts[place]), int(read.starts[place] + read.lengths[place]))
        assert read.read("observation", rows).numpy().tobytes() == each["observation"][:-1].tobytes()
        assert read.read("action", rows).tolist() == each["action"].tolist()
        assert read.read("step", rows).tolist() == list(range(len(rows)))
        assert read.read("episode", rows).unique().tolist() == [each["number"]]
        assert read.read("last_mask", torch.tensor([place]))[0].tolist() == each["mask"][-1].tolist()


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("length", [0, 1, 2, 4, 100])
def test_windows_are_the_episodes_cut_into_pieces(dataset, length):
    """Against slices of the list: no window holds rows of two episodes, and no row is in two windows or in none."""
    read, pieces = Episodes.open(dataset), []
    for each in (each for shard in model() for each in shard):
        size = length or len(each["action"])
        pieces += [
            (each, start, min(start + size, len(each["action"]))) for start in range(0, len(each["action"]), size)
        ]
    table = read.windows(length)
    assert len(table) == len(pieces)
    batch = read.window(table)
    for window, (each, start, stop) in zip(batch, pieces, strict=True):
        count = stop - start
        assert window["valid"].tolist() == [True] * count + [False] * (batch.shape[1] - count)
        assert window["is_init"].flatten().tolist() == [True] + [False] * (batch.shape[1] - 1)
        there = window[:count]
        assert there["observation"].numpy().tobytes() == each["observation"][start:stop].tobytes()
        assert there["next", "observation"].numpy().tobytes() == each["observation"][start + 1 : stop + 1].tobytes()
        assert there["action_mask"].tolist() == each["mask"][start:stop].tolist()
        assert there["next", "action_mask"].tolist() == each["mask"][start + 1 : stop + 1].tolist()
        assert there["next", "reward"].flatten().tolist() == each["reward"][start:stop].tolist()
        cut = [position == len(each["action"]) for position in range(start + 1, stop + 1)]
        assert there["next", "truncated"].flatten().tolist() == cut == there["next", "done"].flatten().tolist()
        assert not there["next", "terminated"].any()
        rest = window[count:]
        assert rest["action_mask"].all() and not rest["next", "reward"].any() and not rest["observation"].any()


@pytest.mark.usefixtures("size")
def test_a_window_does_not_depend_on_its_neighbours(dataset):
    read = Episodes.open(dataset)
    table = read.windows(5)
    for place in range(len(table)):
        alone, among = read.window(table[place : place + 1])[0], read.window(table)[place]
        assert (alone == among[: len(alone)]).all()


def test_a_replay_buffer_goes_through_all_windows(dataset):
    read = Episodes.open(dataset)
    buffer, starts = replay(read, 2, 4, seed=3), []
    for _ in range(len(read.windows(2)) // 4):
        starts += [(int(w["episode"][0]), int(w["step"][0])) for w in buffer.sample()]
    assert len(starts) == len(set(starts)) == len(read.windows(2)) // 4 * 4
    with pytest.raises(TypeError, match="read-only"):
        buffer.extend(read.window(read.windows(2)))


def test_the_manifest_tells_types_counts_and_digests(dataset):
    table = json.loads((dataset / "manifest.json").read_text())
    assert table["counts"] == {"episodes": 10, "steps": 43, "shards": 4, "by_policy": {"even": 1, "odd": 9}}
    assert table["columns"][0] == {"name": "observation", "per": "step", "dtype": "<f4", "shape": [OBSERVED]}
    for shard in table["shards"]:
        folder = dataset / "shards" / shard["name"]
        assert hashlib.sha256((folder / "shard.json").read_bytes()).hexdigest() == shard["sha256"]
        for name, digest in json.loads((folder / "shard.json").read_text())["sha256"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            np.load(folder / name, allow_pickle=False)


def test_a_flipped_byte_is_found_and_its_file_named(dataset, tmp_path):
    """In every file, at three places."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    names, found = [name for name in files_of(copy)], 0
    for name in names:
        path = copy / name
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            with pytest.raises(EpisodesError, match=Path(name).name.replace(".", r"\.")):
                Episodes.open(copy).verify()
            found += 1
        path.write_bytes(whole)
    Episodes.open(copy).verify()
    assert found == 3 * (4 * 21 + 1)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (COLUMNS[:-1], "column length is there beside those"),
        ([*COLUMNS, EpisodeColumn("more", "step", "<f4")], "column more is not there"),
        (
            columns_for(OBSERVED + 1, ACTIONS, TERMS),
            r"column observation <f4 \[3\] per step, not observation <f4 \[4\]",
        ),
    ],
)
def test_other_columns_are_refused_by_name(dataset, columns, words):
    with pytest.raises(EpisodesError, match=words):
        write_episodes(dataset, FACTS, columns)


def test_other_facts_are_refused_by_name(dataset):
    with pytest.raises(EpisodesError, match="task is 'made up' there, and 'another' here"):
        write_episodes(dataset, FACTS | {"task": "another"}, COLUMNS)


def test_odd_arrays_are_refused(tmp_path):
    steps, ends = arrays([episode(0, 4)])
    odd = {
        "expected exactly": steps | {"unknown": steps["reward"]},
        "observation": steps | {"observation": steps["observation"][:, :2]},
        "reward": steps | {"reward": steps["reward"][:-1]},
        "action": steps | {"action": steps["action"] + 0.5},
    }
    with write_episodes(tmp_path / "set", FACTS, COLUMNS) as writer:
        for words, given in odd.items():
            with pytest.raises(ConfigError, match=words):
                writer.append(0, given, ends)
        assert writer.manifest.episodes == 0
    assert not list((tmp_path / "set" / "incoming").iterdir())


def test_episodes_are_there_once_and_one_process_writes(tmp_path):
    with write_episodes(tmp_path / "set", FACTS, COLUMNS) as writer:
        writer.policy("even")
        writer.append(0, *arrays([episode(0, 4), episode(1, 4)]))
        with pytest.raises(EpisodesError, match="overlaps"):
            writer.append(1, *arrays([episode(1, 4)]))
        with pytest.raises(LockError):
            write_episodes(tmp_path / "set", FACTS, COLUMNS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(EpisodesError, match="holds other things"):
        write_episodes(tmp_path / "other", FACTS, COLUMNS)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_what_is_taken_back_is_written_again_to_the_same_bytes(dataset, tmp_path):
    shards = model()
    folder = write(tmp_path / "set", shards)
    kept = len(shards) // 2
    first = sum(map(len, shards[:kept]))
    with write_episodes(folder, FACTS, COLUMNS) as writer:
        writer.take_back(first)
        read = Episodes.open(folder)
        read.verify()
        assert read.numbers.tolist() == list(range(first)) and len(list((folder / "shards").iterdir())) == kept
        for shard in shards[kept:]:
            writer.append(writer.next_episode, *arrays(shard))
    assert files_of(folder) == files_of(dataset)


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    from esper.simic.episodes import shards

    with write_episodes(tmp_path / "set", FACTS, COLUMNS) as writer:
        writer.policy("even")
        usage = shards.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage._replace(free=shards.MARGIN))
        with pytest.raises(OSError, match="No space left on device"):
            writer.append(0, *arrays([episode(0, 4)]))
        assert not list((tmp_path / "set" / "incoming").iterdir())


def arrivals_of_writing(folder):
    with awaiting(Fault("step", "eio", 10**9)) as arrivals:
        write(folder, model())
    return {point: arrivals[point] for point in ("open", "write", "sync", "rename", "sync-folder")}


@pytest.mark.parametrize("stride", [61, pytest.param(1, marks=pytest.mark.large)])
def test_an_error_at_any_file_operation_costs_no_acknowledged_episode(dataset, tmp_path, stride):
    """Every so many arrivals at each fault point: what is named verifies, and going on ends in the same bytes."""
    counts, tried = arrivals_of_writing(tmp_path / "counted"), 0
    wanted, shards = files_of(dataset), model()
    assert files_of(tmp_path / "counted") == wanted
    for point, count in counts.items():
        for arrival in range(1 + stride // 2 % count, count + 1, stride):
            folder, acknowledged = tmp_path / f"{point}-{arrival}", 0
            with awaiting(Fault(point, "eio", arrival)), pytest.raises(OSError):
                for shard in writing(folder, shards):
                    acknowledged += len(shard)
            if acknowledged:
                read = Episodes.open(folder)
                read.verify()
                assert len(read) >= acknowledged
            with write_episodes(folder, FACTS, COLUMNS) as writer:
                begin(writer, shards)
                numbers = [each for shard in shards for each in shard][writer.next_episode :]
                for shard in shards:
                    if shard[0]["number"] in {each["number"] for each in numbers}:
                        writer.append(writer.next_episode, *arrays(shard))
            assert files_of(folder) == wanted
            tried += 1
    assert tried >= len(counts)


def writing(folder, shards):
    """The shards as they are acknowledged."""
    with write_episodes(folder, FACTS, COLUMNS) as writer:
        begin(writer, shards)
        for shard in shards:
            writer.append(writer.next_episode, *arrays(shard))
            yield shard


def begin(writer, shards):
    for name in ("even", "odd"):
        writer.policy(name)
    writer.part(0, {"kind": "made up", "first": 0, "episodes": sum(map(len, shards))})


READER = """
import resource, sys
from pathlib import Path
import torch
from esper.simic.episodes.dataset import Episodes
from esper.simic.episodes.storage import replay

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = Episodes.open(Path(sys.argv[1]))
buffer, total = replay(read, 25, 64, 0), 0.0
for _ in range(int(sys.argv[2])):
    total += float(buffer.sample()["observation"].mean())
print(read.steps, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def read_much(folder, gigabytes, samples):
    """Write so much and sample from it in another process: its bytes, and the reader's growth, both in bytes."""
    wide = columns_for(256, ACTIONS, TERMS)
    count, length = 400, 25
    steps, ends = arrays([episode(number, length) for number in range(count)])
    steps["observation"] = np.random.default_rng(0).normal(size=(count * length, 256)).astype("f4")
    ends["last_observation"] = np.zeros((count, 256), "f4")
    with write_episodes(folder, FACTS, wide) as writer:
        writer.policy("even")
        writer.part(0, {"kind": "made up"})
        while writer.manifest.steps * 256 * 4 < gigabytes * 1e9:
            writer.append(writer.next_episode, steps, ends)
    told = subprocess.run(
        [sys.executable, "-c", READER, str(folder), str(samples)], capture_output=True, text=True, check=True
    )
    rows, before, after = map(int, told.stdout.split())
    return rows * 256 * 4, (after - before) * 1024, after * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_reading_takes_little_memory(tmp_path):
    size, growth, _ = read_much(tmp_path / "set", 0.12, 30)
    assert size >= 0.12e9 and growth < 0.5 * size, (size, growth)


@pytest.mark.large
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_ten_gigabytes_are_read_within_two(tmp_path):
    size, growth, peak = read_much(tmp_path / "set", 10, 2000)
    print(f"{size:,} bytes of observations, reader's peak {peak:,} bytes, of which sampling {growth:,}")  # noqa: T201
    assert size >= 10e9 and peak < 2e9
