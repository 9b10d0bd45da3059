"""The frontier as one SVG file: accuracy against parameters, and against FLOPs of training, both on log scales.

Static networks are dots, with a line through those that no smaller (or cheaper) one beats on validation data; all
others are dots. Pointing at a dot names it. Bars are 95 % intervals. Heights are by the logarithm of the error, so that
98 and 99 % are as far apart as 80 and 90.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper.nissa import charts
from esper.nissa.frame import BOTTOM, LEFT, RIGHT, TOP, Axis, Frame, span, text
from esper.nissa.markup import Markup, element, join, plain

WIDTH, HEIGHT, KEY = 760.0, 380.0, 26.0
"""Pixels of a panel, and of the line that says which colour is which."""

COLOURS = {"static": 7, "joint": 5, "grown": 2, "policy": 1, "pruned": 6, "gromo": 3}
"""Of the page's style, by kind."""

LEAST_ERROR = 0.1
"""Percentage points of error below which heights do not tell accuracies apart."""

ACCURACIES = (10, 20, 40, 50, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99, 99.5)
"""Percentages that the axis shows, where they are not closer than its words are high."""

STYLE = Path(charts.__file__).with_name("style.css")

STROKES = "".join(f".whisker.c{n} {{ stroke: var(--c{n}); }} " for n in range(8)) + "svg { background: var(--paper); }"

Row = dict[str, Any]
"""A contender's figures, as ``frontier_report.figures`` gives them."""


def frontier(rows: Sequence[Row], by: str) -> list[Row]:
    """Static networks that no smaller or cheaper one beats on validation data, by ``by`` ascending."""
    found = list[Row]()
    for row in sorted((row for row in rows if row["kind"] == "static"), key=lambda row: (row[by], -row["validation"])):
        if not found or row["validation"] > found[-1]["validation"]:
            found.append(row)
    return found


def log_ticks(axis: Axis) -> list[tuple[float, str]]:
    """1, 2 and 5 times powers of ten within an axis of decimal logarithms: place and words."""
    powers = range(math.floor(axis.low), math.ceil(axis.high) + 1)
    values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [(math.log10(value), f"{value:,g}") for value in values if axis.low <= math.log10(value) <= axis.high]


def height_of(accuracy: float) -> float:
    """Place of an accuracy in percent on its axis: minus the decimal logarithm of the error in percentage points."""
    return -math.log10(max(100.0 - accuracy, LEAST_ERROR))


def accuracy_ticks(frame: Frame) -> list[tuple[float, str]]:
    """Pixel and words of the accuracies that are shown, from the highest down."""
    found = list[tuple[float, str]]()
    for accuracy in reversed(ACCURACIES):
        place = height_of(accuracy)
        pixel = frame.at_y(place)
        if frame.y.low <= place <= frame.y.high and (not found or pixel - found[-1][0] >= 18):
            found.append((pixel, f"{accuracy:g}"))
    return found


def _axes(frame: Frame, name: str) -> Markup:
    """Grid lines with their numbers, and the names of both axes."""
    bottom, right, parts = frame.height - BOTTOM, frame.width - RIGHT, list[Markup]()
    for place, words in log_ticks(frame.x):
        x = frame.at_x(place)
        parts.append(element("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="grid"))
        parts.append(text(x, bottom + 16, words, class_="tick"))
    for y, words in accuracy_ticks(frame):
        parts.append(element("line", x1=frame.left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(text(frame.left - 6, y + 4, words, "end", class_="tick"))
    parts.append(element("line", x1=frame.left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(text((frame.left + right) / 2, frame.height - 8, f"{name} (log scale)", class_="name"))
    middle = (TOP + bottom) / 2
    turn = f"rotate(-90 13 {plain(middle)})"
    return join(*parts, text(13, middle, "test accuracy, % (log scale of the error)", transform=turn, class_="name"))


def _dot(frame: Frame, row: Row, by: str) -> Markup:
    """A mean with its interval."""
    x, kind = frame.at_x(math.log10(row[by])), f"c{COLOURS[row['kind']]}"
    mean, half = row["test"]["mean"], row["test"]["half_width"]
    low, high = frame.at_y(height_of(mean - half)), frame.at_y(height_of(mean + half))
    words = f"{row['name']}: {mean:.2f} ± {half:.2f} %, {row['params']:,.0f} parameters, {row['gflops']:.3g} GFLOP"
    ends = [element("line", x1=x - 3, x2=x + 3, y1=y, y2=y, class_=f"whisker {kind}") for y in (low, high)]
    bar = element("line", x1=x, x2=x, y1=low, y2=high, class_=f"whisker {kind}")
    return join(
        bar,
        *ends,
        element("circle", element("title", words), cx=x, cy=frame.at_y(height_of(mean)), r=4.5, class_=f"dot {kind}"),
    )


def panel(rows: Sequence[Row], by: str, name: str) -> Markup:
    """One panel, as an ``svg`` of its own size."""
    logs = [math.log10(row[by]) for row in rows]
    ends = [height_of(row["test"]["mean"] + sign * row["test"]["half_width"]) for row in rows for sign in (-1, 1)]
    frame = Frame(span("", logs), span("", ends), WIDTH, HEIGHT)
    line = [(frame.at_x(math.log10(row[by])), frame.at_y(height_of(row["test"]["mean"]))) for row in frontier(rows, by)]
    path = "M" + "L".join(f"{plain(x)} {plain(y)}" for x, y in line)
    dots = [_dot(frame, row, by) for row in sorted(rows, key=lambda row: row["kind"] != "static")]
    return join(_axes(frame, name), element("path", d=path, class_="line c7 d0"), *dots)


def _legend(rows: Sequence[Row]) -> Markup:
    parts, x = list[Markup](), LEFT
    for kind, colour in COLOURS.items():
        if any(row["kind"] == kind for row in rows):
            parts.append(element("circle", cx=x, cy=14, r=5, class_=f"dot c{colour}"))
            parts.append(text(x + 10, 18, kind, "start"))
            x += 90
    return join(*parts)


def chart(rows: Sequence[Row], title: str) -> str:
    """Both panels, one above the other, as a file that stands alone."""
    panels = (("params", "parameters of the final network"), ("gflops", "GFLOP of training"))
    parts = [
        element("g", panel(rows, by, name), transform=f"translate(0 {plain(KEY + index * HEIGHT)})")
        for index, (by, name) in enumerate(panels)
    ]
    said = "; ".join(f"{row['name']} {row['test']['mean']:.2f} ± {row['test']['half_width']:.2f} %" for row in rows)
    head = (element("title", title), element("desc", said), element("style", Markup(STYLE.read_text() + STROKES)))
    box = f"0 0 {plain(WIDTH)} {plain(KEY + 2 * HEIGHT)}"
    drawn = element("svg", *head, _legend(rows), *parts, viewBox=box, role="img", aria_label=title)
    return str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
