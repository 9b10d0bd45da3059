"""A run that is killed, fails to write or is told to stop, at any of its operations, ends in the usual bits.

Every arrival at every fault point of a small run is a case; ``ESPER_FAULTS`` says how many of them are tried of each
kind, evenly spread (0 = all). Runs are forked from this process, so that each starts warm.
"""

import io
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import esper.__main__
from esper.nissa.sinks import METRICS, SinkError, read_rows
from esper.runtime.collect import part_of
from esper.runtime.policy_checkpoint import SERIES, WHICH, load_run
from esper.runtime.resume import settings_before
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings
from esper.urza import series
from esper.urza.checkpoint import CheckpointError
from esper.urza.lock import hold
from esper.utils.failpoints import ERRORS, POINTS, Fault, awaiting
from esper.utils.settings import SettingsError

TRIED = int(os.environ.get("ESPER_FAULTS", "1"))
"""Cases of every kind; 0 = all."""

ROUNDS = 3


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    small = {"features": 8, "lstm": 8, "minibatches": 2, "epochs": 1, "horizon": 4, "num_envs": 4}
    out = tmp_path_factory.mktemp("runs") / "whole"
    return TrainSettings(task="synthetic", rounds=ROUNDS, eval_envs=0, save_every=1e-6, keep=2, out=str(out), **small)


@pytest.fixture(scope="module")
def arrivals(settings):
    """The undisturbed run, and how often each point is reached in it."""
    with awaiting(None) as counts:
        train(settings, io.StringIO())
    assert set(counts) == set(POINTS)
    return dict(counts)


def cases(arrivals, kinds):
    found = []
    for point in POINTS:
        for kind in kinds:
            count = arrivals[point]
            many = count if TRIED == 0 else min(TRIED, count)
            found += [Fault(point, kind, 1 + (2 * k + 1) * count // (2 * many)) for k in range(many)]
    return found


def forked(settings, fault):
    """Exit status of a run in a child of its own; a signal is negative."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            with awaiting(fault):
                train(settings, io.StringIO())
            status = 0
        except (SettingsError, CheckpointError):
            status = 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same_end(settings, whole):
    """Go on, if there is something left, and compare everything that a run leaves behind.

    Returns:
      how many environment steps that took.
    """
    with awaiting(None) as counts:
        train(replace(settings, resume="auto"), io.StringIO())
    for which in WHICH:
        actual, expected = load_run(Path(settings.out), which), load_run(Path(whole.out), which)
        assert actual.table["done"] == expected.table["done"] and actual.tensors.keys() == expected.tensors.keys()
        for name, value in expected.tensors.items():
            assert torch.equal(actual.tensors[name], value), name
    told = [read_rows(Path(run.out) / METRICS) for run in (settings, whole)]
    assert [row["return"] for row in told[0]] == [row["return"] for row in told[1]]
    assert [row["round"] for row in told[0]] == list(range(1, ROUNDS + 1))
    assert not list(Path(settings.out).rglob("*.tmp-*"))
    return counts["step"]


def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bits(settings, arrivals, tmp_path):
    """While it plays, learns, writes, flushes, renames and removes. What was acknowledged is there, within a round too:
    of the steps that were begun before a run was killed in one, no more than a part of an episode is taken again.
    """
    for number, fault in enumerate(cases(arrivals, ("kill",))):
        part = replace(settings, out=str(tmp_path / str(number)))
        assert forked(part, fault) == -signal.SIGKILL, fault
        if found := series.moments(tmp_path / str(number) / SERIES):
            assert load_run(Path(part.out)).table["done"] == found[-1].rounds, "what has its name is whole"
        left = same_end(part, settings)
        if fault.point == "step":
            assert left <= arrivals["step"] - fault.first + 1 + part_of(settings.horizon)


def test_a_run_whose_disk_fails_goes_on_or_says_so_in_one_line(settings, arrivals, tmp_path):
    kinds = tuple(ERRORS) if TRIED != 1 else ("enospc",)
    for number, fault in enumerate(cases(arrivals, kinds)):
        if fault.point in ("step", "minibatch"):  # no operation on a file
            continue
        part = replace(settings, out=str(tmp_path / str(number)))
        assert forked(part, fault) in (0, 2), fault
        same_end(part, settings)


def test_a_disk_that_stays_full_keeps_what_was_written(settings, arrivals, tmp_path):
    """Every later write fails: the run learns to its end, says that its last rounds are not kept, and goes on later."""
    fault = Fault("write", "enospc", arrivals["write"] * 2 // 3, lasts=True)
    part = replace(settings, out=str(tmp_path / "run"))
    assert forked(part, fault) == 2
    assert 0 < load_run(tmp_path / "run").table["done"] < ROUNDS
    same_end(part, settings)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_ends_in_time_with_the_usual_status(settings, arrivals, tmp_path, number):
    draw = random.Random(int(number))
    for trial in range(TRIED or 50):
        part = replace(settings, out=str(tmp_path / str(trial)), rounds=1000)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            words = ["train", "--task", "synthetic", "--num-envs", "4", "--horizon", "4", "--rounds", "1000"]
            small = ["--features", "8", "--lstm", "8", "--minibatches", "2", "--epochs", "1", "--eval-envs", "0"]
            status = 99
            try:
                status = esper.__main__.main([*words, *small, "--out", part.out, "--progress", "off"])
            finally:
                os._exit(status)
        while not list(Path(part.out).glob(f"{SERIES}/round-*")):
            time.sleep(0.01)
        time.sleep(draw.random())
        os.kill(child, number)
        asked = time.monotonic()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number
        assert time.monotonic() - asked < 60
        done = load_run(Path(part.out)).table["done"]
        assert done == len(read_rows(Path(part.out) / METRICS))


def test_a_second_run_in_a_directory_is_refused_at_once(settings, arrivals, capsys):
    lock = hold(Path(settings.out))
    try:
        assert esper.__main__.main(["train", "--resume", settings.out, "--rounds", "9"]) == 2
    finally:
        lock.release()
    assert capsys.readouterr().err == (
        f"esper train: --out {settings.out}: process {os.getpid()} is writing here; expected a folder of its own\n"
    )


def test_rounds_that_are_lost_or_altered_are_noticed(settings, arrivals):
    """A line less, a line twice, and bytes that are flipped; the run's other files decide nothing."""
    path = Path(settings.out) / METRICS
    whole, draw = path.read_bytes(), random.Random(0)
    lines = whole.splitlines(keepends=True)
    flipped = []
    for _ in range(200):
        altered = bytearray(whole)
        altered[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        flipped.append(bytes(altered))
    try:
        for content in (b"".join(lines[1:]), b"".join(lines[:-1]), lines[0] + whole, b"", *flipped):
            path.write_bytes(content)
            with pytest.raises((SettingsError, SinkError), match=METRICS):
                settings_before({"resume": settings.out})
    finally:
        path.write_bytes(whole)
    (Path(settings.out) / "config.json").write_text("{}")
    assert settings_before({"resume": settings.out})["rounds"] == ROUNDS
