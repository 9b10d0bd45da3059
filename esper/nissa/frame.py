"""Frames: a plot's area with its axes, grid, ticks and labels, and the map from data to pixels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from esper.nissa.markup import Markup, element, join, plain

LEFT, RIGHT, TOP, BOTTOM = 66.0, 14.0, 10.0, 44.0
"""Margins around the area, for tick labels and the axes' names."""


LARGEST = 1e300
"""Values beyond which differences of two would be infinite; they are not shown."""


class Axis(NamedTuple):
    """A range of numbers with its name; ``low < high``."""

    name: str
    low: float
    high: float


class Frame(NamedTuple):
    """A plot of ``width`` x ``height`` pixels with its two axes."""

    x: Axis
    y: Axis
    width: float
    height: float
    left: float = LEFT

    def at_x(self, value: float) -> float:
        """Pixel of an x value."""
        share = (value - self.x.low) / (self.x.high - self.x.low)
        return self.left + share * (self.width - self.left - RIGHT)

    def at_y(self, value: float) -> float:
        """Pixel of a y value; upwards."""
        share = (value - self.y.low) / (self.y.high - self.y.low)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)


def span(name: str, values: Sequence[float], include: Sequence[float] = ()) -> Axis:
    """An axis that shows all values up to ``LARGEST``, with a little room; ``include`` without room."""
    sound = [value for value in values if abs(value) <= LARGEST]
    whole = [*sound, *include]
    if not whole:
        return Axis(name, 0.0, 1.0)
    low, high = min(whole), max(whole)
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    low = low if low in include else low - room
    return Axis(name, low, high if high in include and high > low else high + room)


def ticks(axis: Axis, about: int, whole: bool = False) -> list[float]:
    """Round numbers within an axis: multiples of 1, 2 or 5 times a power of ten; of one point, that point.

    Args:
      axis: the range.
      about: how many, roughly.
      whole: integers only.

    Returns:
      the numbers; of a range without extent its one number.
    """
    if not axis.high > axis.low:
        return [axis.low]
    rough = (axis.high - axis.low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.7 * rough)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def label(value: float) -> str:
    """A tick's text."""
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4f}".rstrip("0").rstrip(".")


def text(x: float, y: float, words: str, anchor: str = "middle", **attributes: str | float | None) -> Markup:
    """Words at a point; ``anchor`` is start, middle or end."""
    return element("text", words, x=x, y=y, text_anchor=anchor, **attributes)


def grid(frame: Frame, whole_x: bool = False, y_ticks: int = 5) -> Markup:
    """Grid lines with their numbers, and the names of both axes; an axis without a name has no numbers."""
    bottom, right, parts = frame.height - BOTTOM, frame.width - RIGHT, []
    if frame.y.name:
        for value in ticks(frame.y, y_ticks):
            y = frame.at_y(value)
            parts.append(element("line", x1=frame.left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(text(frame.left - 6, y + 4, label(value), "end", class_="tick"))
        middle = (TOP + bottom) / 2
        turn = f"rotate(-90 13 {plain(middle)})"
        parts.append(text(13, middle, frame.y.name, transform=turn, class_="name"))
    if frame.x.name:
        for value in ticks(frame.x, int((right - frame.left) / 70), whole_x):
            x = frame.at_x(value)
            parts.append(element("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="grid"))
            parts.append(text(x, bottom + 16, label(value), class_="tick"))
        parts.append(text((frame.left + right) / 2, frame.height - 8, frame.x.name, class_="name"))
    parts.append(element("line", x1=frame.left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    return join(*parts)


def picture(frame: Frame, title: str, description: str, *parts: Markup) -> Markup:
    """The whole as an ``svg`` with a title and a description for those who cannot see it."""
    inside = (element("title", title), element("desc", description), *parts)
    box = f"0 0 {plain(frame.width)} {plain(frame.height)}"
    return element("svg", *inside, viewBox=box, role="img", aria_label=title)
