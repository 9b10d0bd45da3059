"""A log of rounds and events as JSON lines: bounded in size by rotation, and in rate by a bucket of tokens."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esper.nissa.event_record import Event
from esper.nissa.sinks.protocol import Row
from esper.utils.documents import to_json
from esper.utils.files import append_line

LOG = "log.jsonl"
"""Its usual name, in a run's directory."""

LARGEST = 10 << 20
"""Bytes of a file after which the next one begins."""

FILES = 5
"""Older files that are kept, as NAME.1 (the newest) to NAME.5."""

RATE = 200.0
"""Lines per second, in the long run; so many may also come at once."""


class JsonLinesSink:
    """A log.

    Attributes:
      path: of the file that is being written.
      left_out: lines that were too many and are not yet told of; the next line is preceded by one with their number.
    """

    def __init__(
        self,
        path: Path,
        largest: int = LARGEST,
        files: int = FILES,
        rate: float = RATE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.left_out = path, 0
        self._largest, self._files, self._rate, self._clock = largest, files, rate, clock
        self._tokens, self._at = rate, clock()

    def round(self, row: Row) -> None:
        """A line of kind ``round``."""
        self._write({"kind": "round", "seconds": time.time(), "fields": row})

    def event(self, event: Event) -> None:
        """A line."""
        self._write(event._asdict())

    def close(self) -> None:
        """Tell what was left out last."""
        self._tell_left_out()

    def _write(self, table: Mapping[str, Any]) -> None:
        now = self._clock()
        self._tokens, self._at = min(self._rate, self._tokens + (now - self._at) * self._rate), now
        if self._tokens < 1:
            self.left_out += 1
            return
        self._tokens -= 1
        self._tell_left_out()
        self._append(to_json(table))

    def _tell_left_out(self) -> None:
        if self.left_out:
            number, self.left_out = self.left_out, 0
            self._append(to_json({"kind": "left out", "seconds": time.time(), "fields": {"lines": number}}))

    def _append(self, line: str) -> None:
        if self.path.exists() and self.path.stat().st_size + len(line.encode()) + 1 > self._largest:
            self._rotate()
        append_line(self.path, line)

    def _rotate(self) -> None:
        for number in range(self._files, 0, -1):
            older = self.path if number == 1 else self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
