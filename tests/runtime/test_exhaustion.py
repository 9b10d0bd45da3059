"""Training where file handles, memory or the disk run out: one line or recovery, and the last checkpoint is intact."""

import errno
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from runtime_forks import ended, start

import esper.__main__
from esper.runtime.policy_checkpoint import load_run

SIZES = {"num-envs": 16, "rounds": 1, "horizon": 2, "features": 64, "lstm": 64, "head": 64, "epochs": 1}
WORDS = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
WORDS += ["--task", "synthetic", "--backend", "eager", "--engine", "steps_per_epoch=1", "--eval-envs", "0"]
WORDS += ["--minibatches", "1", "--save-every", "0.001", "--progress", "off"]

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="limits as Linux has them")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one round."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    assert esper.__main__.main(["train", *WORDS, "--out", str(folder)]) == 0
    return folder


def go_on(folder, limit, log):
    """Status and output of two more rounds in a copy of this process, after ``limit`` was called there."""
    status = ended(start(["train", "--resume", str(folder), "--rounds", "3"], log, limit))
    return status, log.read_text(errors="replace")


def check(folder, before, status, said):
    """Recovered, or refused in one line; the newest checkpoint reads, and is no older than before."""
    assert status in (0, 1, 2), (status, said)
    assert "Traceback" not in said
    if status:
        assert [line for line in said.splitlines() if line.startswith("esper train: ")] == said.splitlines()[-1:], said
    loaded = load_run(folder)
    assert loaded.table["done"] == 3 if status == 0 else loaded.table["done"] >= 1
    if loaded.table["done"] == 1:
        assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in before.tensors.items())


@pytest.mark.parametrize("spare", [0, 3])
def test_file_handles(trained, tmp_path, spare):
    folder = shutil.copytree(trained, tmp_path / "a")

    def limit():
        used = max(map(int, os.listdir("/proc/self/fd"))) + 1
        while os.dup(1) < used:  # no gaps
            pass
        used += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, used + spare))

    status, said = go_on(folder, limit, tmp_path / "log")
    check(folder, load_run(trained), status, said)


@pytest.mark.parametrize("megabytes", [4, 32])
def test_memory(trained, tmp_path, megabytes):
    folder = shutil.copytree(trained, tmp_path / "a")

    def limit():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)

    status, said = go_on(folder, limit, tmp_path / "log")
    check(folder, load_run(trained), status, said)


def test_memory_that_runs_out_ends_in_what_would_fit(tmp_path):
    """More environments than there are addresses for; torch's allocator refuses them in the middle of a step."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (5 * 2**30,) * 2)

    log = tmp_path / "log"
    words = ["train", *WORDS, "--num-envs", "8192", "--out", str(tmp_path / "a")]
    assert ended(start(words, log, limit)) == 1
    last = log.read_text(errors="replace").splitlines()[-1]
    found = re.fullmatch(
        r"esper train: out of memory: MemoryError: --num-envs (\d+) would fit: ([\d.]+) MiB each, "
        r"([\d,]+) of the ([\d,]+) MiB of this process \(ulimit -v\) are left; "
        r"(?:Runtime|Memory)Error: .*; fewer environments .*",
        last,
    )
    assert found, last
    number, each, left, whole = (float(text.replace(",", "")) for text in found.groups())
    assert number == pytest.approx((left - 0.2 * whole) / each, rel=0.05)


def test_disk(trained, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounts no tmpfs")
    try:
        folder = shutil.copytree(trained, place / "a")

        def limit():
            with (place / "ballast").open("wb", buffering=0) as file:
                for size in (65536, 1):
                    try:
                        while True:
                            file.write(b"x" * size)
                    except OSError as error:
                        assert error.errno == errno.ENOSPC

        status, said = go_on(folder, limit, tmp_path / "log")
        assert status
        check(folder, load_run(trained), status, said)
        (place / "ballast").unlink()
        status, said = go_on(folder, lambda: None, tmp_path / "log2")
        assert status == 0, said
        check(folder, load_run(trained), status, said)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
