"""Progress on a terminal and elsewhere, and the sinks of a run's numbers."""

import io
import os
import pty
import sys
import types
import warnings
from typing import ClassVar

import pytest

import esper.__main__
from esper.nissa.event_record import event
from esper.nissa.progress import clock, make_progress
from esper.nissa.sinks import METRICS, Metrics, SinkError, read_rows, write_text
from esper.nissa.sinks.tensorboard import TensorBoardSink


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(written):
    """What a terminal shows in the end: carriage return and erase honoured."""
    lines = [""]
    for part in written.replace("\x1b[K", "\x00").split("\r"):
        for index, piece in enumerate(part.split("\n")):
            if index:
                lines.append("")
            erase, _, rest = piece.rpartition("\x00")
            lines[-1] = rest if erase or "\x00" in piece else rest + lines[-1][len(rest) :]
    return lines


def test_a_terminal_keeps_one_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    progress = make_progress("auto", "round", out)
    progress.show(1, 4, "return 1.0 " + "x" * 80, 90)
    assert shown(out.getvalue())[-1].startswith("█████░") and len(shown(out.getvalue())[-1]) == 59
    progress.show(2, 4, "return 2.0", 3661)
    assert shown(out.getvalue()) == ["██████████░░░░░░░░░░ round 2/4  ETA 1:01:01  return 2.0"]
    progress.note("playing wait")
    assert shown(out.getvalue()) == ["playing wait"]
    progress.close()
    progress.close()
    assert shown(out.getvalue()) == ["██████████░░░░░░░░░░ round 2/4  ETA 1:01:01  return 2.0", ""]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_elsewhere_every_step_is_a_plain_line(kind, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = kind()
    progress = make_progress("auto", "round", out)
    progress.show(1, 10, "return 1.0", 9.6)
    progress.note("playing wait")
    progress.close()
    assert out.getvalue() == "round    1/10  return 1.0  left 0:10\nplaying wait\n"


def test_off_says_nothing_and_lines_can_be_asked_for_on_a_terminal():
    out = Terminal()
    for kind, expected in (("off", 0), ("lines", 1)):
        make_progress(kind, "round", out).show(1, 2, "x", 0)
        assert out.getvalue().count("\n") == expected


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36000, "10:00:00")])
def test_durations(seconds, words):
    assert clock(seconds) == words


def test_a_real_terminal_gets_the_bar(monkeypatch):
    """A pseudo-terminal."""
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as out:
        progress = make_progress("auto", "round", out)
        progress.show(1, 2, "x", 1)
        progress.show(2, 2, "x", 0)
        progress.close()
        written = ""
        while "\n" not in written:
            written += os.read(master, 65536).decode()
    os.close(master)
    assert written.count("\r\x1b[K") == 3 and written.count("\n") == 1 and "█" * 20 + " round 2/2" in written


def test_rows_come_back_and_a_torn_last_line_does_not(tmp_path):
    metrics = Metrics(tmp_path)
    rows = [{"round": index, "return": index / 3} for index in (1, 2)]
    for row in rows:
        metrics.write(row)
    path = tmp_path / METRICS
    with path.open("a") as file:
        file.write('{"round": 3, "ret')
    assert read_rows(path) == rows and read_rows(tmp_path / "none") == []
    path.write_text('{"round": 1}\n[2]\n')
    with pytest.raises(SinkError, match=r"line 2: found '\[2\]'; expected a JSON object with a round"):
        read_rows(path)


def test_a_file_is_replaced_in_one_step(tmp_path):
    write_text(tmp_path / "a", "one")
    write_text(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two" and len(list(tmp_path.iterdir())) == 1


def test_tensorboard_holds_the_same_numbers_under_the_same_names(tmp_path):
    """Read back by TensorBoard itself; a resumed run takes back what lies ahead of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        def write(done, *rows):
            sink = TensorBoardSink(tmp_path / "tensorboard", done + 1)
            for row in rows:
                sink.round(row)
            sink.event(event("run", True, 2, took=1.0))
            sink.close()

        write(0, {"round": 1, "return": 0.5, "kl": 0.25}, {"round": 2, "return": 9.0, "kl": 9.0})
        write(1, {"round": 2, "return": 1.5, "kl": 0.125})
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["kl", "return", "round"]
    assert [(event.step, event.value) for event in events.Scalars("return")] == [(1, 0.5), (2, 1.5)]


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert esper.__main__.main(["train", "--tensorboard", "true", "--out", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
    expected = "esper train: --tensorboard true: needs tensorboard; pip install 'esper-growth[tensorboard]'\n"
    assert capsys.readouterr().err == expected


class FakeTqdm:
    """What of tqdm is used, by its documentation: ``n`` counts, ``update`` adds, ``set_postfix_str`` tells."""

    made: ClassVar[list] = []

    def __init__(self, total, unit, file, initial):
        self.total, self.unit, self.n, self.told, self.closed = total, unit, initial, [], False
        self.made.append(self)

    def set_postfix_str(self, text, refresh):
        self.told.append(text)

    def update(self, more):
        self.n += more

    def close(self):
        self.closed = True


def test_tqdm_counts_the_rounds_and_goes_on_where_a_run_was_resumed(monkeypatch):
    module = types.ModuleType("tqdm.auto")
    module.tqdm = FakeTqdm
    monkeypatch.setitem(sys.modules, "tqdm.auto", module)
    monkeypatch.setitem(sys.modules, "tqdm", types.ModuleType("tqdm"))
    FakeTqdm.made.clear()
    out = io.StringIO()
    progress = make_progress("tqdm", "round", out)
    progress.note("playing")
    progress.show(4, 6, "return 1", 9.0)
    progress.show(6, 6, "return 2", 0.0)
    progress.close()
    (bar,) = FakeTqdm.made
    assert (bar.total, bar.unit, bar.n, bar.closed) == (6, "round", 6, True)
    assert bar.told == ["return 1", "return 2"] and out.getvalue() == "playing\n"


def test_tqdm_that_is_not_installed_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert esper.__main__.main(["train", "--progress", "tqdm", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.endswith("needs tqdm; pip install 'esper-growth[tqdm]'\n")
    assert not (tmp_path / "x").exists()
