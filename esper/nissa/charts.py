"""Charts as SVG: lines, stacked areas, intervals, and predictions beside outcomes.

Each takes its numbers as plain lists and returns one ``svg``. Colours are classes (``c0`` to ``c7``) of the page's
style; lines differ by dashes as well.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from esper.nissa.frame import BOTTOM, TOP, Axis, Frame, grid, picture, span, text
from esper.nissa.markup import Markup, element, join, plain

WIDTH, HEIGHT = 520.0, 250.0
"""Pixels of a chart, before it is scaled to its column."""


COLOURS = 8
"""Colours of the page's style."""


class Series(NamedTuple):
    """Named numbers in one colour; None = that of the series' place."""

    name: str
    values: Sequence[float]
    colour: int | None = None


def colour(series: Series, place: int) -> str:
    """Class of a series' colour."""
    return f"c{place % COLOURS if series.colour is None else series.colour}"


class Interval(NamedTuple):
    """A named mean with the half-width of its confidence interval; the colour is that of what is compared with."""

    name: str
    mean: float
    half_width: float
    colour: int = 7


def line_chart(title: str, x: str, y: str, series: Sequence[Series], include: Sequence[float] = ()) -> Markup:
    """Series over 1, 2, 3, ...

    Args:
      title: what is shown.
      x, y: names of the axes, with units.
      series: all of one length; values that are not finite are gaps.
      include: values that the y axis must show.
    """
    length = max((len(row.values) for row in series), default=0)
    every = [value for row in series for value in row.values]
    frame = Frame(Axis(x, 1, max(length, 2)), span(y, every, include), WIDTH, HEIGHT)
    lines = [_line(frame, row.values, f"line {colour(row, index)} d{index}") for index, row in enumerate(series)]
    names = ", ".join(row.name for row in series)
    return picture(frame, title, f"{y} over {length} of {x}: {names}.", grid(frame, whole_x=True), *lines)


def _line(frame: Frame, values: Sequence[float], kind: str) -> Markup:
    """A path that is broken where a value is not finite; single points become dots."""
    points = [(frame.at_x(i), frame.at_y(v)) if math.isfinite(v) else None for i, v in enumerate(values, start=1)]
    words, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        words.append(f"{pen}{plain(point[0])} {plain(point[1])}")
        pen = "L"
    dots = []
    for index, point in enumerate(points):
        alone = points[max(index - 1, 0) : index] + points[index + 1 : index + 2]
        if point is not None and not any(alone):
            dots.append(element("circle", cx=point[0], cy=point[1], r=3, class_=f"dot {kind.split()[1]}"))
    return join(element("path", d="".join(words), class_=kind), *dots)


def stacked_chart(title: str, x: str, y: str, series: Sequence[Series], top: float | None = None) -> Markup:
    """Parts of a whole at 1, 2, 3, ...: one step-shaped area per series, the first at the bottom.

    Args:
      title: what is shown.
      x, y: names of the axes, with units.
      series: all of one length, no value negative.
      top: highest value of the y axis; None = what is needed.
    """
    length = max((len(row.values) for row in series), default=0)
    edges = [[0.0] * length]
    for row in series:
        edges.append([below + value for below, value in zip(edges[-1], row.values, strict=True)])
    y_axis = span(y, edges[-1], (0.0,)) if top is None else Axis(y, 0.0, top)
    frame = Frame(Axis(x, 0.5, max(length, 1) + 0.5), y_axis, WIDTH, HEIGHT)
    areas = [
        _area(frame, edges[index], edges[index + 1], f"area {colour(row, index)}") for index, row in enumerate(series)
    ]
    names = ", ".join(row.name for row in series)
    return picture(frame, title, f"{y} at {length} of {x}, bottom to top: {names}.", grid(frame, True), *areas)


