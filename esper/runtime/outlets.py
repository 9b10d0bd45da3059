"""Outlets: files that a run goes on without. What cannot be written costs one warning and becomes a dead letter."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

from esper.nissa.sinks import write_text
from esper.urza.dead_letters import FILE, DeadLetterError, DeadLetters, Letter, LetterState
from esper.utils.documents import cause
from esper.utils.files import replace_file
from esper.utils.resilience.causes import cause_of
from esper.utils.resilience.services import Service

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Files that a letter may name: of the run directory itself, never another place."""

FILE_OPERATION = "file"
"""Writing a file of the run directory, whose name is the target and whose content is the payload."""

logger = logging.getLogger("esper")


class Outlets:
    """Where a run's files go that it can do without.

    Attributes:
      folder: the run directory.
      letters: the queue of what could not be written; None where there is none.
    """

    def __init__(
        self,
        folder: Path,
        service: Service | None = None,
        warn: Callable[[str], None] | None = None,
        fence: Callable[[], object] = lambda: None,
    ) -> None:
        """Open the run's queue of dead letters and take room for it.

        Args:
          folder: the run directory.
          service: through which files are written; None = "files".
          warn: told a line for everything that cannot be written, once; None = the log.
          fence: called before a file is written; what it raises, other than OSError, ends that.
        """
        self._fence = fence
        self.folder, self._warn, self._service = folder, warn or self._log, service or Service("files")
        self._told: set[str] = set()
        self.letters: DeadLetters | None = None
        try:
            self.letters = DeadLetters(folder / FILE)
            self.letters.reserve()
        except DeadLetterError as error:
            self._tell("queue", f"{error}; what cannot be written from here on is lost")

    def write(self, path: Path, text: str) -> None:
        """Write a file of the run directory in one step, or keep its text as a letter; it takes the place of both."""
        try:
            self._fence()
            self._service.call(lambda: write_text(path, text))
        except OSError as error:
            self._keep(path, text, error)
            return
        try:
            for letter in self.letters.waiting() if self.letters is not None else ():
                if letter.target == path.name and self.letters is not None:
                    self.letters.end(letter.number, LetterState.DONE)
        except DeadLetterError as error:
            self._tell("queue", f"{error}; an older {path.name} may wait there")

    def attempt(self, path: Path, do: Callable[[], object]) -> bool:
        """Write what will be written anew soon, or what only a live view reads: no second try, no letter.

        Args:
          path: for the one warning when it fails.
          do: what is done; may raise ``OSError``.

        Returns:
          whether it was.
        """
        try:
            self._fence()
            do()
        except OSError as error:
            self._tell(path.name, f"{path}: {cause_of(error).name}: {cause(error)}; the run goes on, it is tried again")
            return False
        return True

    def close(self) -> None:
        """Close the queue; it goes where nothing is in it."""
        if self.letters is not None:
            try:
                self.letters.finish()
            except (DeadLetterError, OSError) as error:
                self._tell("queue", str(error))

    def _keep(self, path: Path, text: str, error: Exception) -> None:
        what, after = f"{path}: {cause_of(error).name}: {cause(error)}", "is lost"
        try:
            if self.letters is not None:
                self.letters.put(FILE_OPERATION, path.name, text.encode("utf-8", "backslashreplace"), error)
                after = f"is kept: esper dlq retry {self.folder}"
        except DeadLetterError as second:
            what += f"; {second}"
        self._tell(path.name, f"{what}; the run goes on, what was to be written {after}")

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
      folder: the run directory.
      letter, payload: of its queue.

    Raises:
      OSError: it fails again.
      DeadLetterError: it asks for something that no run puts.
    """
    if letter.operation != FILE_OPERATION or not NAME.fullmatch(letter.target):
        asked = f"{letter.operation!r} {letter.target!r}"
        raise DeadLetterError(f"letter {letter.number}: asks for {asked}; expected a file by its name")
    replace_file(folder / letter.target, payload)
