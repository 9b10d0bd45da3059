"""Progress: one line that is written over on a terminal, plain lines elsewhere."""

import os
import shutil
from typing import Any, Protocol, TextIO

from esper.nissa.sinks.optional import optional_module

KINDS = ("auto", "bar", "lines", "tqdm", "off")
"""What ``make_progress`` accepts; auto = a bar on a terminal, lines elsewhere; tqdm fits itself into notebooks."""

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
      out: where it goes; in a notebook, tqdm goes into the page instead.

    Raises:
      SinkError: tqdm is asked for and not installed.
    """
    if kind == "off":
        return Silent()
    if kind == "tqdm":
        return Tqdm(unit, out)
    return Bar(unit, out) if kind == "bar" or (kind == "auto" and is_terminal(out)) else Lines(unit, out)


def is_terminal(out: TextIO) -> bool:
    """Whether a line can be written over there."""
    return out.isatty() and os.environ.get("TERM") != "dumb"


def require_tqdm() -> Any:
    """The class ``tqdm.auto.tqdm``.

    Raises:
      SinkError: tqdm is not installed.
    """
    return optional_module("tqdm.auto", "--progress tqdm", "tqdm", "tqdm").tqdm


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


class Tqdm:
    """A bar of tqdm's, made when there is something to show."""

    def __init__(self, unit: str, out: TextIO) -> None:
        self.kind, self.unit, self.out = require_tqdm(), unit, out
        self.bar: Any = None

    def show(self, done: int, total: int, text: str, left: float) -> None:
        """Move the bar; tqdm estimates the time that is left by itself."""
        del left
        if self.bar is None:
            self.bar = self.kind(total=total, unit=self.unit, file=self.out, initial=done - 1)
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(done - self.bar.n)

    def note(self, text: str) -> None:
        """Write a line."""
        self.out.write(text + "\n")

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
