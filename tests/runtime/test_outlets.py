"""A run goes on without what it cannot write: one warning, a letter, and a second chance from the command line."""

import errno
import io
import json
import os
import subprocess

import pytest

import esper.__main__
from esper.nissa import sinks
from esper.nissa.sinks import METRICS, Metrics, append_text, read_rows
from esper.runtime import outlets as module
from esper.runtime.dlq import dead_letters
from esper.runtime.outlets import Outlets
from esper.urza.dead_letters import FILE, DeadLetters
from esper.utils.settings import SettingsError

ROWS = [{"round": number, **{f"measure{index}": number / 3 for index in range(150)}} for number in range(1, 8)]
"""More than a page of a file system each."""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("mounts no tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place):
    """Leave not one byte."""
    with (place / "ballast").open("wb", buffering=0) as file:
        for size in (65536, 1):
            try:
                while True:
                    assert file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC


def said(*words):
    out = io.StringIO()
    dead_letters([str(word) for word in words], out)
    return out.getvalue()


def test_a_full_disk_costs_a_warning_and_nothing_is_lost(small_disk):
    """The queue took its room before; with space again, the next row brings those before it along."""
    warned = []
    outlets, metrics = Outlets(small_disk, warn=warned.append), Metrics(small_disk, False, 0)
    metrics.keeper = outlets
    page = os.urandom(100_000).hex()
    metrics.write(ROWS[0])
    fill(small_disk)
    before = (small_disk / METRICS).read_bytes()
    for row in ROWS[1:4]:
        metrics.write(row)
    for _ in range(2):
        outlets.write(small_disk / "report.html", page)
    assert (small_disk / METRICS).read_bytes() == before and not list(small_disk.glob("*.tmp-*"))
    assert [line.split(": ")[:2] for line in warned] == [
        [str(small_disk / METRICS), "disk full"],
        [str(small_disk / "report.html"), "disk full"],
    ]
    assert warned[0].endswith(f"the run goes on, what was to be written is kept: esper dlq retry {small_disk}")
    listed = said("ls", small_disk)
    assert f"{small_disk}: 4 waiting, 0 done, 0 dropped\n" in listed and "remedy: free some space" in listed

    (small_disk / "ballast").unlink()
    metrics.write(ROWS[4])
    metrics.close()
    assert read_rows(small_disk / METRICS) == ROWS[:5]
    assert [letter.target for letter in outlets.letters.waiting()] == ["report.html"]
    outlets.close()
    assert said("retry", small_disk).endswith("file report.html: done\n")
    assert (small_disk / "report.html").read_text() == page
    assert said("ls", small_disk) == f"{small_disk}: 0 waiting, 4 done, 0 dropped\n"


def failing(count, number=errno.EIO):
    """A writer of text whose first so many calls fail."""
    left = [count]

    def write(path, text):
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        path.write_text(text)

    return write


def test_rows_that_were_never_written_come_back_in_their_place(tmp_path, monkeypatch, caplog):
    outlets, metrics = Outlets(tmp_path), Metrics(tmp_path, False, 0)
    metrics.keeper = outlets
    metrics.write(ROWS[0])
    monkeypatch.setattr(sinks, "append_text", failing(10))
    for row in ROWS[1:3]:
        metrics.write(row)
    metrics.close()
    outlets.close()
    monkeypatch.undo()
    append_text(tmp_path / METRICS, json.dumps(ROWS[3]) + "\n")
    assert said("retry", tmp_path).count(": done\n") == 2 and read_rows(tmp_path / METRICS) == ROWS[:4]
    assert len(caplog.messages) == 1 and "disk fails" in caplog.messages[0]


def test_a_letter_that_fails_again_waits_on(tmp_path, monkeypatch, capsys):
    outlets = Outlets(tmp_path, warn=lambda line: None)
    monkeypatch.setattr(module, "write_text", failing(3))
    outlets.write(tmp_path / "report.html", "page")
    outlets.close()
    for _ in range(2):
        assert esper.__main__.main(["dlq", "retry", str(tmp_path)]) == 2
        assert capsys.readouterr().err == "esper dlq: 1 of 1 failed again, and wait\n"
    (facts,) = json.loads(said("ls", tmp_path, "--json"))
    assert facts["waiting"][0]["attempts"] == 3 and facts["waiting"][0]["cause"] == "disk fails"
    assert said("retry", tmp_path, "--letter", 1).endswith(": done\n")
    assert (tmp_path / "report.html").read_text() == "page"


def test_a_moment_of_trouble_is_not_told(tmp_path, monkeypatch):
    warned = []
    outlets = Outlets(tmp_path, warn=warned.append)
    monkeypatch.setattr(module, "write_text", failing(2, errno.EMFILE))
    outlets.write(tmp_path / "report.html", "page")
    outlets.close()
    assert (tmp_path / "report.html").read_text() == "page" and not warned
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_letters_are_dropped_by_name_only(tmp_path):
    queue = DeadLetters(tmp_path / FILE)
    for name in ("a", "b", "c"):
        queue.put("file", name, b"", OSError(errno.EIO, "x"))
    for words in (["drop", tmp_path], ["drop", tmp_path, "--all", "--letter", 1], ["drop", tmp_path, "--letter", 9]):
        with pytest.raises(SettingsError, match="expected"):
            said(*words)
    assert "2  file b: dropped" in said("drop", tmp_path, "--letter", 2)
    assert said("drop", tmp_path, "--all").count(": dropped\n") == 2
    assert said("ls", tmp_path) == f"{tmp_path}: 0 waiting, 0 done, 3 dropped\n"
    assert said("ls", tmp_path / "nowhere") == "no dead letters\n"


@pytest.mark.parametrize(
    ("operation", "target", "payload"),
    [
        ("file", "../outside", b"x"),
        ("file", "/outside", b"x"),
        ("file", ".hidden", b"x"),
        ("file", "a/b", b"x"),
        ("run", "a", b"x"),
        ("round", "1", b'{"round": 2}'),
        ("round", "x", b"{}"),
        ("round", "1", b"noise"),
    ],
)
def test_letters_of_strangers_write_nothing(tmp_path, operation, target, payload, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    DeadLetters(folder / FILE).put(operation, target, payload, OSError(errno.EIO, "x"))
    assert esper.__main__.main(["dlq", "retry", str(folder)]) == 2
    assert "expected" in capsys.readouterr().out
    assert {path.name for path in tmp_path.rglob("*") if FILE not in path.name} == {"run"}


def test_a_run_without_a_queue_says_what_is_lost(tmp_path):
    warned = []
    (tmp_path / FILE).write_bytes(b"noise" * 1000)
    outlets = Outlets(tmp_path, warn=warned.append)
    outlets.write(tmp_path / "no" / "report.html", "page")
    outlets.close()
    assert "what cannot be written from here on is lost" in warned[0] and warned[1].endswith(
        "what was to be written is lost"
    )
