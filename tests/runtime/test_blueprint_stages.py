"""``esper blueprint compile`` and ``demo``: what they print, what they store, and their exit status."""

import io
import json
from pathlib import Path

import pytest

from esper.__main__ import main
from esper.runtime.blueprint import blueprints
from esper.runtime.blueprint_demo import DOCUMENT, NAME, demo_words
from esper.tezzeret.blueprints import canonical, parse
from esper.tezzeret.stages import NAMES, STAGES
from esper.urza.store import StoreSettings, open_store


def test_stages_are_shown_with_their_times(tmp_path: Path) -> None:
    out, words = io.StringIO(), ["lora", "--site", "vector:8", "--trusted", "--store", str(tmp_path / "store")]
    assert blueprints(["compile", *words], out) == 0
    lines = out.getvalue().splitlines()
    assert len(lines) == len(NAMES) and all(" ms  " in line for line in lines)
    assert [line[:3] for line in lines if line[0] == "("] == [f"({n})" for n in range(1, 8)]
    out = io.StringIO()
    assert blueprints(["compile", *words, "--json"], out) == 0
    found = json.loads(out.getvalue())
    assert lines[-1].endswith(found["id"]) and [row["stage"] for row in found["stages"]] == list(NAMES)
    assert all(row["facts"] == {"cached": found["id"][:16]} for row in found["stages"][2:])


def test_a_failure_is_a_line_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(DOCUMENT | {"cases": []}))
    store = str(tmp_path / "store")
    assert main(["blueprint", "compile", str(path), "--trusted", "--store", store]) == 1
    assert capsys.readouterr().out.startswith(f"(1) {STAGES[0]}")
    with open_store(StoreSettings(folder=store)) as opened:
        assert opened.list() == ()
    for words in (["nowhere.json"], ["lora", "--site", "x"], ["lora", "--backend", "x"], []):
        assert main(["blueprint", "compile", *words, "--store", store]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_later_is_a_request(tmp_path: Path) -> None:
    out, store = io.StringIO(), str(tmp_path / "store")
    assert blueprints(["compile", "lora", "--later", "--store", store], out) == 0
    with open_store(StoreSettings(folder=store)) as opened:
        (request,) = opened.queue.list()
    assert out.getvalue() == f"{request.id}\n" and request.status.value == "proposed"


def test_the_demonstration_grows_what_is_nowhere_but_in_its_document(tmp_path: Path) -> None:
    assert parse(canonical(parse(json.dumps(DOCUMENT).encode(), NAME)), NAME).name == NAME
    out = io.StringIO()
    assert demo_words(["--store", str(tmp_path / "store")], out) == 0
    text = out.getvalue()
    assert all(f"({number}) {name}" in text for number, name in enumerate(STAGES, 1))
    assert "the same output to the bit" in text and "that grew" in text
