"""The report's part on static networks and grown ones: the chart of ``bench.frontier``, where it was made for the task.

It lies beside the run directory, as ``frontier-<task>``: a chart, ``frontier.svg``, and its figures, ``frontier.json``.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from esper.nissa import page
from esper.nissa.markup import Markup, element, join
from esper.nissa.sinks import write_text
from esper.runtime.scene import tasks_of

NAME = "frontier"
"""Stem of its files, and name of the report's part."""

HEADS = ("network", "kind", "parameters", "test accuracy, %", "GFLOP of training")


def frontier_folder(runs: Path, task: str) -> Path:
    """Where the frontier of a task lies, beside its runs."""
    return runs / f"{NAME}-{task.partition(':')[0]}"


def frontier_section(folder: Path, task: str) -> Markup:
    """What was found for the tasks of a run; empty where nothing was.

    Args:
      folder: run directory.
      task: its tasks, with commas between.
    """
    parts = [_chart(frontier_folder(folder.absolute().parent, each), each) for each in tasks_of(task)]
    if not any(parts):
        return Markup("")
    remark = (
        "Each with the same SGD steps and data, at its best rate by validation; accuracies are the test part's, bars "
        "are 95 % intervals over initialisations."
    )
    heading = element("h2", "Static and grown networks of all sizes")
    return element("section", heading, page.paragraph(remark, kind="remark"), *parts, id=NAME)


def put_frontier(folder: Path, task: str) -> None:
    """Put the part into the report of a run that has one already, in place of an older one.

    Args:
      folder: run directory, with ``report.html``.
      task: its tasks, with commas between.
    """
    path = folder / "report.html"
    document = re.sub(f'<section id="{NAME}">.*?</section>', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    head, end, tail = document.rpartition("</main>")
    write_text(path, join(Markup(head), frontier_section(folder, task), Markup(end + tail)))


def _chart(folder: Path, task: str) -> Markup:
    """One task's chart and figures; empty unless they are those of the task."""
    figures, chart = folder / f"{NAME}.json", folder / f"{NAME}.svg"
    if not figures.is_file() or not chart.is_file():
        return Markup("")
    found = json.loads(figures.read_text(encoding="utf-8"))
    if found["task"] != task:
        return Markup("")
    title = f"Test accuracy against parameters and FLOPs of training, {task}"
    picture = f"data:image/svg+xml;base64,{base64.b64encode(chart.read_bytes()).decode()}"
    caption = f"{found['envs']} initialisations of each, {found['epochs']} epochs; ± 95 %"
    numbers = page.table(HEADS, [_cells(row) for row in found["rows"]], caption)
    return join(page.figure(title, element("img", src=picture, alt=title)), page.details("Numbers", numbers))


def _cells(row: dict[str, Any]) -> list[str]:
    test = f"{row['test']['mean']:.2f} ± {row['test']['half_width']:.2f}"
    return [row["name"], row["kind"], f"{row['params']:,.0f}", test, f"{row['gflops']:.3g}"]
