"""Outlets: files that a run goes on without. What cannot be written costs one warning and becomes a dead letter."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esper.nissa.sinks import METRICS, read_rows, write_text
from esper.urza.dead_letters import FILE, DeadLetterError, DeadLetters, Letter, LetterState
from esper.utils.documents import as_number, cause, to_json
from esper.utils.resilience.breaker import BreakerOpen
from esper.utils.resilience.causes import cause_of
from esper.utils.resilience.services import Service

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Files that a letter may name: of the run directory itself, never another place."""

logger = logging.getLogger("esper")


class Outlets:
    """Where a run's files go that it can do without.

    Attributes:
      folder: the run directory.
      letters: the queue of what could not be written; None where there is none.
    """

    def __init__(self, folder: Path, service: Service | None = None, warn: Callable[[str], None] | None = None) -> None:
        """Open the run's queue of dead letters and take room for it.

        Args:
          folder: the run directory.
          service: through which files are written; None = "files".
          warn: told a line for everything that cannot be written, once; None = the log.
        """
        self.folder, self._warn, self._service = folder, warn or self._log, service or Service("files")
        self._told: set[str] = set()
        self._numbers: dict[int, int] = {}
        self.letters: DeadLetters | None = None
        try:
            self.letters = DeadLetters(folder / FILE)
            self.letters.reserve()
        except DeadLetterError as error:
            self._tell("queue", f"{error}; what cannot be written from here on is lost")

    def write(self, path: Path, text: str) -> None:
        """Write a file of the run directory in one step, or keep its text as a letter."""
        try:
            self._service.call(lambda: write_text(path, text))
        except (OSError, BreakerOpen) as error:
            self._keep("file", path.name, text, error)

    def row_failed(self, row: dict[str, float], error: OSError) -> None:
        """Keep a row of the metrics."""
        kept = self._keep("round", str(int(row["round"])), to_json(row), error, told=METRICS)
        if kept is not None:
            self._numbers[int(row["round"])] = kept

    def row_written(self, row: dict[str, float]) -> None:
        """A row that was kept is written."""
        number = self._numbers.pop(int(row["round"]), None)
        if number is not None and self.letters is not None:
            try:
                self.letters.end(number, LetterState.DONE)
            except DeadLetterError as error:  # it waits on; repeating a row that is there does nothing
                self._tell("queue", str(error))

    def events_failed(self, error: Exception) -> None:
        """Say that TensorBoard has no more events of this run; they are of the metrics, which are kept."""
        self._tell("tensorboard", f"tensorboard: {cause(error)}; no events from here on, {METRICS} has all rounds")

    def close(self) -> None:
        """Close the queue; it goes where nothing is in it."""
        if self.letters is not None:
            try:
                self.letters.finish()
            except (DeadLetterError, OSError) as error:
                self._tell("queue", str(error))

    def _keep(self, operation: str, target: str, text: str, error: Exception, told: str = "") -> int | None:
        place, kept = self.folder / (told or target), None
        what = f"{place}: {cause_of(error).name}: {cause(error)}"
        try:
            if self.letters is not None:
                kept = self.letters.put(operation, target, text.encode("utf-8", "backslashreplace"), error)
        except DeadLetterError as second:
            what += f"; {second}"
        after = "is lost" if kept is None else f"is kept: esper dlq retry {self.folder}"
        self._tell(told or target, f"{what}; the run goes on, what was to be written {after}")
        return kept

    def _tell(self, subject: str, line: str) -> None:
        if subject not in self._told:
            self._told.add(subject)
            self._warn(line)

    @staticmethod
    def _log(line: str) -> None:
        logger.warning("esper: %s", line)


def repeat(folder: Path, letter: Letter, payload: bytes) -> None:
    """Do what a letter asks for; doing it twice does no more than once.

    Args:
      folder: the run directory, in which no training runs.
      letter, payload: of its queue.

    Raises:
      OSError, SinkError: it fails again.
      DeadLetterError: it asks for something that no run puts.
    """
    text = payload.decode("utf-8", "backslashreplace")
    if letter.operation == "file" and NAME.fullmatch(letter.target):
        write_text(folder / letter.target, text)
    elif letter.operation == "round" and letter.target.isdecimal():
        _insert_row(folder / METRICS, _row(letter, text))
    else:
        asked = f"{letter.operation!r} {letter.target!r}"
        raise DeadLetterError(f"letter {letter.number}: asks for {asked}; expected a file by its name, or a round")


def _row(letter: Letter, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict) or row.get("round") != int(letter.target):
        raise DeadLetterError(f"letter {letter.number}: expected the row of round {letter.target}")
    return {name: as_number(value) for name, value in row.items()}


def _insert_row(path: Path, row: dict[str, Any]) -> None:
    """Put a round where it belongs, unless it is there."""
    rows = read_rows(path)
    if all(each["round"] != row["round"] for each in rows):
        ordered = sorted([*rows, row], key=lambda each: int(each["round"]))
        write_text(path, "".join(to_json(each) + "\n" for each in ordered))
