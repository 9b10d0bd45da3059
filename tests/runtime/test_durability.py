"""A run that is killed, fails to write or is told to stop, at any of its operations, ends in the usual bits.

Every arrival at every fault point of a small run is a case, and is tried in a branch of it. Some are tried
every day; ``pytest -m large -s tests/runtime/test_durability.py`` tries them all, and large counts of the rest.
"""

import os
import random
import shutil
import signal
import time

import pytest
from runtime_forks import (
    HORIZON,
    Branch,
    branched,
    ended,
    expect_intact,
    one_life,
    result,
    start,
    state,
    told,
    words,
)

import esper.__main__
from esper.kasmina import lifecycle
from esper.nissa.sinks import METRICS, SinkError, read_rows
from esper.runtime.collect import part_of
from esper.runtime.policy_checkpoint import SERIES, load_run
from esper.runtime.resume import settings_before
from esper.urza import series
from esper.urza.checkpoint import MANIFEST, TENSORS
from esper.urza.lock import hold
from esper.urza.series import Moment
from esper.utils.failpoints import ERRORS, ON_FILES, POINTS, Fault, awaiting
from esper.utils.settings import SettingsError

pytestmark = pytest.mark.usefixtures("tiny_task")

ROUNDS = 2

EVERY = pytest.param(0, marks=pytest.mark.large)
"""Of cases: all there are."""


@pytest.fixture(scope="module")
def whole(tiny_task, tmp_path_factory):
    """The undisturbed run, what it left, and the fault points that it came by."""
    place = tmp_path_factory.mktemp("runs")
    points = branched(place, words("run", ROUNDS), [], None)
    assert set(points) == set(POINTS)
    return place / "original" / "run", result(place / "original" / "run"), points


def go_on(folder, whole, horizon=HORIZON):
    """Go on, if there is something left; every bit is that of the undisturbed run.

    Returns:
      how many environment steps were taken.
    """
    with awaiting(None) as counts:
        assert esper.__main__.main(words(folder, ROUNDS, horizon=horizon)) == 0
    assert result(folder) == whole[1]
    shutil.rmtree(folder)
    return counts["step"]


