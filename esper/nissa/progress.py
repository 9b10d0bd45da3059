"""Progress: one line that is written over on a terminal, plain lines elsewhere."""

import os
import shutil
from typing import Protocol, TextIO

KINDS = ("auto", "bar", "lines", "off")
"""What ``make_progress`` accepts; auto = a bar on a terminal, lines elsewhere."""

WIDTH = 20
"""Cells of the bar."""


class Progress(Protocol):
    """How far something is."""

    def show(self, done: int, total: int, text: str, left: float) -> None:
        """``done`` of ``total`` steps are over; ``text`` says how they went; seconds ``left``."""

    def note(self, text: str) -> None:
        """What is going on now."""

    def close(self) -> None:
        """Leave the place clean for other lines."""


def make_progress(kind: str, unit: str, out: TextIO) -> Progress:
    """The progress asked for.

    Args:
      kind: one of ``KINDS``.
      unit: what is counted, such as "round".
      out: where it goes.
    """
    if kind == "off":
        return Silent()
    return Bar(unit, out) if kind == "bar" or (kind == "auto" and is_terminal(out)) else Lines(unit, out)


def is_terminal(out: TextIO) -> bool:
    """Whether a line can be written over there."""
    return out.isatty() and os.environ.get("TERM") != "dumb"


def clock(seconds: float) -> str:
    """A duration as 0:07, 12:34 or 1:02:03."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Silent:
    """Nothing."""

    def show(self, done: int, total: int, text: str, left: float) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Nothing to clean."""


class Lines:
    """A line per step."""

    def __init__(self, unit: str, out: TextIO) -> None:
        self.unit, self.out = unit, out

    def show(self, done: int, total: int, text: str, left: float) -> None:
        """Write a line."""
        self._write(f"{self.unit} {done:{len(str(total)) + 2}d}/{total}  {text}  left {clock(left)}")

    def note(self, text: str) -> None:
        """Write a line."""
        self._write(text)

    def close(self) -> None:
        """Nothing to clean."""

    def _write(self, line: str) -> None:
        self.out.write(line + "\n")
        self.out.flush()


class Bar:
    """One line, written over; what it last said of a step stays when it is closed."""

    def __init__(self, unit: str, out: TextIO) -> None:
        self.unit, self.out = unit, out
        self.last = ""

    def show(self, done: int, total: int, text: str, left: float) -> None:
        """Write over the line."""
        full = WIDTH * done // max(total, 1)
        bar = "█" * full + "░" * (WIDTH - full)
        self.last = f"{bar} {self.unit} {done}/{total}  ETA {clock(left)}  {text}"
        self._write(self.last)

    def note(self, text: str) -> None:
        """Write over the line, for the time being."""
        self._write(text)

    def close(self) -> None:
        """Put back the last step and end the line."""
        self._write(self.last)
        if self.last:
            self.out.write("\n")
            self.last = ""
        self.out.flush()

    def _write(self, line: str) -> None:
        columns = shutil.get_terminal_size().columns
        self.out.write("\r\x1b[K" + line[: max(columns - 1, 1)])
        self.out.flush()
