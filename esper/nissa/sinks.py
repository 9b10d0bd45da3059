"""Sinks: where a run's numbers go, under the same names everywhere."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

from esper.utils.documents import as_number, to_json

METRICS = "metrics.jsonl"


class SinkError(ValueError):
    """A sink that cannot be opened or read; one line with the place and what is expected."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, in order; a last line that was cut off is left out.

    Raises:
      SinkError: another line is not a round; the file and the line's number.
    """
    if not path.exists():
        return []
    lines, rows = path.read_text(encoding="utf-8").split("\n"), []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("round"), int):
            raise SinkError(f"{path}: line {number}: found {line[:40]!r}; expected a JSON object with a round")
        rows.append({name: as_number(value) for name, value in row.items()})
    return rows


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old one or the new one. What UTF-8 lacks is escaped."""
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):  # what kept it from being written is what is told
            beside.unlink(missing_ok=True)
        raise


def append_text(path: Path, text: str) -> None:
    """Add to a file all of a text, or nothing."""
    data = text.encode("utf-8")
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:  # a disk that is nearly full takes a part
                data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


class Keeper(Protocol):
    """Who keeps rows that could not be written."""

    def row_failed(self, row: dict[str, float], error: OSError) -> None:
        """A row was not written; the next call of ``Metrics.write`` tries again."""

    def row_written(self, row: dict[str, float]) -> None:
        """A row that had failed was written."""

    def events_failed(self, error: Exception) -> None:
        """TensorBoard's events could not be written; from here on there are none."""


class Metrics:
    """The sinks of a run: ``metrics.jsonl``, and TensorBoard's events if asked for.

    Attributes:
      path: of the rows.
      events: TensorBoard's writer, if any.
      keeper: who keeps what cannot be written; None = an error ends the call.
      failed: rows that are still to be written, in order.
    """

    def __init__(self, folder: Path, tensorboard: bool, done: int) -> None:
        """Open the sinks.

        Args:
          folder: run directory; its metrics hold the first ``done`` rounds.
          tensorboard: also write events, into the folder ``tensorboard``.
          done: rounds so far; later ones that are there already are taken back.

        Raises:
          SinkError: tensorboard is asked for and not installed.
        """
        self.path = folder / METRICS
        self.events = _event_writer(folder / "tensorboard", done + 1) if tensorboard else None
        self.keeper: Keeper | None = None
        self.failed: list[dict[str, float]] = []

    def write(self, row: dict[str, float]) -> None:
        """Add a round, after those that could not be written before; ``row["round"]`` counts from 1.

        Raises:
          OSError: it cannot be written, and there is no keeper.
        """
        try:
            self._append(row)
        except OSError as error:
            if self.keeper is None:
                raise
            self.failed.append(row)
            self.keeper.row_failed(row, error)
        self._write_events(row)

    def _append(self, *rows: dict[str, float]) -> None:
        """Write the rows that failed, then these; all or none."""
        append_text(self.path, "".join(to_json(row) + "\n" for row in (*self.failed, *rows)))
        while self.failed:
            written = self.failed.pop(0)
            if self.keeper is not None:
                self.keeper.row_written(written)

    def _write_events(self, row: dict[str, float]) -> None:
        if self.events is None:
            return
        try:
            for name, value in row.items():
                self.events.add_scalar(name, value, int(row["round"]))
            self.events.flush()
        except Exception as error:  # of the file system, through tensorboard's thread
            if self.keeper is None:
                raise
            self.events = None
            self.keeper.events_failed(error)

    def close(self) -> None:
        """Finish the files."""
        if self.failed:
            with contextlib.suppress(OSError):  # they have been told of, and are kept
                self._append()
        if self.events is not None:
            self.events.close()


def require_tensorboard() -> None:
    """Check that events can be written.

    Raises:
      SinkError: tensorboard is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise SinkError("--tensorboard true: needs tensorboard; pip install 'esper-growth[tensorboard]'") from None


def _event_writer(folder: Path, first: int) -> Any:
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first)