class States:
    """Directories that branches left, each of which goes on once."""

    def __init__(self, place):
        self.place, self.kept = place, {}

    def keep(self, folder):
        """Keep a directory unless one like it is kept."""
        if (name := state(folder)) not in self.kept:
            self.kept[name] = folder.rename(self.place / f"state{len(self.kept)}")

    def go_on(self, whole):
        """All of them, each with no more steps than its newest checkpoint leaves."""
        for folder in self.kept.values():
            newest = expect_intact(folder)
            done = 0 if newest is None else newest.rounds * HORIZON + newest.steps
            assert go_on(folder, whole) == ROUNDS * HORIZON - done


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.large)])
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bits(whole, tmp_path, stride):
    """At every fault point that it comes by: while it plays, learns, writes, flushes, renames and removes. What was
    acknowledged is there, within a round too: of the steps before a kill no more than a part of an episode is repeated.
    """
    states, repeated = States(tmp_path), []

    def judge(branch, points, folder, status):
        assert status == -signal.SIGKILL
        newest = expect_intact(folder / "run")
        if points[-1] == "step":
            done = newest.rounds * HORIZON + newest.steps
            repeated.append(points.count("step") - 1 - done)
        states.keep(folder / "run")

    branches = [Branch(1 + at, "kill") for at in range(stride // 2, len(whole[2]), stride)]
    assert branched(tmp_path, words("run", ROUNDS), branches, judge) == whole[2]
    assert max(repeated) <= part_of(HORIZON)
    states.go_on(whole)
    print(f"{len(branches)} kills, at most {max(repeated)} steps repeated; {len(states.kept)} directories")  # noqa: T201


@pytest.mark.parametrize("tried", [1, EVERY])
def test_a_run_that_is_killed_while_seeds_change_stages_goes_on_to_the_same_bits(tmp_path, tried):
    """Between the epoch and the state that the step returns, in each step in which a seed changes its stage."""
    plain, horizon, seen = lifecycle.tick, 4, []

    def count_changes(at):
        def tick(config, hypers, slots, accuracy):
            found = plain(config, hypers, slots, accuracy)
            if (found[0].stage != slots.stage).any():
                seen.append(1)
                if len(seen) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return found

        lifecycle.tick = tick

    try:
        count_changes(0)
        assert esper.__main__.main(words(tmp_path / "whole", ROUNDS, horizon=horizon)) == 0
    finally:
        lifecycle.tick = plain
    changes, undisturbed = len(seen), (None, result(tmp_path / "whole"))
    assert changes > ROUNDS
    for at in range(1, 1 + changes) if tried == 0 else (1 + changes // 2,):
        folder, command = tmp_path / "run", words(tmp_path / "run", ROUNDS, horizon=horizon)

        def before(at=at):
            seen.clear()
            count_changes(at)

        assert one_life(command, tmp_path / "log", before=before) == -signal.SIGKILL
        go_on(folder, undisturbed, horizon)
    print(f"killed in {changes if tried == 0 else 1} of {changes} steps with a change")  # noqa: T201


@pytest.mark.parametrize("kinds", [("enospc",), pytest.param((*ERRORS, "memory"), marks=pytest.mark.large)])
def test_a_run_whose_disk_fails_goes_on_or_says_so_in_one_line(whole, tmp_path, kinds):
    """Every operation on a file, once as each kind; every ninth, as one kind, every day. The run goes on, or ends: a
    line, what was acknowledged is as it was, and the next command goes on. Nothing is left lying about.
    """
    states, refused = States(tmp_path), []
    places = [at + 1 for at, point in enumerate(whole[2]) if point in ON_FILES]
    branches = [Branch(at, kind) for at in places[:: 9 if len(kinds) == 1 else 1] for kind in kinds]

    def judge(branch, points, folder, status):
        said, named = (folder / "log").read_text(), (points[-1], points.count(points[-1]), branch.kind, status)
        assert status in (0, 1, 2) and "Traceback" not in said, (named, said)
        assert not list((folder / "run").rglob("*.tmp-*")) or points[-1] == "remove", named
        if status == 0:
            assert result(folder / "run") == whole[1], named
            return
        assert said.splitlines()[-1].startswith("esper train: "), (named, said)
        expect_intact(folder / "run", told((folder / "told").read_bytes()))
        refused.append(named)
        states.keep(folder / "run")

    branched(tmp_path, words("run", ROUNDS), branches, judge)
    states.go_on(whole)
    print(f"{len(branches)} failures, {len(refused)} ended the run in one line: {refused}")  # noqa: T201


def test_a_fault_that_nobody_knows_leaves_what_was_acknowledged(whole, tmp_path, monkeypatch):
    """In the first round, with a checkpoint of a part of it; and takes back what has none."""
    plain, folder = lifecycle.tick, tmp_path / "run"

    def failing(last):
        ticks = []

        def tick(*arguments):
            ticks.append(1)
            if len(ticks) == last:
                raise SystemError("an error without an exception")
            return plain(*arguments)

        return tick

    for last, left in ((1, False), (HORIZON, True)):
        with monkeypatch.context() as patch, pytest.raises(SystemError):
            patch.setattr(lifecycle, "tick", failing(last))
            esper.__main__.main(words(folder, ROUNDS))
        assert folder.exists() is left
    assert Moment(0) < expect_intact(folder) < Moment(1)
    go_on(folder, whole)


def test_a_disk_that_stays_full_keeps_what_was_written(whole, tmp_path):
    """Every later write fails: the run learns to its end, says that its last rounds are not kept, and goes on later."""
    fault, folder = Fault("write", "enospc", whole[2].count("write") * 2 // 3, lasts=True), tmp_path / "run"
    assert one_life(words(folder, ROUNDS), tmp_path / "log", fault) == 2
    assert Moment(0) < expect_intact(folder) < Moment(ROUNDS)
    go_on(folder, whole)


@pytest.mark.parametrize("trials", [1, pytest.param(50, marks=pytest.mark.large)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_ends_in_time_with_the_usual_status(tmp_path, number, trials):
    draw, slowest = random.Random(int(number)), 0.0
    for trial in range(trials):
        folder = tmp_path / str(trial)
        child = start(words(folder, 100_000, "0"), tmp_path / "log")
        while not list(folder.glob(f"{SERIES}/round-*")):
            time.sleep(0.01)
        time.sleep(draw.random())
        os.kill(child, number)
        asked = time.monotonic()
        assert ended(child) == 128 + number
        slowest = max(slowest, time.monotonic() - asked)
        assert slowest < 60
        assert expect_intact(folder).rounds == len(read_rows(folder / METRICS))
        assert "goes on\n" in (tmp_path / "log").read_text()
    print(f"{trials} times {number.name}, the slowest in {slowest:.2f} s")  # noqa: T201


def test_a_second_run_in_a_directory_is_refused_at_once(whole, capsys):
    folder = whole[0]
    lock = hold(folder)
    try:
        assert esper.__main__.main(words(folder, 9)) == 2
    finally:
        lock.release()
    assert capsys.readouterr().err == (
        f"esper train: --out {folder}: process {os.getpid()} is writing here; expected a folder of its own\n"
    )


def flips(data, count, draw):
    """The bytes with one of them altered in one bit."""
    for _ in range(count):
        altered = bytearray(data)
        altered[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        yield bytes(altered)


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.large)])
def test_rounds_that_are_lost_or_altered_are_noticed(whole, count):
    """A line less, a line twice, and bytes that are flipped."""
    folder = whole[0]
    path = folder / METRICS
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    lost = [b"".join(lines[1:]), b"".join(lines[:-1]), lines[0] + data, b""]
    try:
        for content in (*lost, *flips(data, count, random.Random(0))):
            path.write_bytes(content)
            with pytest.raises((SettingsError, SinkError), match=METRICS):
                settings_before({"resume": str(folder)})
    finally:
        path.write_bytes(data)


@pytest.fixture
def half(tmp_path):
    """A run that was killed, with more than one checkpoint; and a fresh copy of it."""
    assert one_life(words(tmp_path / "half", ROUNDS), tmp_path / "log", Fault("step", "kill", 4)) == -signal.SIGKILL
    assert len(series.moments(tmp_path / "half" / SERIES)) > 1
    return lambda: shutil.copytree(tmp_path / "half", tmp_path / "run")


@pytest.mark.parametrize(("flipped", "resumed"), [(30, 2), pytest.param(1000, 100, marks=pytest.mark.large)])
def test_of_a_checkpoint_with_a_flipped_byte_the_older_one_is_taken(whole, half, tmp_path, caplog, flipped, resumed):
    """Bytes of both files, each as likely as another: told, and gone on with to the same bits."""
    folder, draw = half(), random.Random(18)
    *_, older, newest = series.moments(folder / SERIES)
    place = series.member(folder / SERIES, newest)
    data = {name: (place / name).read_bytes() for name in (MANIFEST, TENSORS)}
    for number in range(flipped):
        (name,) = draw.choices(list(data), [len(each) for each in data.values()])
        (altered,) = flips(data[name], 1, draw)
        (place / name).write_bytes(altered)
        caplog.clear()
        assert [part["played"][1] for part in load_run(folder).table["begun"]] == ([older.steps] if older.steps else [])
        assert caplog.messages[0].startswith(f"checkpoint {place}: ") and "an older one is taken" in caplog.messages[0]
        if number < resumed:
            go_on(folder, whole)
            folder = half()
        (place / name).write_bytes(data[name])
    assert [part["played"][1] for part in load_run(folder).table["begun"]] == [newest.steps]


@pytest.mark.parametrize("count", [1, pytest.param(25, marks=pytest.mark.large)])
@pytest.mark.parametrize("name", ["config.json", "resolved.json", "versions.json", "owner.json"])
def test_flips_in_what_a_run_says_of_itself_change_no_bit(whole, half, tmp_path, name, count):
    """Only the checkpoints decide; what a run is to be is refused or known without these files."""
    for altered in flips((half() / name).read_bytes(), count, random.Random(name)):
        (tmp_path / "run" / name).write_bytes(altered)
        go_on(tmp_path / "run", whole)
        half()
    shutil.rmtree(tmp_path / "run")
