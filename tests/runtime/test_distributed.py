"""Several ranks under torchrun: the update of one, the curves of one, the trajectories of one, and what a death costs.

``pytest -m large -s tests/runtime/test_distributed.py`` adds four ranks, and thirty deaths at random moments.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import esper.__main__
from esper.leyline.config import ConfigError
from esper.nissa.sinks import METRICS
from esper.runtime import distributed
from esper.runtime.distributed import Launch, own_device
from esper.simic.ranks import blocks, shards
from esper.utils import rng

SIZES = {"num-envs": 5, "horizon": 4, "features": 8, "lstm": 8, "head": 8, "epochs": 2, "minibatches": 2, "threads": 1}
FLAGS = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
FLAGS += [
    "--task",
    "synthetic",
    "--precision",
    "float64",
    "--backend",
    "eager",
    "--eval-envs",
    "0",
    "--watch-envs",
    "0",
]
ENGINE = "steps_per_epoch=1,batch_size=4,val_samples=8"


def torchrun(ranks, *words, restarts=0):
    """The command."""
    module = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--monitor-interval", "0.1"]
    return [*module, "--nproc-per-node", str(ranks), "--max-restarts", str(restarts), *words]


def surroundings():
    """Without what a launcher around the tests may have set."""
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}


def run(command):
    """Its output, once it has ended well."""
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings(), timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def words(folder, rounds, *more):
    """Of ``esper train``."""
    return ["train", *FLAGS, "--engine", ENGINE, "--rounds", str(rounds), "--out", str(folder), *more]


def rows(folder):
    """A run's rounds."""
    return [json.loads(line) for line in (Path(folder) / METRICS).read_text().splitlines()]


def assert_same_curves(one, other):
    """All numbers but times to 1e-6; the gradient's norm to 1e-5: the policy is of float32, networks of float64."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        for name, value in first.items():
            if not name.endswith(("seconds", "memory_bytes", "memory_left")) and not isinstance(value, str):
                near = 1e-5 if name == "gradient_norm" else 1e-6
                assert second[name] == pytest.approx(value, rel=near, abs=near), (first["round"], name)


@pytest.mark.parametrize(("total", "ranks"), [(8, 1), (8, 3), (5, 2), (3, 4)])
def test_shards_are_the_global_order_cut_evenly(total, ranks):
    found = shards(total, ranks)
    assert torch.cat([shard.numbers for shard in found]).tolist() == list(range(total))
    sizes = [shard.size for shard in found]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_every_place_is_somebodys_own_and_keeps_its_order():
    order = rng.permutation(rng.key(2), 9)
    found = [(shard.own(order) + shard.first).tolist() for shard in blocks([5, 0, 3, 1])]
    assert sorted(place for part in found for place in part) == list(range(9))
    assert all(part == [place for place in order.tolist() if place in part] for part in found)


def test_an_update_of_ranks_is_that_of_one():
    """Five, three and no environments; a minibatch without a rank's rows; broken episodes; two tasks: to 1e-9."""
    lines = run(torchrun(3, str(Path(__file__).with_name("rank_update.py")))).splitlines()
    told = [json.loads(line) for line in lines]
    assert len(told) == 5
    for case in told:
        assert case["far"] < 1e-9 and case["told"] < 1e-9, case
        assert case["moved"] > 1e-3, case
    assert [case["left_out"] for case in told] == [0, 0, 0.125, 0.125, 0]


@pytest.mark.parametrize(
    ("ranks", "rounds"), [(2, 2), *(pytest.param(n, 5, marks=pytest.mark.large) for n in (1, 2, 4))]
)
def test_ranks_have_the_curves_of_one_process(tmp_path, ranks, rounds):
    """And of every environment the same bits, as long as the policies have the same: in the first round. The first
    rank alone prints.
    """
    strict = ("--deterministic", "strict", "--progress", "lines")
    assert esper.__main__.main(words(tmp_path / "one", rounds, *strict)) == 0
    said = run(torchrun(ranks, "-m", "esper", *words(tmp_path / "many", rounds, *strict)))
    assert said.count(f"round   1/{rounds}") == 1
    one, many = rows(tmp_path / "one"), rows(tmp_path / "many")
    assert_same_curves(one, many)
    assert one[0]["environments_hash"] == many[0]["environments_hash"]


@pytest.mark.large
@pytest.mark.parametrize("ranks", [2, 4])
def test_under_a_fixed_policy_ranks_play_the_same_bits(tmp_path, ranks):
    """Five environments, on two ranks and on four: all states, observations, actions and rewards of four rounds."""
    fixed = ("--deterministic", "strict", "--lr", "0", "--progress", "off")
    assert esper.__main__.main(words(tmp_path / "one", 4, *fixed)) == 0
    run(torchrun(ranks, "-m", "esper", *words(tmp_path / "many", 4, *fixed)))
    one, many = rows(tmp_path / "one"), rows(tmp_path / "many")
    assert [row["environments_hash"] for row in one] == [row["environments_hash"] for row in many]


def children(pid):
    """Processes that a process started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def kill_now_and_then(job, draw, starts, most):
    """Kill a rank at a random moment of every start; how many died."""
    kills, seen = 0, 0
    while job.poll() is None and kills < most:
        known = starts.read_text().count("\n") if starts.exists() else 0
        if known == seen:
            time.sleep(0.05)
            continue
        seen = known
        time.sleep(draw.uniform(0, 6))
        ranks = [pid for pid in children(job.pid) if b"esper" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if ranks:
            os.kill(draw.choice(ranks), signal.SIGKILL)
            kills += 1
    return kills


@pytest.mark.large
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("most", "rounds"), [(4, 6), (30, 30)])
def test_a_job_whose_ranks_are_killed_at_random_ends_as_undisturbed(tmp_path, most, rounds):
    more = ("--progress", "off", "--save-every", "0.01")
    run(torchrun(2, "-m", "esper", *words(tmp_path / "whole", rounds, *more)))
    draw, kills, jobs = random.Random(20), 0, 0
    while kills < most:
        folder = tmp_path / f"killed{jobs}"
        command = torchrun(2, "-m", "esper", *words(folder, rounds, *more), restarts=60)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=surroundings()) as job:
            kills += kill_now_and_then(job, draw, folder / "starts.jsonl", most - kills)
            assert job.wait(1200) == 0
        jobs += 1
        names = ("environments_hash", "learner_hash", "return")
        told = [[row[name] for name in names] for row in rows(folder)]
        assert told == [[row[name] for name in names] for row in rows(tmp_path / "whole")]
    print(f"{kills} kills in {jobs} jobs of {rounds} rounds")  # noqa: T201


def test_a_rank_has_a_device_of_its_own(monkeypatch):
    second = Launch(1, 2, 1, 2, "job", 0, 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [own_device(name, second) for name in ("cpu", "cuda")] == ["cpu", "cuda:1"]
    with pytest.raises(ConfigError, match=r"--device = 'cuda:0': one for 2 ranks; expected cuda"):
        own_device("cuda:0", second)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"2 ranks on 1 GPUs; expected one each: --nproc-per-node 1"):
        own_device("cuda", second)


def test_what_ranks_cannot_do_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    """Looked at before anybody joins, so one process is enough."""
    told = {"TORCHELASTIC_RUN_ID": "job", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert distributed.launch() == Launch(0, 2, 0, 2, "job", 0, 0)
    for more, expected in {
        ("--demonstrations", "1"): "--demonstrations: are shown to one process",
        ("--algorithm", "bc"): "--algorithm = 'bc': learns in one process",
    }.items():
        assert esper.__main__.main(words(tmp_path / "none", 1, *more)) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