def _area(frame: Frame, low: Sequence[float], high: Sequence[float], kind: str) -> Markup:
    forth = [(i + side, value) for i, value in enumerate(high) for side in (0.5, 1.5)]
    back = [(i + side, value) for i, value in reversed(list(enumerate(low))) for side in (1.5, 0.5)]
    points = " ".join(f"{plain(frame.at_x(x))},{plain(frame.at_y(y))}" for x, y in [*forth, *back])
    return element("polygon", points=points, class_=kind)


def interval_chart(
    title: str, x: str, rows: Sequence[Interval], mark: float | None = None, left: float = 110.0
) -> Markup:
    """Means with their intervals, one row each; a row that is not finite has its name and no mark.

    Args:
      title: what is shown.
      x: name of the axis, with its unit.
      rows: from top to bottom.
      mark: a value to draw a vertical line at, such as "no difference".
      left: pixels for the rows' names.
    """
    ends = [row.mean + sign * row.half_width for row in rows for sign in (-1, 1)]
    height = TOP + BOTTOM + 30 * len(rows)
    frame = Frame(span(x, [*ends, *([] if mark is None else [mark])]), Axis("", 0.0, len(rows)), WIDTH, height, left)
    parts = [grid(frame)]
    if mark is not None:
        at = frame.at_x(mark)
        parts.append(element("line", x1=at, x2=at, y1=TOP, y2=height - BOTTOM, class_="mark"))
    for index, row in enumerate(rows):
        y, kind = frame.at_y(len(rows) - index - 0.5), f"c{row.colour}"
        low, high = frame.at_x(row.mean - row.half_width), frame.at_x(row.mean + row.half_width)
        parts.append(text(frame.left - 10, y + 4, row.name, "end", class_="row"))
        if not math.isfinite(row.mean + row.half_width):
            continue
        words = f"{row.name}: {row.mean:.2f} ± {row.half_width:.2f}"
        bar = element("line", x1=low, x2=high, y1=y, y2=y, class_=f"whisker {kind}")
        ends_ = [element("line", x1=at, x2=at, y1=y - 5, y2=y + 5, class_=f"whisker {kind}") for at in (low, high)]
        dot = element("circle", element("title", words), cx=frame.at_x(row.mean), cy=y, r=5, class_=f"dot {kind}")
        parts += [bar, *ends_, dot]
    sound = [row for row in rows if math.isfinite(row.mean + row.half_width)]
    return picture(frame, title, "; ".join(f"{r.name} {r.mean:.2f} ± {r.half_width:.2f}" for r in sound), *parts)


def identity_chart(title: str, x: str, y: str, points: Sequence[tuple[float, float, float | None]]) -> Markup:
    """Outcomes beside predictions, with the line on which they agree.

    Args:
      title: what is shown.
      x, y: names of the axes, with units.
      points: prediction, outcome, and the outcome's half-width where there is one.
    """
    ends = [outcome + sign * (half or 0.0) for _, outcome, half in points for sign in (-1, 1)]
    both = span("", [*(prediction for prediction, _, _ in points), *ends])
    frame = Frame(both._replace(name=x), both._replace(name=y), WIDTH, HEIGHT + 90)
    low, high = both.low, both.high
    parts = [
        grid(frame),
        element(
            "line", x1=frame.at_x(low), y1=frame.at_y(low), x2=frame.at_x(high), y2=frame.at_y(high), class_="mark"
        ),
    ]
    for prediction, outcome, half in points:
        at = frame.at_x(prediction)
        if half is not None:
            low_y, high_y = frame.at_y(outcome - half), frame.at_y(outcome + half)
            parts.append(element("line", x1=at, x2=at, y1=low_y, y2=high_y, class_="whisker c0"))
        words = element("title", f"predicted {prediction:.2f}, realised {outcome:.2f}")
        parts.append(element("circle", words, cx=at, cy=frame.at_y(outcome), r=5, class_="dot c0"))
    return picture(frame, title, f"{len(points)} groups; the line is where both agree.", *parts)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last ``window`` values up to each; NaN before there are as many, and where one of them is."""
    ends = range(1, len(values) + 1)
    return [sum(values[end - window : end]) / window if end >= window else math.nan for end in ends]
