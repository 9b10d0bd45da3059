"""Run directories in which others wrote: nothing is lost for it, nothing is gone on with unnoticed, no traceback."""

import json
import os
import shutil
import signal

import pytest
from runtime_forks import one_life, result, words

import esper.__main__
from esper.nissa.sinks import METRICS, record
from esper.runtime.machine import VERSIONS
from esper.runtime.policy_checkpoint import SERIES
from esper.urza import series
from esper.urza.checkpoint import MANIFEST, _sealed
from esper.urza.lock import LOCK, OWNER
from esper.urza.series import Moment
from esper.utils.failpoints import Fault, awaiting

pytestmark = pytest.mark.usefixtures("tiny_task")

ROUNDS = 3


@pytest.fixture(scope="module")
def whole(tiny_task, tmp_path_factory):
    """A run of ``ROUNDS`` rounds with two checkpoints, and what it left."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert esper.__main__.main(words(folder, ROUNDS)) == 0
    return folder, result(folder)


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole[0], tmp_path / "run")


def rounds_of(folder):
    return [json.loads(line)["round"] for line in (folder / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("more", [b"\n", b"no round\n", b"\0\n", b"\xff\n", b'{"round": true}\n', b'{"round": 3}\n'])
def test_what_stands_behind_the_rounds_of_a_checkpoint_is_cut_off(copied, whole, more):
    """A crash of the machine may leave anything there; a round that stands there again is not kept twice."""
    with (copied / METRICS).open("ab") as file:
        file.write(more)
    assert esper.__main__.main(words(copied, ROUNDS)) == 0
    assert result(copied) == whole[1]


def test_a_run_whose_rounds_were_removed_survives_a_kill(copied, tmp_path):
    """Further rounds lie beyond its checkpoint then, and before as many lines as that has rounds."""
    (copied / METRICS).unlink()
    go_on = words(copied, ROUNDS + 5, save_every="1e9")
    assert one_life(go_on, tmp_path / "log", Fault("step", "kill", 6)) == -signal.SIGKILL
    assert rounds_of(copied) == [4, 5]
    assert esper.__main__.main(go_on) == 0
    assert rounds_of(copied) == [4, 5, 6, 7, 8]


def test_want_of_memory_while_a_round_is_recorded_leaves_a_run_to_go_on_with(whole, tmp_path, monkeypatch):
    """The checkpoint that is written then is of the moment before that round."""

    def append(path, line):
        monkeypatch.undo()
        raise MemoryError

    folder = tmp_path / "run"
    monkeypatch.setattr(record, "append_line", append)
    assert esper.__main__.main(words(folder, ROUNDS, save_every="1e9")) == 1
    assert esper.__main__.main(words(folder, ROUNDS, save_every="1e9")) == 0
    assert result(folder) == whole[1]


class Taken:
    """A fault point at which somebody removes the lock and lets another run go on in the directory."""

    def __init__(self, folder, point, arrival):
        self.folder, self.at = folder, (point, arrival)

    def met(self, point, arrival):
        if (point, arrival) != self.at:
            return None
        (self.folder / LOCK).unlink()
        assert one_life(words(self.folder, ROUNDS + 2), self.folder.parent / "other") == 0
        self.left = {path.name: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}
        return None


def test_a_run_that_lost_its_directory_adds_nothing_to_it(copied, capsys):
    """No line, in the time between two checkpoints either, and no report."""
    taken = Taken(copied, "minibatch", 1)
    with awaiting(taken):
        assert esper.__main__.main(words(copied, ROUNDS + 2, save_every="1e9")) == 2
    assert capsys.readouterr().err.count("taken over by process") == 1
    assert {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()} == taken.left
    assert rounds_of(copied) == [1, 2, 3, 4, 5]


def test_a_directory_that_is_moved_away_is_told_as_that(tmp_path, capsys):
    class Moved:
        def met(self, point, arrival):
            if (point, arrival) == ("step", 3):
                (tmp_path / "run").rename(tmp_path / "moved")

    with awaiting(Moved()):
        assert esper.__main__.main(words(tmp_path / "run", ROUNDS)) == 2
    assert "moved, removed or taken over" in capsys.readouterr().err
    assert esper.__main__.main(words(tmp_path / "moved", ROUNDS)) == 0
    assert rounds_of(tmp_path / "moved") == [1, 2, 3]


def test_an_older_checkpoint_under_a_newer_name_is_passed_over(copied, whole, caplog):
    older = series.moments(copied / SERIES)[0]
    shutil.copytree(series.member(copied / SERIES, older), series.member(copied / SERIES, Moment(9)))
    with awaiting(None) as counts:
        assert esper.__main__.main(words(copied, ROUNDS)) == 0
    assert counts["step"] == 0 and result(copied) == whole[1]
    assert f"of {older.rounds} rounds; expected what its name says; an older one is taken" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("done", "3"),
        ("settings", None),
        ("settings", [1]),
        ("interface", 5),
        ("begun", 5),
        ("returns", 5),
        ("best", "x"),
    ],
)
def test_a_table_of_other_kinds_is_refused_in_a_line(copied, capsys, name, value):
    for moment in series.moments(copied / SERIES):
        manifest = series.member(copied / SERIES, moment) / MANIFEST
        entry = json.loads(manifest.read_bytes())
        del entry["sha256"]
        entry["table"][name] = value
        manifest.write_bytes(_sealed(entry))
    assert esper.__main__.main(words(copied, ROUNDS + 1)) == 2
    assert f"{name} is {value!r}; expected one of a training run" in capsys.readouterr().err


@pytest.mark.parametrize("name", [METRICS, VERSIONS, OWNER])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.write_bytes(b"[" * 100_000)])
def test_pipes_and_depths_in_its_files_neither_hang_nor_fail_it(copied, capsys, name, make):
    """The rounds are refused, since a digest says what they were; what only messages need is done without."""
    (copied / name).unlink()
    make(copied / name)
    status = esper.__main__.main(words(copied, ROUNDS + 1))
    assert status == (2 if name == METRICS else 0)
    assert (METRICS in capsys.readouterr().err) == (name == METRICS)


def test_a_checkpoint_of_another_run_is_told_when_it_is_played(copied, tmp_path, caplog):
    """Of other initial weights; the run's own is played without a word."""
    command = ["evaluate", "--run", str(copied), "--num-envs", "6"]
    assert esper.__main__.main(command) == 0
    assert "another run" not in caplog.text
    assert esper.__main__.main([*words(tmp_path / "other", ROUNDS), "--seed", "7"]) == 0
    shutil.rmtree(copied / SERIES)
    shutil.copytree(tmp_path / "other" / SERIES, copied / SERIES)
    assert esper.__main__.main(command) == 0
    (line,) = [line for line in caplog.messages if "another run" in line]
    assert line.startswith(f"{copied / METRICS}: not the {ROUNDS} rounds of the newest checkpoint")
