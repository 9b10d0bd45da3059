"""What the live page shows of a run, read from its directory again and again while it grows.

Nothing but files is read, so a run on another machine's directory, a copy, and a run that is over look the same. A file
that shrank, was replaced or altered before its end is read anew; a line that is being written waits until it is whole.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esper.nissa.sinks import METRICS
from esper.runtime.run_health import blueprints_json, run_health
from esper.runtime.watching import WATCH, lines_of
from esper.utils.documents import as_number, json_ready

MOST_ROWS = 2000
"""Rounds that a page is sent at most; of a longer run every n-th, and the last."""


class RowReader:
    """The rows of a growing metrics file.

    Attributes:
      rows: so far.
      version: of the file's beginning; another one after it was read anew.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self.version = path, list[dict[str, Any]](), 0
        self._read, self._tail, self._length, self._node = 0, b"", 0, (0, 0)

    def look(self) -> None:
        """Read what was added; a file that is absent or cannot be read counts as empty."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if not self._goes_on(file, (facts.st_dev, facts.st_ino), facts.st_size):
                    self._begin_anew((facts.st_dev, facts.st_ino))
                file.seek(self._read)
                added = file.read()
        except OSError:
            self._begin_anew((0, 0))
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        if whole:
            last = self._last_line(whole)
            self._tail, self._length = hashlib.sha256(last).digest(), len(last)
        for line in whole.split(b"\n"):
            if (row := _row(line)) is not None:
                self.rows.append(row)

    def _goes_on(self, file: Any, node: tuple[int, int], size: int) -> bool:
        """Whether the last line that was read is where it was."""
        if node != self._node or size < self._read:
            return False
        if not self._read:
            return True
        file.seek(self._read - self._length)
        return hashlib.sha256(file.read(self._length)).digest() == self._tail

    def _begin_anew(self, node: tuple[int, int]) -> None:
        if self.rows or self._read:
            self.version += 1
        self.rows, self._read, self._tail, self._length, self._node = [], 0, b"", 0, node

    @staticmethod
    def _last_line(whole: bytes) -> bytes:
        return whole[whole.rfind(b"\n", 0, len(whole) - 1) + 1 :]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("round")) is not int:
        return None
    return {name: as_number(value) for name, value in found.items()}


class LiveRun:
    """A run as a page sees it.

    Attributes:
      folder: its directory.
      name: what the page calls it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._rows = RowReader(folder / METRICS)
        self._made: tuple[Any, dict[str, Any]] | None = None

    def view(self) -> dict[str, Any]:
        """All of it, for JSON: settings in short, rows, lanes, and how it is doing. Not measured is None."""
        self._rows.look()
        stamp = (self._rows.version, len(self._rows.rows), *(_stamp(self.folder / name) for name in SEEN))
        if self._made is None or self._made[0] != stamp:
            self._made = stamp, json_ready(self._view())
        return self._made[1]

    def _view(self) -> dict[str, Any]:
        rows, config = self._rows.rows, _table(self.folder / "config.json")
        health = run_health(self.folder, rows)
        every = -(-len(rows) // MOST_ROWS) or 1
        shown = [row for place, row in enumerate(rows) if (place + 1) % every == 0 or place + 1 == len(rows)]
        return {
            "name": self.name,
            "task": config.get("task", ""),
            "seed": config.get("seed"),
            "num_envs": config.get("num_envs"),
            "wanted": config.get("rounds"),
            "version": self._rows.version,
            "rounds": len(rows),
            "rows": shown,
            "lanes": [lane for lane in map(_lane, lines_of(self.folder / WATCH)) if lane is not None],
            "anomalies": [each._asdict() for each in health.anomalies],
            "trends": {name: {**line._asdict(), "word": line.word} for name, line in health.trends.items()},
            "blueprints": blueprints_json(health),
            "story": [{"topic": each.topic.value, "text": each.text} for each in health.sentences],
        }


SEEN = (WATCH, "config.json", "resolved.json", "seeds.jsonl")


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        facts = path.stat()
    except OSError:
        return 0, 0, 0
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _table(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lane(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("envs"), list) else None
