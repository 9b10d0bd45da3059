"""``esper store``: what it lists, gets, verifies, collects and invalidates; whatever is wrong is one line."""

import io
import json

import pytest

from esper.__main__ import main
from esper.runtime.store import artefact_store
from esper.urza.store import StoreSettings, open_store

GOOD = {"kind": "program", "name": "conv", "version": "1", "validated": True}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("FOLDER", "REDIS", "SQL", "OBJECTS"):
        monkeypatch.delenv(f"ESPER_STORE_{name}", raising=False)
    return str(tmp_path / "store")


@pytest.fixture
def ids(folder):
    with open_store(StoreSettings(folder)) as store:
        return [store.put(b"abc", GOOD), store.put(b"abcd", {"name": "a\nb", "version": "2"})]


def told(folder, *words):
    out = io.StringIO()
    status = artefact_store([*words, "--folder", folder], out)
    return status, out.getvalue().splitlines()


def test_lists_and_narrows(folder, ids):
    status, lines = told(folder, "ls")
    assert status == 0 and lines[-1] == "2 artefacts, 7 B" and lines[0].startswith(ids[0][:12])
    assert lines[0].endswith("  validated      program/conv/1") and lines[1].endswith("  not validated  /a\\nb/2")
    assert len(told(folder, "ls", "--version", "2")[1]) == 2 == len(told(folder, "ls", "--prefix", "program/")[1])
    found = json.loads("\n".join(told(folder, "ls", "--json")[1]))
    assert [each["id"] for each in found["entries"]] == ids and found["entries"][0]["facts"] == GOOD


def test_gets_by_id_and_by_its_beginning(folder, ids, tmp_path):
    for id in (ids[0], ids[0][:8]):
        status, lines = told(folder, "get", id, "--to", str(tmp_path / "out"))
        assert status == 0 and lines[0].startswith(ids[0]) and (tmp_path / "out").read_bytes() == b"abc"


def test_verifies_and_says_so_by_its_status(folder, ids, tmp_path):
    assert told(folder, "verify") == (0, ["2 artefacts, 0 damaged, 0 of them repaired"])
    (tmp_path / "store" / "objects" / "v1" / ids[0][:2] / ids[0]).write_bytes(b"abd")
    status, lines = told(folder, "verify")
    assert status == 1 and lines == [
        f"objects: {ids[0]}: its object was altered",
        "2 artefacts, 1 damaged, 0 of them repaired",
    ]


def test_invalidates_and_collects(folder, ids):
    assert told(folder, "invalidate", "--version", "1") == (0, [ids[0], "1 artefacts invalidated"])
    line = "0 objects without an entry removed (0 B), 1 are younger than 86400 s, 0 leftovers removed"
    assert told(folder, "gc") == (0, [line])
    assert told(folder, "gc", "--grace", "0")[1][0].startswith("1 objects without an entry removed (3 B), 0 are")
    assert told(folder, "ls")[1][-1] == "1 artefacts, 4 B"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["frobnicate"], "expected|invalid choice"),
        (["get", "x" * 70], "expected --to FILE"),
        (["get", "--to", "x"], "get: expected an id"),
        (["ls", "x"], "ls: expected no id"),
        (["get", "0" * 64, "--to", "x"], "unknown: 0+: not in this store"),
        (["get", "../../etc/passwd", "--to", "x"], "no id; expected 64 hexadecimal digits"),
        (["gc", "--grace", "nan"], "expected seconds from 0"),
        (["invalidate"], "expected --prefix TEXT, --version TEXT, or both"),
        (["ls", "--sql", "mysql://u:geheim@h/x"], "mysql://h/x: expected sqlite:///PATH or postgresql"),
    ],
)
def test_what_is_wrong_is_one_line(folder, words, expected, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if "--sql" in words:
        pytest.importorskip("sqlalchemy")
    assert main(["store", *words, "--folder", folder]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("esper store: ") and "geheim" not in error
    assert pytest.importorskip("re").search(expected, error), error


def test_get_into_no_place_is_one_line(folder, ids, tmp_path, capsys):
    assert main(["store", "get", ids[0], "--to", str(tmp_path / "no" / "x"), "--folder", folder]) == 2
    assert "expected a place for a file" in capsys.readouterr().err
