"""The report's part on the frontier: what lies beside a run is shown, whole, once, and for its task only."""

import base64
import json
import re
from pathlib import Path

import pytest

from esper.runtime.report_frontier import frontier_folder, frontier_section, put_frontier

CHART = '<svg xmlns="http://www.w3.org/2000/svg"><title>a & b</title></svg>\n'
ROW = {"name": "cnn <4>", "kind": "static", "params": 1442.0, "test": {"mean": 98.125, "half_width": 0.25}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with a report, and a frontier of the digits beside it."""
    beside, run = frontier_folder(tmp_path, "digits"), tmp_path / "mine"
    for folder in (beside, run):
        folder.mkdir()
    found = {"task": "digits", "envs": 16, "epochs": 25, "rows": [ROW | {"gflops": 3.778}]}
    (beside / "frontier.json").write_text(json.dumps(found))
    (beside / "frontier.svg").write_text(CHART)
    (run / "report.html").write_text("<html><main><p>before</p></main></html>\n")
    return run


def test_chart_and_figures_are_shown(run: Path) -> None:
    (picture,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', frontier_section(run, "digits"))
    assert base64.b64decode(picture).decode() == CHART
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", frontier_section(run, "digits"))
    assert cells[-5:] == ["cnn &lt;4&gt;", "static", "1,442", "98.12 ± 0.25", "3.78"]


def test_another_tasks_is_not(run: Path) -> None:
    assert frontier_section(run, "chars") == ""
    beside = frontier_folder(run.parent, "digits")
    beside.rename(frontier_folder(run.parent, "idx:/one"))
    assert frontier_section(run, "digits") == frontier_section(run, "idx:/two") == ""


def test_a_run_of_several_tasks_shows_what_there_is(run: Path) -> None:
    assert frontier_section(run, "chars,digits").count("<figure>") == 1


def test_a_report_takes_the_part_once(run: Path) -> None:
    put_frontier(run, "digits")
    once = (run / "report.html").read_text()
    assert "before" in once and once.count('<section id="frontier">') == 1
    put_frontier(run, "digits")
    assert (run / "report.html").read_text() == once
    assert once.replace(frontier_section(run, "digits"), "") == "<html><main><p>before</p></main></html>\n"
