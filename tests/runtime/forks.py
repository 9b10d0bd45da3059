"""A tiny run, copies of this process that train it, and what such a run must be when it has ended.

A forked copy starts warm: everything is imported, and the native library is loaded. What a copy says goes into a file.
A branch is a copy in the middle of a run, in a copy of its directory. How a run goes on depends on its directory alone,
so branches that leave equal ones behind go on as one of them does.
"""

import faulthandler
import hashlib
import io
import logging
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch

import esper.__main__
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.nissa.sinks import METRICS, digest_of, read_rows
from esper.runtime import debug, tasks, watching
from esper.runtime.outlets import Outlets
from esper.runtime.policy_checkpoint import SERIES, WHICH, load_run
from esper.runtime.saver import Saver
from esper.runtime.task import Task
from esper.tolaria.synthetic import synthetic
from esper.urza import series
from esper.urza.checkpoint import CheckpointError, load
from esper.urza.dead_letters import FILE, DeadLetters
from esper.urza.series import Moment
from esper.utils.failpoints import awaiting

NAME, HORIZON, ENVS = "tiny", 2, 2


@cache
def tiny():
    """One block of two channels, in which a seed may come, blend and go within four decisions."""
    data = synthetic((1, 4, 4), num_classes=3, num_train=12, num_val=6, num_test=6, noise=0.7)
    host = cnn_host((1, 4, 4), 3, num_blocks=1, base_channels=2)
    numbers = {"slots": (0,), "batch_size": 4, "steps_per_epoch": 1, "eval_batch_size": 6, "horizon": HORIZON}
    numbers |= {"embargo_epochs": 0, "min_training_epochs": 1, "min_blending_epochs": 1, "blend_epochs": 1}
    numbers |= {"min_improvement": -100.0, "min_contribution": -100.0, "min_gradient_ratio": 0.0}
    return Task(NAME, host, CONV_BLUEPRINTS, data, numbers)


@contextmanager
def known():
    """The tiny task has a name, for this process and its copies. The page sees every decision, not only when a second
    has passed: which fault points are reached, and when, does not depend on the clock.
    """
    tasks.TASKS[NAME] = tiny
    try:
        with debug.watching(False), patch.object(watching, "PAUSE", 0.0):
            yield
    finally:
        del tasks.TASKS[NAME]


def words(folder, rounds, save_every="0.000001", horizon=HORIZON):
    """A command that begins such a run, or goes on with it."""
    sizes = {"num-envs": ENVS, "features": 4, "lstm": 4, "head": 4, "minibatches": 2, "epochs": 1, "keep": 2}
    sizes["horizon"] = horizon
    more = ["--rounds", str(rounds), "--eval-envs", "0", "--save-every", save_every, "--progress", "off"]
    flags = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    return ["train", "--task", NAME, *flags, *more, "--out", str(folder), "--resume", "auto"]


def _apart(log):
    """Let this copy say what it says into a file, and be nobody's but its parent's."""
    sys.stdout = sys.stderr = open(log, "w")  # noqa: SIM115
    sys.stdin = open(os.devnull)  # noqa: SIM115
    logging.getLogger().handlers.clear()
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end(status):
    """Leave a copy; what it said is in its file, where there is room for it."""
    try:
        sys.stdout.flush()
    finally:
        os._exit(status)


def start(command, log, before=lambda: None, fault=None):
    """The number of a copy of this process that runs ``esper`` with words, after ``before``; a fault awaits it."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            _apart(log)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            before()
            with awaiting(fault):
                status = esper.__main__.main(command)
        except BaseException as error:
            print("Traceback of what no command lets through:", repr(error))  # noqa: T201
        finally:
            _end(status)
    return child


def ended(child):
    """Its status when it has ended; minus the signal's number, if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def one_life(command, log, fault=None, before=lambda: None):
    """Status of a copy that a fault meets."""
    return ended(start(command, log, before, fault))


