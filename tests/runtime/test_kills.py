"""Runs that are killed at random times, again and again: what was acknowledged is there, and they end as others do.

A few deaths every day; ``pytest -m large -s tests/runtime/test_kills.py`` brings a thousand: of branches, and of
processes that start from nothing under ``esper supervise``, and measures how soon those are back.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runtime_forks import HORIZON, Branch, branched, ended, expect_intact, killed_after, known, result, told, words

import esper.__main__
from esper.runtime import debug
from esper.runtime.policy_checkpoint import SERIES
from esper.runtime.saver import SHARE, Saver
from esper.urza import series
from esper.urza.lock import LockError, hold

EVERY = "0.2"
"""Seconds between two checkpoints."""

BACK = 30.0
"""Seconds from a death to the first new step, at most."""


@pytest.mark.parametrize(("kills", "rounds"), [(6, 4), pytest.param(950, 20, marks=pytest.mark.large)])
def test_nothing_acknowledged_is_lost_by_kills_at_random(tmp_path, kills, rounds):
    """With a checkpoint every 0.2 s, up to 0.8 s after any step. The newest one verifies after each kill, and the
    rounds before it are all told; every fiftieth of the directories is gone on with.
    """
    draw, saved, kept = random.Random(18), [], []
    with known():

        def judge(branch, points, folder, status):
            assert status in (-signal.SIGKILL, 0)
            moments = [moment for moment in (told((folder / "told").read_bytes()),) if moment]
            expect_intact(folder / "run", *moments)
            saved.append(len((folder / "told").read_bytes().splitlines()))
            if len(saved) % 50 == 1:
                kept.append((folder / "run").rename(tmp_path / f"kept{len(kept)}"))

        def kill(child):
            status = killed_after(child, draw.uniform(0, 0.8))
            return ended(child) if status is None else status

        steps = [draw.randint(1, (rounds - 1) * HORIZON) for _ in range(kills)]
        branches = [Branch(("step", step), meanwhile=kill) for step in steps]
        branched(tmp_path, words("run", rounds, EVERY), branches, judge)
        for folder in kept:
            assert esper.__main__.main(words(folder, rounds, EVERY)) == 0
            assert result(folder) == result(tmp_path / "original" / "run")
    print(f"{kills} kills, after {sum(saved)} checkpoints of those that died; {len(kept)} gone on with")  # noqa: T201


def cold(command, folder, rounds):
    """A process that starts from nothing."""
    sizes = {"num-envs": 2, "features": 8, "lstm": 8, "head": 8, "epochs": 1, "minibatches": 1, "horizon": 4}
    flags = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    flags += ["--task", "synthetic", "--engine", "steps_per_epoch=1", "--eval-envs", "0", "--save-every", EVERY]
    whole = [sys.executable, "-m", "esper", *command, "train", *flags, "--rounds", str(rounds), "--out", str(folder)]
    return subprocess.Popen([*whole, "--progress", "off"], stdout=subprocess.DEVNULL)


def wait_for(found, seconds=120.0):
    """What a function gives, once it gives something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return value


class Watched:
    """A run under ``esper supervise``, whose processes can be killed."""

    def __init__(self, folder, rounds, restarts):
        self.folder = folder
        self.process = cold(["supervise", "--restarts", str(restarts), "--"], folder, rounds)

    def child(self):
        """The number of the process that trains, if there is one."""
        place = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = place.read_text().split() if place.exists() else []
        return int(found[0]) if found else None

    def newest(self):
        """The moment of the newest checkpoint."""
        return max(series.moments(self.folder / SERIES), default=None)

    def beyond(self, moment):
        """The newest checkpoint's, if there is one after a moment."""
        found = self.newest()
        return found if found is not None and (moment is None or found > moment) else None

    def kill(self):
        """Kill the process that trains; what it had acknowledged is whole."""
        child, before = wait_for(self.child), self.newest()
        os.kill(child, signal.SIGKILL)
        died = time.monotonic()
        wait_for(lambda: self.child() != child)
        return died, expect_intact(self.folder, before)


@pytest.mark.large
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_runs_that_start_from_nothing_are_soon_back(tmp_path):
    """Killed while they train, and one time in four while they start. A run is back no later than it has written a new
    checkpoint, which takes a step and the time since the death.
    """
    deaths, draw, seconds = 40, random.Random(19), []
    run = Watched(tmp_path / "run", 10**6, 20)
    try:
        moment = wait_for(lambda: run.beyond(None))
        for number in range(deaths):
            time.sleep(draw.uniform(0, 1))
            died, moment = run.kill()
            if number % 4 == 3:
                time.sleep(draw.uniform(0, 3))
                died, moment = run.kill()
            wait_for(lambda: run.beyond(moment))  # noqa: B023
            seconds.append(time.monotonic() - died)
    finally:
        run.process.kill()
        run.process.wait()
    gone = time.monotonic()
    wait_for(lambda: is_free(tmp_path / "run"))
    seconds.sort()
    print(  # noqa: T201
        f"{deaths + deaths // 4} deaths: back after {seconds[len(seconds) // 2]:.1f} s (median), "
        f"{seconds[-1]:.1f} s (longest); without a supervisor the run stopped after {time.monotonic() - gone:.1f} s"
    )
    expect_intact(tmp_path / "run")
    assert seconds[-1] < BACK


def is_free(folder):
    """Whether nobody writes in a folder."""
    try:
        hold(folder).release()
    except LockError:
        return False
    return True


@pytest.mark.large
def test_a_supervised_run_that_is_killed_ends_in_the_bits_of_one_that_is_not(tmp_path):
    """From nothing, until it is done."""
    rounds, draw, deaths = 300, random.Random(20), 0
    assert cold([], tmp_path / "whole", rounds).wait() == 0
    run = Watched(tmp_path / "run", rounds, 20)
    moment = wait_for(lambda: run.beyond(None))
    while run.process.poll() is None and deaths < 12:
        time.sleep(draw.uniform(0, 1))
        if run.newest().rounds >= rounds - 20:
            break
        _, moment = run.kill()
        deaths += 1
        wait_for(lambda: run.beyond(moment))  # noqa: B023
    assert run.process.wait() == 0 and deaths >= 5
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    print(f"{deaths} deaths")  # noqa: T201


@pytest.mark.large
def test_checkpoints_take_no_more_than_their_share(tmp_path, monkeypatch):
    """At the default interval, with the task's own sizes: seconds within them, of all since the first."""
    spent, plain = [], Saver.write

    def write(self, first):
        began, before = time.monotonic(), self.saved
        plain(self, first)
        if self.saved != before:
            spent.append((began, time.monotonic()))

    monkeypatch.setattr(Saver, "write", write)
    command = ["train", "--task", "synthetic", "--rounds", "60", "--eval-envs", "0", "--progress", "off"]
    with debug.watching(False):
        assert esper.__main__.main([*command, "--out", str(tmp_path / "run")]) == 0
    whole, each = spent[-1][1] - spent[0][1], [end - began for began, end in spent[1:]]
    print(f"{len(each)} checkpoints, {sum(each):.2f} s of {whole:.1f} s: {sum(each) / whole:.2%}")  # noqa: T201
    assert sum(each) < SHARE * whole + max(each)
