"""A run's own record of its rounds: ``metrics.jsonl``, whose digest every checkpoint holds."""

import contextlib
import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esper.utils.documents import as_number, cause, to_json
from esper.utils.files import append_line, read_file, replace_file, sync_file

METRICS = "metrics.jsonl"

LARGEST = 1 << 32
"""Bytes that are read of a metrics file."""


class SinkError(ValueError):
    """A sink that cannot be opened or read; one line with the place and what is expected."""


def lines_until(path: Path, done: int) -> bytes:
    """The lines of a metrics file from its first round up to round ``done``; nothing if it is absent.

    They end where the next round does not follow: what a run wrote beyond a checkpoint, or what a crash of the machine
    left there, is never looked at.

    Raises:
      SinkError: no ordinary file.
    """
    kept, last = list[bytes](), 0
    for line in _content(path).split(b"\n")[:-1]:
        row = _row(line)
        number = row["round"] if row is not None else 0
        if not 0 < number <= done or (kept and number != last + 1):
            break
        kept.append(line + b"\n")
        last = number
    return b"".join(kept)


def digest_of(path: Path, done: int) -> str:
    """sha256 of what ``lines_until`` gives."""
    return hashlib.sha256(lines_until(path, done)).hexdigest()


def _content(path: Path) -> bytes:
    """What a metrics file holds; nothing if it is absent."""
    try:
        return read_file(path, LARGEST)
    except FileNotFoundError:
        return b""
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno != errno.ELOOP:
            raise
        raise SinkError(f"{path}: {cause(error)}; expected an ordinary file") from None


def _row(line: bytes) -> dict[str, Any] | None:
    """The round of a line; None if it holds none."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("round")) is int else None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, in order; a last line that was cut off is left out.

    Raises:
      SinkError: no ordinary file, or another line is not a round; the file and the line's number.
    """
    rows = []
    for number, line in enumerate(_content(path).split(b"\n")[:-1], start=1):
        if (row := _row(line)) is None:
            found = line[:40].decode(errors="backslashreplace")
            raise SinkError(f"{path}: line {number}: found {found!r}; expected a JSON object with a round")
        rows.append({name: as_number(value) for name, value in row.items()})
    return rows


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old one or the new one. What UTF-8 lacks is escaped.

    Raises:
      OSError: it could not be written; the old one is as it was.
    """
    replace_file(path, text.encode("utf-8", "backslashreplace"))


class Metrics:
    """``metrics.jsonl``, as a run adds to it."""

    def __init__(self, folder: Path, fence: Callable[[], object] = lambda: None) -> None:
        """Take it as it is.

        Args:
          folder: run directory; its metrics hold the rounds so far, and no later ones.
          fence: called before a line is added; what it raises keeps the line out of the file.
        """
        self.path, self._fence = folder / METRICS, fence
        self.digest = hashlib.sha256(self.path.read_bytes() if self.path.exists() else b"")
        self._waiting: list[str] = []

    def write(self, row: dict[str, Any]) -> None:
        """Add a round; ``row["round"]`` counts from 1. One that cannot be written waits for ``settle``."""
        line = to_json(row)
        self.digest.update(line.encode() + b"\n")
        self._waiting.append(line)
        with contextlib.suppress(OSError):
            self._append()

    def settle(self) -> None:
        """Let every round be on the disk.

        Raises:
          OSError: one could not be written; it is tried again the next time.
        """
        self._append()
        if self.path.exists():
            sync_file(self.path)

    def _append(self) -> None:
        if self._waiting:
            self._fence()
        while self._waiting:
            append_line(self.path, self._waiting[0])
            del self._waiting[0]