def killed_after(child, seconds, number=signal.SIGKILL):
    """Its status, where it ended by itself before that long; else None: a signal was sent."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return ended(child)
        time.sleep(min(left, 0.02))
    os.kill(child, number)
    return None


def telling(file):
    """Make this process say each checkpoint that it has written, once that is done, into an open file."""
    plain = Saver.write

    def write(self, first):
        before = self.saved
        plain(self, first)
        if self.saved != before:
            os.write(file, b"%d %d\n" % self.saved)

    Saver.write = write


def told(data):
    """The last of the moments that were said."""
    lines = data.split(b"\n")[:-1]
    return Moment(*map(int, lines[-1].split())) if lines else None


def expect_intact(folder, acknowledged=None):
    """The newest checkpoint is whole, no older than what was acknowledged, and the rounds before it are all told."""
    found = series.moments(folder / SERIES)
    assert acknowledged is None or (found and found[-1] >= acknowledged), f"{found} after {acknowledged}"
    if found:
        table = load(series.member(folder / SERIES, found[-1])).table
        assert table["done"] == found[-1].rounds
        assert digest_of(folder / METRICS, table["done"]) == table["metrics"]
        assert len(read_rows(folder / METRICS)) >= table["done"]
    return found[-1] if found else None


def result(folder):
    """Everything that a run leaves behind and that does not depend on when: a digest."""
    seen = hashlib.sha256()
    for which in WHICH:
        loaded = load_run(folder, which)
        seen.update(repr((which, loaded.table["done"], sorted(loaded.tensors))).encode())
        for name in sorted(loaded.tensors):
            seen.update(loaded.tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    rows = read_rows(folder / METRICS)
    told_alike = ("round", "environments_hash", "learner_hash", "return")
    seen.update(repr([[row[name] for name in told_alike] for row in rows]).encode())
    return seen.hexdigest(), sorted(str(path) for path in folder.rglob("*.tmp-*"))


def state(folder):
    """What a run goes on from, as a digest; the times that its rounds took are left out."""
    seen = hashlib.sha256()
    for moment in series.moments(folder / SERIES):
        try:
            tensors, table = load(series.member(folder / SERIES, moment))
        except CheckpointError:
            tensors, table = {}, {"damaged": True}
        seen.update(repr((moment, sorted((name, table[name]) for name in table.keys() - {"metrics"}))).encode())
        for name in sorted(tensors):
            seen.update(name.encode() + tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    rows = [[row["round"], row["learner_hash"]] for row in read_rows(folder / METRICS)]
    names = {re.sub(r"\.tmp-.*", ".tmp", str(path.relative_to(folder))) for path in folder.rglob("*")}
    seen.update(repr((rows, sorted(names))).encode())
    return seen.hexdigest()


def renewed(folder):
    """A place in which nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(folder)


class Branch:
    """What befalls a branch.

    Attributes:
      at: which of all arrivals at fault points it begins with, or of those at one, as in ("step", 3); 1 = the first.
        Where the original has a file open (``write``, ``sync``), a branch must not go on to write it.
      kind: what that arrival ends in; None = nothing.
      fault: that awaits the later ones, counted anew; has ``met``.
      before: called in the branch.
      meanwhile: called with the number of its process; gives its status.
    """

    def __init__(self, at, kind=None, fault=None, before=lambda: None, meanwhile=ended):
        self.at, self.kind, self.fault, self.before, self.meanwhile = at, kind, fault, before, meanwhile


class Branching:
    """Takes the place of a fault in a run, and lets branches begin where it arrives."""

    def __init__(self, branches, place, judge):
        self.place, self.judge, self.points, self.outlets, self.branch = place, judge, [], [], None
        self.after, self.waiting = Counter(), {}
        for branch in branches:
            self.waiting.setdefault(branch.at, []).append(branch)

    def met(self, point, arrival):
        """Of the original: nothing; of a branch: what is meant for it."""
        if self.branch is not None:
            self.after[point] += 1
            return self.branch.fault.met(point, self.after[point]) if self.branch.fault else None
        self.points.append(point)
        here = (len(self.points), (point, self.points.count(point)))
        for branch in [branch for at in here for branch in self.waiting.pop(at, ())]:
            if self._begin(branch):
                return branch.kind
        return None

    def _begin(self, branch):
        """Whether this is the branch; the original waits for its end and judges it."""
        folder = renewed(self.place / "branch")
        shutil.copytree("run", folder / "run")
        for name in ("told", "log"):  # a branch may die before it opens them
            (folder / name).touch()
        child = os.fork()
        if child:
            self.judge(branch, self.points, folder, branch.meanwhile(child))
            return False
        self.branch = branch
        os.chdir(folder)
        _apart("log")
        telling(os.open("told", os.O_WRONLY | os.O_APPEND))
        self.inherited = [each.letters for each in self.outlets]  # open in the original's directory
        for each in self.outlets:
            each.letters = DeadLetters(Path("run") / FILE)
        branch.before()
        return True


def branched(place, command, branches, judge):
    """Run to the end; branches begin on the way.

    Args:
      place: for the run and its branches.
      command: ``words`` of a directory that is called ``run``.
      branches: in any order.
      judge: called with a branch, the points up to its beginning, the folder that holds its ``run``, its ``log`` and
        what it ``told``, and its status.

    Returns:
      the points that the run arrived at, in order.
    """
    branching, before, plain, status = Branching(branches, place, judge), os.getcwd(), Outlets.__init__, 99

    def known_outlets(self, *arguments, **named):
        plain(self, *arguments, **named)
        branching.outlets.append(self)

    (renewed(place / "original")).mkdir(parents=True)
    os.chdir(place / "original")
    Outlets.__init__ = known_outlets
    try:
        with awaiting(branching), redirect_stdout(io.StringIO()):
            status = esper.__main__.main(command)
    except BaseException as error:
        if branching.branch is None:
            raise
        print("Traceback of what no command lets through:", repr(error), file=sys.stderr)  # noqa: T201
    finally:
        if branching.branch is not None:
            sys.stdout = sys.stderr
            _end(status)
        os.chdir(before)
        Outlets.__init__ = plain
    assert status == 0 and not branching.waiting
    return branching.points
