"""When a run's checkpoints are written: as often as their cost allows, and before the run ends."""

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from esper.nissa.operations import NO_OPERATIONS, OperationLog
from esper.urza import series
from esper.urza.checkpoint import CheckpointError, save
from esper.urza.lock import Lock
from esper.urza.series import Moment
from esper.utils.failpoints import reach

SHARE = 0.02
"""Largest share of a run's time that its checkpoints take, where no interval is asked for."""

Contents = Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
"""Makes what a checkpoint holds, of values that nobody writes to."""

logger = logging.getLogger("esper")


class Saver:
    """Writes the checkpoints of a run.

    Attributes:
      folder: of the series.
      lock: of the run directory.
      every: least seconds between checkpoints; 0 = as many as ``SHARE`` allows.
      keep: how many of the newest there are.
      saved: moment of the newest one on the disk, if any.
      operations: where it is told.
    """

    def __init__(self, folder: Path, lock: Lock, every: float, keep: int) -> None:
        self.folder, self.lock, self.every, self.keep = folder, lock, every, keep
        self.saved: Moment | None = max(series.moments(folder), default=None)
        self._pending: tuple[Moment, Contents] | None = None
        self._ended, self._cost = -float("inf"), 0.0
        self.operations: OperationLog = NO_OPERATIONS

    def offer(self, moment: Moment, contents: Contents) -> None:
        """Say what may be the next checkpoint."""
        self._pending = (moment, contents)

    def due(self) -> bool:
        """Whether a checkpoint should be written now."""
        since = time.monotonic() - self._ended
        return since >= (self.every or self._cost * (1 / SHARE - 1))

    def write(self, first: Callable[[], object]) -> None:
        """Write what was offered last, if it is not on the disk yet.

        Args:
          first: called before; what it raises counts as this checkpoint's own failure.

        Raises:
          OSError: it could not be written. What was there before is there still.
          LockError: somebody else took the run directory.
        """
        if self._pending is None:
            return
        moment, contents = self._pending
        self.lock.check()
        start = time.monotonic()
        with self.operations("checkpoint", moment.rounds, steps=moment.steps):
            first()
            save(series.member(self.folder, moment), *contents())
        self.saved, self._pending = moment, None
        series.prune(self.folder, self.keep)
        self._ended = time.monotonic()
        self._cost = self._ended - start
        reach("saved")

    def try_to_write(self, first: Callable[[], object]) -> None:
        """Like ``write``; a full or failing disk costs a warning, and the next round tries again."""
        try:
            self.write(first)
        except OSError as error:
            self._ended = time.monotonic()
            logger.warning("checkpoint %s: not written (%s); the run goes on", self.folder, error.strerror or error)

    def finish(self, first: Callable[[], object]) -> None:
        """Write what was offered last; the run ends here.

        Raises:
          CheckpointError: it could not be written; one line.
        """
        try:
            self.write(first)
        except OSError as error:
            room = "; expected room on the disk" if error.errno == errno.ENOSPC else ""
            last = "there is none" if self.saved is None else f"the last one is of round {self.saved.rounds}"
            raise CheckpointError(f"checkpoint {self.folder}: {error.strerror or error}; {last}{room}") from None
