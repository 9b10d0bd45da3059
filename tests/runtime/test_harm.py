"""Runs that are harmed in every way we know of, one way at a time, and go on without a person.

A harmed run ends in the bits of an undisturbed one, by itself or once it is started again; or it is refused in one line
with its last checkpoint intact, and the next command goes on. Some ways befall a run while it goes on, in branches of
it; others befall what it left when it was killed, and a supervisor as ``esper supervise`` has it goes on with that. A
few cases of each way are tried every day; ``pytest -m large -s tests/runtime/test_harm.py`` tries three thousand.
"""

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from runtime_forks import (
    Branch,
    branched,
    ended,
    expect_intact,
    killed_after,
    renewed,
    result,
    start,
    state,
    told,
    words,
)

from esper.nissa.sinks import METRICS
from esper.runtime import outlets
from esper.runtime.policy_checkpoint import SERIES
from esper.runtime.supervise import Supervisor
from esper.simic.ppo import Learner
from esper.urza import lock, series
from esper.urza.checkpoint import MANIFEST, TENSORS
from esper.urza.dead_letters import FILE
from esper.utils.failpoints import ERRORS, ON_FILES, POINTS, Chaos
from esper.utils.resilience.world import World

pytestmark = pytest.mark.usefixtures("tiny_task")

ROUNDS, REST = 2, 0.8
"""Rounds of a run, and about how many seconds one takes."""

WORLD = World(time.monotonic, lambda seconds: None, lambda: 0.5)
"""In which a supervisor waits for nothing."""


class Lives:
    """Copies of this process, one after the other, as a supervisor starts them."""

    def __init__(self, place):
        self.place, self.statuses, self.logs = place, [], []

    def start(self, command):
        self.logs.append(self.place / f"log{len(self.logs)}")
        self.child = start(command, self.logs[-1])
        return self

    def wait(self):
        self.statuses.append(ended(self.child))
        return self.statuses[-1]

    def send_signal(self, number):
        os.kill(self.child, number)

    def said(self):
        """What all of them said."""
        return "".join(log.read_text(errors="replace") for log in self.logs)


def supervised(folder, place):
    """The last status of a run that is kept going, and its lives."""
    lives = Lives(place)
    return Supervisor(words(folder, ROUNDS)[1:-2], 5, lives.start, WORLD).run(io.StringIO()), lives


def at_random_time(draw, number, then=ended):
    """Send a signal at some time of the rest of a run."""

    def meanwhile(child):
        status = killed_after(child, draw.uniform(0, REST), number)
        return then(child) if status is None else status

    return meanwhile


def of_file(change, *names):
    """A harm that is done to a file of the run, if it is there."""

    def harm(draw, folder):
        place = draw.choice([path for name in names for path in folder.glob(name)])
        data = place.read_bytes()
        change(draw, place, data)
        return lambda: restore(place, data)

    return harm


def restore(place, data):
    place.unlink(missing_ok=True)
    place.write_bytes(data)


