"""Making a thing once among processes of one machine: who comes second waits, and finds it made (single flight).

Only time is at stake. Nobody waits without limit: where a maker takes too long, or its machine has no locks, a second
one makes the same, which content addressing lets be.
"""

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from esper.urza.store.counts import Counts

Value = TypeVar("Value")

PATIENCE = 300.0
"""Seconds to wait for another process."""


class Flights:
    """Locks by key.

    Attributes:
      counts: found, made, unlocked (made without a lock).
    """

    def __init__(self, folder: Path | None) -> None:
        """Nothing is made before it is needed.

        Args:
          folder: of lock files; None = this process is alone.
        """
        self.counts, self._folder = Counts(), folder

    def once(
        self, key: str, find: Callable[[], Value | None], make: Callable[[], Value], patience: float = PATIENCE
    ) -> Value:
        """What is found, or is made here, or was made by another process meanwhile.

        Args:
          key: of what is made; any text.
          find: what is there; None where nothing is. Asked again after waiting.
          make: makes it so that ``find`` finds it. Must not ask for its own key.
          patience: seconds to wait at most.

        Raises:
          Exception: of ``find`` or ``make``, as it is; another process then tries itself.
        """
        found = find()
        if found is not None or self._folder is None:
            self.counts.add("made" if found is None else "found")
            return make() if found is None else found
        lock = self._held(key, patience)
        try:
            found = find()
            self.counts.add("made" if found is None else "found")
            return make() if found is None else found
        finally:
            if lock is not None:
                lock.release()

    def _held(self, key: str, patience: float) -> FileLock | None:
        """The lock of a key, held; None where it cannot be had."""
        assert self._folder is not None
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._folder / name, is_singleton=False, thread_local=False)
            lock.acquire(timeout=patience)
        except (OSError, NotImplementedError):  # too late, a folder that is read only, a file system without locks
            self.counts.add("unlocked")
            return None
        return lock

    def sweep(self, before: float) -> int:
        """Remove lock files that nobody holds and that were taken last before a time (seconds since 1970)."""
        swept = 0
        for path in [] if self._folder is None else list(self._folder.glob("*")):
            with suppress(OSError, Timeout):
                if path.stat().st_mtime < min(before, time.time()):
                    with FileLock(path, timeout=0, is_singleton=False):
                        path.unlink(missing_ok=True)
                        swept += 1
        return swept
