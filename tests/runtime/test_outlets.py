"""A run goes on without what it cannot write: one warning, a letter, and a second chance from the command line."""

import errno
import io
import json
import os
import subprocess

import pytest

import esper.__main__
from esper.runtime import outlets as module
from esper.runtime.dlq import dead_letters
from esper.runtime.outlets import Outlets
from esper.urza.dead_letters import FILE, DeadLetters
from esper.utils import failpoints
from esper.utils.settings import SettingsError


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
    """The queue took its room before."""
    warned = []
    outlets = Outlets(small_disk, warn=warned.append)
    page = os.urandom(100_000).hex()
    fill(small_disk)
    for _ in range(2):
        outlets.write(small_disk / "report.html", page)
    outlets.write(small_disk / "evaluation.json", page[:90_000])
    outlets.close()
    assert {path.name for path in small_disk.iterdir()} == {FILE, "ballast"}
    assert [line.split(": ")[:2] for line in warned] == [
        [str(small_disk / name), "disk full"] for name in ("report.html", "evaluation.json")
    ]
    assert warned[0].endswith(f"the run goes on, what was to be written is kept: esper dlq retry {small_disk}")
    listed = said("ls", small_disk)
    assert f"{small_disk}: 2 waiting, 0 done, 0 dropped\n" in listed and "remedy: free some space" in listed

    (small_disk / "ballast").unlink()
    assert said("retry", small_disk).count(": done\n") == 2
    assert (small_disk / "report.html").read_text() == page
    assert (small_disk / "evaluation.json").read_text() == page[:90_000]
    assert said("ls", small_disk) == f"{small_disk}: 0 waiting, 2 done, 0 dropped\n"


def failing(count, number=errno.EIO):
    """A writer of text whose first so many calls fail."""
    left = [count]

    def write(path, text):
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        path.write_text(text)

    return write


def test_a_letter_that_fails_again_waits_on(tmp_path, monkeypatch, capsys):
    outlets = Outlets(tmp_path, warn=lambda line: None)
    monkeypatch.setattr(module, "write_text", failing(1))
    outlets.write(tmp_path / "report.html", "page")
    outlets.close()
    for point in ("write", "rename"):
        with failpoints.awaiting(failpoints.Fault(point, "eio")):
            assert esper.__main__.main(["dlq", "retry", str(tmp_path)]) == 2
        assert capsys.readouterr().err == "esper dlq: 1 of 1 failed again, and wait\n"
    (facts,) = json.loads(said("ls", tmp_path, "--json"))
    assert facts["waiting"][0]["attempts"] == 3 and facts["waiting"][0]["cause"] == "disk fails"
    assert said("retry", tmp_path, "--letter", 1).endswith(": done\n")
    assert (tmp_path / "report.html").read_text() == "page"


def test_a_file_that_is_written_later_takes_its_letters_place(tmp_path, monkeypatch):
    outlets = Outlets(tmp_path, warn=lambda line: None)
    monkeypatch.setattr(module, "write_text", failing(1))
    for text in ("old", "new"):
        outlets.write(tmp_path / "report.html", text)
    outlets.close()
    assert said("retry", tmp_path) == "no dead letters\n" and (tmp_path / "report.html").read_text() == "new"


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