def flip(draw, place, data):
    altered = bytearray(data)
    altered[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    place.write_bytes(altered)


def cut(draw, place, data):
    place.write_bytes(data[: draw.randrange(len(data))])


def instead(make):
    """A change that puts something else in a file's place."""

    def change(draw, place, data):
        place.unlink()
        make(place)

    return change


def newest(change):
    """A harm to a file of the newest checkpoint."""

    def harm(draw, folder):
        place = series.member(Path(SERIES), series.moments(folder / SERIES)[-1])
        return of_file(change, f"{place}/{MANIFEST}", f"{place}/{TENSORS}")(draw, folder)

    return harm


def nothing():
    """Nothing need be mended."""


def held_by_another(draw, folder):
    return lock.hold(folder).release


def damaged_queue(draw, folder):
    with sqlite3.connect(folder / FILE) as other:
        other.execute("CREATE TABLE another (thing)")
    other.close()
    flip(draw, folder / FILE, (folder / FILE).read_bytes())
    return nothing


def littered(draw, folder):
    (folder / SERIES / "round-000009.tmp-abc").mkdir()
    (folder / "metrics.jsonl.tmp-abc").write_bytes(b"x")
    return nothing


def unused(count):
    """That many handles more, and there are none: a file gets the least number that is free."""
    taken, limit = {int(name) for name in os.listdir("/proc/self/fd")}, 0
    while count >= 0:
        count -= limit not in taken
        limit += 1
    return limit - 1


TAKEN = []
"""Memory that a branch has no longer."""


def take_memory(spare):
    """Take all that the process may have, so many bytes excepted."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
    rest = bytearray(spare // 2)
    for size in (1 << 22, 1 << 18, 1 << 14, 1 << 10):
        with contextlib.suppress(MemoryError):
            while True:
                TAKEN.append(bytearray(size))
    del rest


def limited(draw, limit, least, most):
    """Less of something than a run needs."""
    spare = draw.randint(least, most)
    return {"before": lambda: limit(spare)}


def limit_to(which, limit):
    """A limit of the process."""
    resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))


def spoiled_update(draw, rewards):
    """The second round's rewards are all not finite; or it leaves a policy that is not."""
    value, plain = draw.choice([torch.nan, torch.inf, -torch.inf]), Learner.update

    def update(self, batches, check):
        hit = self.done == 1
        if hit and rewards:
            batches = [batch.clone() for batch in batches]
            for batch in batches:
                batch["next", "reward"].fill_(value)
        found = plain(self, batches, check)
        if hit:
            with torch.no_grad():
                next(self.policy.parameters()).flatten()[0] = value
        return found

    return {"before": lambda: setattr(Learner, "update", update)}


def overtaken(draw):
    """Another writer takes the run directory, as where locks bind one machine only."""
    at, seen, plain = draw.randint(1, 3), [], lock.Lock.check

    def check(self):
        seen.append(1)
        if len(seen) == at:
            (self.folder / lock.OWNER).write_text('{"epoch": 1000, "pid": 1, "host": "elsewhere"}\n')
        plain(self)

    return {"before": lambda: setattr(lock.Lock, "check", check)}


def unwritten_report(draw):
    """The service of files fails: a report becomes a dead letter."""

    def fail(path, text):
        raise OSError(5, "Input/output error")

    return {"before": lambda: setattr(outlets, "write_text", fail)}


def stopped_for_a_while(child):
    os.kill(child, signal.SIGCONT)
    return ended(child)


def chaos(draw, kinds):
    return {"fault": Chaos(draw.randrange(2**32), draw.choice([0.01, 0.05, 0.2]), kinds)}


def signals(*numbers, then=ended):
    return lambda draw: {"meanwhile": at_random_time(draw, draw.choice(numbers), then)}


class Lasting:
    """An error that meets all operations on files."""

    def __init__(self, kind):
        self.kind = kind

    def met(self, point, arrival):
        return self.kind if point in ON_FILES else None


CLOSED = tuple(point for point in POINTS if point not in ("write", "sync"))
"""Points at which no file is open."""

ON_THE_WAY = {
    "killed at a point": (POINTS, lambda draw: {"kind": "kill"}),
    "an operation on a file fails": (ON_FILES, lambda draw: {"kind": draw.choice(list(ERRORS))}),
    "no memory at a point": (POINTS, lambda draw: {"kind": "memory"}),
    "operations fail from some time on": (CLOSED, lambda draw: {"fault": Lasting(draw.choice(list(ERRORS)))}),
    "operations fail at random": (CLOSED, lambda draw: chaos(draw, tuple(ERRORS))),
    "failures, no memory and kills at random": (CLOSED, lambda draw: chaos(draw, (*ERRORS, "memory", "kill"))),
    "killed at a time": (CLOSED, signals(signal.SIGKILL)),
    "a crash at a time": (CLOSED, signals(signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)),
    "told to stop": (CLOSED, signals(signal.SIGTERM, signal.SIGINT)),
    "stopped for a while": (CLOSED, signals(signal.SIGSTOP, then=stopped_for_a_while)),
    "overtaken by another": (CLOSED, overtaken),
    "no finite reward": (CLOSED, lambda draw: spoiled_update(draw, rewards=True)),
    "a policy that is not finite": (CLOSED, lambda draw: spoiled_update(draw, rewards=False)),
    "few handles": (
        CLOSED,
        lambda draw: limited(draw, lambda spare: limit_to(resource.RLIMIT_NOFILE, unused(spare)), 0, 12),
    ),
    "little memory": (CLOSED, lambda draw: limited(draw, take_memory, 1 << 12, 1 << 24)),
    "little room for a file": (
        CLOSED,
        lambda draw: limited(draw, lambda spare: limit_to(resource.RLIMIT_FSIZE, spare), 1 << 11, 1 << 14),
    ),
    "reports fail": (CLOSED, unwritten_report),
}
"""What befalls a run that goes on: at which points it may begin, and what a branch is then."""

LEFT = {
    "a flipped byte in the newest checkpoint": newest(flip),
    "a file of the newest checkpoint cut": newest(cut),
    "a file of the newest checkpoint gone": newest(instead(lambda place: None)),
    "a pipe in the newest checkpoint": newest(instead(os.mkfifo)),
    "a link in the newest checkpoint": newest(instead(lambda place: place.symlink_to("/dev/zero"))),
    "a flipped byte in the rounds": of_file(flip, METRICS),
    "a flipped byte in what it says of itself": of_file(
        flip, "config.json", "resolved.json", "versions.json", lock.OWNER
    ),
    "rounds cut": of_file(cut, METRICS),
    "what a dead process was writing": littered,
    "held by another": held_by_another,
    "no queue of dead letters": damaged_queue,
}
"""What befalls the directory of a run that was killed; each gives what mends it, should it be refused."""


class Tally:
    """How harmed runs end.

    Attributes:
      ends: of every way, how often in which words.
      failed: those that ended otherwise than they may.
    """

    def __init__(self, place):
        self.place, self.ends, self.failed, self.kept = place, {way: Counter() for way in (*ON_THE_WAY, *LEFT)}, [], {}
        self.points = branched(place, words("run", ROUNDS), [], None)
        self.result = result(place / "original" / "run")
        kill = Branch(self.at("step")[3], "kill")
        branched(
            place,
            words("run", ROUNDS),
            [kill],
            lambda branch, points, folder, status: (folder / "run").rename(place / "half"),
        )
        assert len(series.moments(place / "half" / SERIES)) > 1

    def at(self, *points):
        """The arrivals at some points, counted from 1."""
        return [number for number, point in enumerate(self.points, start=1) if point in points]

    def count(self, way, judged, *arguments):
        """Count how a case ends; an assertion that fails is kept."""
        try:
            self.ends[way][judged(*arguments)] += 1
        except (AssertionError, OSError, ValueError) as error:
            self.failed.append(f"{way}: {type(error).__name__}: {error}"[:1000])

    def on_the_way(self, count, seed):
        """Harm so many runs while they go on; ``resume`` goes on with what they left."""
        draw, ways = random.Random(seed), []
        for number in range(count):
            way = list(ON_THE_WAY)[number % len(ON_THE_WAY)]
            points, make = ON_THE_WAY[way]
            begin = max(draw.choices(self.at(*points), k=2))  # the later, the sooner it ends
            ways.append((Branch(begin, **make(draw)), way))
        named = {id(branch): way for branch, way in ways}

        def judge(branch, points, folder, status):
            self.count(named[id(branch)], self.left, folder, status)

        branched(self.place, words("run", ROUNDS), [branch for branch, _ in ways], judge)

    def left(self, folder, status):
        """How a branch ended, in words; what it left is kept, unless that is known."""
        run, said = folder / "run", (folder / "log").read_text(errors="replace")
        ending = (status, said[-400:])
        if status == 0:
            assert result(run) == self.result, ending
            return "went through"
        expect_intact(run, told((folder / "told").read_bytes()))
        if (name := state(run)) not in self.kept:
            self.kept[name] = run.rename(self.place / f"state{len(self.kept)}")
        if status in (130, 143):
            return "stopped"
        if status in (1, 2):
            assert "Traceback" not in said and said.splitlines()[-1].startswith("esper train: "), ending
            return f"one line, status {status}"
        return "died" if status < 0 else "a traceback"

    def resume(self):
        """Go on with everything that branches left."""
        for folder in self.kept.values():
            status, lives = supervised(folder, self.place)
            if (status, result(folder)) != (0, self.result) or len(lives.statuses) > 1:
                self.failed.append(f"{folder}: {lives.statuses} {lives.said()}"[:1000])

    def harm_left(self, way, seed):
        """How a run goes on that was killed and whose directory is harmed, in words."""
        folder = shutil.copytree(self.place / "half", renewed(self.place / "run"))
        before = series.moments(folder / SERIES)[-1]
        mend = LEFT[way](random.Random(seed), folder)
        status, lives = supervised(folder, self.place)
        ending = f"{lives.statuses} {lives.said()}"
        if status == 0:
            assert result(folder) == self.result, ending
            return "went on"
        assert status in (1, 2) and "Traceback" not in ending, ending
        assert lives.said().splitlines()[-1].startswith("esper train: "), ending
        mend()
        assert expect_intact(folder) >= before, ending
        status, lives = supervised(folder, self.place)
        assert lives.statuses == [status] == [0] and result(folder) == self.result, f"{ending}, then {lives.said()}"
        return "one line, then went on"


@pytest.mark.parametrize(
    ("on_the_way", "left"), [(2 * len(ON_THE_WAY), len(LEFT)), pytest.param(2670, 330, marks=pytest.mark.large)]
)
def test_a_harmed_run_ends_in_the_same_bits_or_is_refused_in_one_line(tmp_path, on_the_way, left):
    tally = Tally(tmp_path)
    tally.on_the_way(on_the_way, seed=on_the_way)
    tally.resume()
    for number in range(left):
        way = list(LEFT)[number % len(LEFT)]
        tally.count(way, tally.harm_left, way, number)
    for way, ends in tally.ends.items():
        print(f"{way}: {dict(ends)}")  # noqa: T201
    print(f"{on_the_way + left} cases, {len(tally.kept)} directories", *tally.failed, sep="\n")  # noqa: T201
    assert 1000 * len(tally.failed) <= on_the_way + left, "\n".join(tally.failed)
