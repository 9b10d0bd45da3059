"""Writing later what cannot be written now: it waits in the outbox, and is tried again as the store is used."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Lock
from typing import Any

from esper.urza.store.contract import StoreEntry, StoreError, matches
from esper.urza.store.copies import Copy
from esper.urza.store.counts import Counts
from esper.urza.store.entries import Record
from esper.urza.store.outbox import Outbox, PostponedWrite
from esper.utils.documents import cause
from esper.utils.resilience.world import World

DRAIN = 1.0
"""Seconds between two attempts to write what waits."""


def invalidation(prefix: str, version: str) -> str:
    """The target of an invalidation."""
    return json.dumps([prefix, version])


class Postponed:
    """Operations that wait. Where the local disk fails, nothing is known to wait."""

    def __init__(
        self,
        outbox: Outbox | None,
        replay: Callable[[PostponedWrite, bytes | None], None],
        counts: Counts,
        world: World,
    ) -> None:
        """Nothing is read yet.

        Args:
          outbox: None = nothing can wait.
          replay: does an operation, with the bytes of a put; raises OSError where it cannot be done.
          counts: of the outbox.
          world: the time.
        """
        self._outbox, self._replay, self._counts, self._world = outbox, replay, counts, world
        self._tried, self._trying = -DRAIN, Lock()

    def wait(self, operation: PostponedWrite, error: OSError, data: bytes | None = None) -> None:
        """Let an operation wait.

        Args:
          operation: what failed.
          error: how.
          data: of a put.

        Raises:
          StoreError: it cannot; one line.
        """
        if self._outbox is None:
            raise StoreError(f"{operation.target}: {cause(error)}; expected services that answer")
        try:
            self._outbox.keep(operation, data)
        except OSError as second:
            raise StoreError(f"{operation.target}: {cause(error)}; {cause(second)}; expected a local disk") from None
        self._counts.add("kept")

    def of(self, target: str) -> PostponedWrite | None:
        """What waits for a target."""
        if self._outbox is None or not self._outbox.maybe:
            return None
        with suppress(OSError):
            return self._outbox.of(target)
        return None

    def copy(self, operation: PostponedWrite) -> Copy | None:
        """What is to be put; None where the operation is no put, or its bytes are damaged."""
        if self._outbox is None or operation.action != "put":
            return None
        with suppress(OSError):
            data = self._outbox.data(operation)
            if data is not None:
                return Copy(Record(operation.target, len(data), operation.written, operation.facts), data)
        return None

    def entries(self, facts: Mapping[str, Any] = {}) -> tuple[StoreEntry, ...]:
        """Entries that are to be put and have these facts."""
        if self._outbox is None or not self._outbox.maybe:
            return ()
        with suppress(OSError):
            puts = [each for each in self._outbox.waiting() if each.action == "put"]
            found = [Record(each.target, each.size, each.written, each.facts).entry() for each in puts]
            return tuple(entry for entry in found if facts.items() <= entry.facts.items())
        return ()

    def settled(self, target: str, written: int) -> None:
        """Nothing that was asked for until then waits for a target any more."""
        if self._outbox is not None and self._outbox.maybe:
            with suppress(OSError):
                self._outbox.done(target, written)

    def dropped(self, prefix: str, version: str, written: int) -> tuple[str, ...]:
        """Forget puts that an invalidation means; their ids."""
        ids = tuple(entry.id for entry in self.entries() if matches(entry, prefix, version))
        for id in ids:
            self.settled(id, written)
        return ids

    def drain(self) -> None:
        """Write what waits, where something does and it was not tried just now."""
        if self._outbox is None or not self._outbox.maybe or self._world.now() - self._tried < DRAIN:
            return
        self._tried = self._world.now()
        self.flush()

    def flush(self) -> int:
        """Write what waits, as far as services let it; how much waits then. One thread at a time does."""
        if self._outbox is None or not self._trying.acquire(blocking=False):
            return 0
        try:
            for operation in self._outbox.waiting():
                if not self._done(self._outbox, operation):
                    break
            return len(self._outbox.waiting())
        except OSError:
            self._counts.add("failures")
            return 0
        finally:
            self._trying.release()

    def _done(self, outbox: Outbox, operation: PostponedWrite) -> bool:
        """Do one operation; False where others need not be tried. One that is damaged stays, with its error."""
        data = outbox.data(operation) if operation.action == "put" else None
        if operation.action == "put" and data is None:
            outbox.failed(operation, StoreError("its bytes do not match their digest"))
            self._counts.add("damaged")
            return True
        try:
            self._replay(operation, data)
        except OSError as error:
            outbox.failed(operation, error)
            self._counts.add("failures")
            return False
        outbox.done(operation.target, operation.written)
        self._counts.add("replayed")
        return True

    def waiting(self) -> int:
        """How many wait; -1 where it cannot be told."""
        with suppress(OSError):
            return 0 if self._outbox is None else len(self._outbox.waiting())
        return -1

    def close(self) -> None:
        """Close the outbox."""
        if self._outbox is not None:
            self._outbox.close()
