"""The throughput of a machine as text and as a chart that stands alone."""

import math
from collections.abc import Sequence
from typing import Any

from esper.bench.report import header, number
from esper.bench.throughput import LOADS, Row
from esper.nissa.frame import BOTTOM, LEFT, RIGHT, TOP, Frame, label, span, text
from esper.nissa.markup import Markup, element, join, plain

HEADS = ("E", "slots", "ms", "env. steps/s", "SGD steps/s", "samples/s", "peak MB", "% of matmul", "repeats")
WIDTHS = (5, 12, 10, 13, 12, 10, 9, 12, 8)

NOTES = """\
an environment step is a decision and an epoch: SGD steps of every host, and validation with counterfactuals;
ms: of all environments, the median; SGD steps: of one host; samples: trained; peak: of the process, or of the GPU;
matmul: multiply-adds of training and plain validation over those of a large matrix product in the same time
"""

WIDTH, HEIGHT = 640.0, 360.0
COLOURS = ("#3867d6", "#c0392b")
STYLE = (
    "svg{background:#fff;font:12px sans-serif;fill:#333}.grid{stroke:#ddd}.axis{stroke:#333}"
    ".tick,.name{fill:#555}.line{fill:none;stroke-width:2}"
)


def table(facts: dict[str, Any], settings: dict[str, Any], rows: Sequence[Row]) -> str:
    """Everything, for people."""
    lines = [header(facts, settings), f"instruction set: {facts['instruction_set']}\n\n", _cells(HEADS)]
    for row in rows:
        if row.missing is not None:
            lines.append(_cells((str(row.envs), row.load)) + f"  {row.missing}\n")
            continue
        rates = (number(value) for value in (row.env_steps, row.sgd_steps, row.samples))
        cells = (f"{row.milliseconds:.2f}", *rates, f"{row.peak_bytes / 1e6:.0f}", f"{100 * row.of_matrix_rate:.1f}")
        lines.append(_cells((str(row.envs), row.load, *cells, str(row.repeats))))
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines) + NOTES


def _cells(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=False)).rstrip()


def chart(title: str, rows: Sequence[Row]) -> str:
    """Environment steps a second over the number of environments, both axes logarithmic, as an SVG file's text."""
    seen = [row for row in rows if row.missing is None]
    across, up = ([math.log10(value) for value in column] for column in zip(*_points(seen), strict=True))
    frame = Frame(span("", across), span("", up, (math.floor(min(up)), math.ceil(max(up)))), WIDTH, HEIGHT)
    parts = [_axes(frame, sorted({row.envs for row in seen}))]
    for place, (load, colour) in enumerate(zip(LOADS, COLOURS, strict=True)):
        points = [(frame.at_x(math.log10(x)), frame.at_y(math.log10(y))) for x, y in _points(seen, load)]
        if not points:
            continue
        path = "M" + "L".join(f"{plain(x)} {plain(y)}" for x, y in points)
        parts.append(element("path", d=path, class_="line", stroke=colour))
        parts += [element("circle", cx=x, cy=y, r=4, fill=colour) for x, y in points]
        parts.append(text(WIDTH - RIGHT - 8, HEIGHT - BOTTOM - 12 - 18 * place, load, "end", fill=colour))
    said = "; ".join(f"{row.envs} {row.load}: {row.env_steps:.0f}" for row in seen)
    head = (element("title", title), element("desc", said), element("style", Markup(STYLE)))
    box = f"0 0 {plain(WIDTH)} {plain(HEIGHT)}"
    drawn = element("svg", *head, *parts, viewBox=box, role="img", aria_label=title)
    return str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _points(rows: Sequence[Row], load: str | None = None) -> list[tuple[float, float]]:
    return [(row.envs, row.env_steps) for row in rows if load in (None, row.load)]


def _axes(frame: Frame, envs: Sequence[int]) -> Markup:
    bottom, right, parts = HEIGHT - BOTTOM, WIDTH - RIGHT, list[Markup]()
    for count in envs:
        x = frame.at_x(math.log10(count))
        parts.append(element("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="grid"))
        parts.append(text(x, bottom + 16, f"{count}", class_="tick"))
    for power in range(math.ceil(frame.y.low), math.floor(frame.y.high) + 1):
        y = frame.at_y(power)
        parts.append(element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(text(LEFT - 6, y + 4, label(10.0**power), "end", class_="tick"))
    parts.append(element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(text((LEFT + right) / 2, HEIGHT - 8, "environments (log scale)", class_="name"))
    middle = (TOP + bottom) / 2
    turn = f"rotate(-90 13 {plain(middle)})"
    return join(*parts, text(13, middle, "environment steps per second (log scale)", transform=turn, class_="name"))
