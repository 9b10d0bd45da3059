"""``esper docs``: what it lists, shows, copies and builds."""

import importlib.util
import io
import pkgutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from docs_texts import FOLDER, PACKAGE, text_of

import esper
from esper.__main__ import main
from esper.docs.command import documents, modules_of
from esper.nissa.sinks.record import SinkError
from esper.simic.utility import growth as described


def said(*words):
    out = io.StringIO()
    return documents(words, out), out.getvalue()


def test_every_document_is_listed_by_its_title_and_shown_as_it_is():
    status, listed = said("list")
    names = {line.split()[0] for line in listed.splitlines()}
    assert status == 0 and names == {path.stem for path in FOLDER.glob("*.md")} | {"changelog"}
    for name in names:
        path = PACKAGE / "CHANGELOG.md" if name == "changelog" else FOLDER / f"{name}.md"
        assert text_of(path).startswith("# ") and text_of(path).splitlines()[0][2:] in listed
        assert said("show", name) == (0, text_of(path))


def test_an_export_holds_the_same_bytes(tmp_path):
    status, told = said("export", str(tmp_path / "new" / "place"))
    written = {path for path in (tmp_path / "new" / "place").rglob("*") if path.is_file()}
    assert status == 0 and {Path(line) for line in told.splitlines()} == written
    for path in written:
        relative = path.relative_to(tmp_path / "new" / "place")
        source = PACKAGE / "CHANGELOG.md" if relative.name == "CHANGELOG.md" else FOLDER / relative
        assert path.read_bytes() == source.read_bytes()
    assert len(written) >= 13


@pytest.mark.parametrize(
    "words",
    [
        *(["list", "more"], ["show"], ["show", "nothing"], ["export"], ["api"], ["nothing"], []),
        ["show", "guide", "--modules", "esper.engine"],
    ],
)
def test_other_words_are_one_line(words, capsys):
    assert main(["docs", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_place_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "taken").touch()
    assert main(["docs", "export", str(tmp_path / "taken")]) == 2
    assert "expected a directory that can be written" in capsys.readouterr().err


def test_without_pdoc_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pdoc", None)
    with pytest.raises(SinkError, match=r"docs api: needs pdoc; pip install 'esper-growth\[docs\]'"):
        documents(["api", str(tmp_path)], io.StringIO())


def test_a_package_s_modules_are_those_of_its_files():
    """As Python itself finds them, without importing any."""
    found = {each.name for each in pkgutil.walk_packages([str(PACKAGE / "leyline")], "esper.leyline.")}
    assert {*modules_of("esper.leyline")} == found | {"esper.leyline"} and "esper.leyline.stages" in found
    assert modules_of("esper.version") == ["esper.version"]
    whole = modules_of("esper")
    assert len(whole) == len({*whole}) > 300 and {"esper", "esper.__main__", "esper.docs.command"} <= {*whole}


class Text(HTMLParser):
    """A page's text, and the ends that links into it may have."""

    def __init__(self):
        super().__init__()
        self.ids, self.words = set(), []

    def handle_starttag(self, tag, attrs):
        self.ids |= {value for name, value in attrs if name == "id"}

    def handle_data(self, data):
        self.words += data.split()


def page(path):
    found = Text()
    found.feed(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.skipif(importlib.util.find_spec("pdoc") is None, reason="pdoc")
def test_the_reference_has_the_public_names_with_their_docstrings(tmp_path, capsys):
    """Of two packages, which are quick; ``.ci/run`` builds all."""
    assert main(["docs", "api", str(tmp_path / "api"), "--modules", "esper.leyline.stages,esper.simic.utility"]) == 0
    told = capsys.readouterr().out
    assert "left out" not in told and "index.html" in told
    stages = page(tmp_path / "api" / "esper" / "leyline" / "stages.html")
    assert {"Stage", "Stage.FOSSILIZED"} <= stages.ids
    utility = page(tmp_path / "api" / "esper" / "simic" / "utility.html")
    assert {"growth", "own_price", "utility"} <= utility.ids
    words = " ".join(utility.words)
    assert described.__doc__.split("\n")[0] in words and "Arguments:" in words
    assert esper.__version__ in words


@pytest.mark.skipif(importlib.util.find_spec("pdoc") is None, reason="pdoc")
@pytest.mark.parametrize("name", ["os", "esper.nothing", "esper.leyline,json", ""])
def test_other_modules_are_refused(name, tmp_path, capsys):
    assert main(["docs", "api", str(tmp_path), "--modules", name]) == 2
    assert "expected modules of esper" in capsys.readouterr().err
