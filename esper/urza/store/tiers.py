"""The store: four tiers behind one object, each asked only where the one before it has nothing.

Memory of this process, Redis, SQL, objects. Written are: the object, then its row, by which it is there (commit point),
then Redis, then memory. Read is in the other order, what was found going up; every tier's bytes are compared with their
id. Whether an artefact is there, and its facts, is for SQL alone to say while it can be reached: what Redis does may
change times, never answers. A service that is lost is left alone for a while and its part done by the next; what cannot
be written waits in the outbox.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from esper.urza.store.connections import DatabaseFails
from esper.urza.store.contract import (
    Artefact,
    Failure,
    StoreEntry,
    StoreError,
    expect_fit,
    facts_text,
    id_of,
    is_id,
    judge,
    matches,
    unknown,
)
from esper.urza.store.counts import Counts
from esper.urza.store.entries import Entries, Record
from esper.urza.store.flights import Flights
from esper.urza.store.objects import Objects
from esper.urza.store.outbox import Operation, Outbox
from esper.urza.store.ready import ReadyCache
from esper.utils.documents import cause
from esper.utils.resilience.services import Service
from esper.utils.resilience.world import REAL, World

Result = TypeVar("Result")

FRESH = 0.5
"""Seconds for which memory is used without a look at what other processes deleted."""

DRAIN = 1.0
"""Seconds between two attempts to write what waits."""

ATTEMPTS = 3
"""Of a put whose object is collected as garbage before its row is there."""


class Copy(NamedTuple):
    """An artefact as tiers hand it on."""

    record: Record
    data: bytes


class Missing(Exception):
    """There is no artefact; carries why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Tiers:
    """A store; see ``esper.urza.store.contract.Store``.

    Attributes:
      ready: the first tier; also for what is made of artefacts, under keys that begin with their ids.
      flights: makes what is made of artefacts once among the processes of this machine.
      counts: by tier.
    """

    def __init__(
        self, entries: Entries, objects: Objects, outbox: Outbox | None, flights: Flights, world: World = REAL
    ) -> None:
        """Put tiers together.

        Args:
          entries, objects: the third and the fourth tier.
          outbox: None = what cannot be written is refused.
          flights: what is made once among processes.
          world: time and chance.
        """
        self.flights = flights
        self.ready: ReadyCache[Any] = ReadyCache(fresh=self._refresh)
        self.counts = {name: Counts() for name in ("redis", "database", "objects", "outbox")}
        self._entries, self._objects, self._outbox, self._world = entries, objects, outbox, world
        self._services = {name: Service(f"store {name}", world) for name in ("redis", "database", "objects")}
        self._removal: int | None = None
        self._looked, self._drained, self._draining = -FRESH, -DRAIN, Lock()

    def put(self, data: bytes, facts: Mapping[str, Any]) -> str:
        """See ``Store.put``."""
        expect_fit(data)
        record = Record(id_of(data), len(data), time.time_ns(), facts_text(facts))
        self._drain()
        try:
            record = self._commit(record, data)
        except OSError as error:
            self._wait(Operation(record.id, "put", record.written, record.size, record.facts), data, error)
            self.ready.drop(record.id)
            return record.id
        self._settled(record.id, record.written)
        self._promote(Copy(record, data))
        return record.id

    def get(self, id: str, kind: str | None = None, validated: bool = True) -> Artefact | Failure:
        """See ``Store.get``."""
        if not is_id(id):
            return unknown(id)
        self._drain()
        try:
            record, data = self._copy(id)
        except Missing as missing:
            return missing.failure
        return judge(Artefact(id, data, json.loads(record.facts)), record.format, kind, validated)

    def exists(self, id: str) -> bool:
        """See ``Store.exists``."""
        if not is_id(id):
            return False
        self._drain()
        waiting = self._waiting(id)
        if waiting is not None:
            return waiting.action == "put"
        try:
            return self._ask("database", lambda: self._entries.get(id)) is not None
        except OSError:
            self.counts["database"].add("degradations")
            return self.ready.peek(id) is not None

    def delete(self, id: str) -> None:
        """See ``Store.delete``."""
        if not is_id(id):
            return
        self._drain()
        now = time.time_ns()
        try:
            self._ask("database", lambda: self._entries.remove([id]))
        except OSError as error:
            self._wait(Operation(id, "delete", now), None, error)
        else:
            self._settled(id, time.time_ns())
        self._gone((id,))

    def list(self, **facts: Any) -> tuple[StoreEntry, ...]:
        """See ``Store.list``."""
        self._drain()
        try:
            return tuple(record.entry() for record in self._ask("database", lambda: self._entries.list(facts)))
        except OSError:
            self.counts["database"].add("degradations")
            return tuple(entry for entry in self._waiting_entries() if facts.items() <= entry.facts.items())

    def invalidate(self, prefix: str = "", version: str = "") -> tuple[str, ...]:
        """See ``Store.invalidate``."""
        if not prefix and not version:
            raise StoreError("invalidate: neither a prefix nor a version; expected one or both")
        self._drain()
        now = time.time_ns()
        try:
            ids = self._ask("database", lambda: self._entries.matching(prefix, version))
            self._ask("database", lambda: self._entries.remove(ids))
        except OSError as error:
            self._wait(Operation(f"{prefix}\n{version}", "invalidate", now), None, error)
            ids = ()
            self.ready.drop()
        dropped = [entry.id for entry in self._waiting_entries() if matches(entry, prefix, version)]
        for id in dropped:
            self._settled(id, now)
        self._gone((*ids, *dropped))
        return tuple(dict.fromkeys((*ids, *dropped)))

    def flush(self) -> int:
        """Write what waits in the outbox, if services let it; how much waits then."""
        if self._outbox is None or not self._draining.acquire(blocking=False):
            return 0
        try:
            for operation in self._outbox.waiting():
                try:
                    self._replay(operation)
                except OSError as error:
                    self._outbox.failed(operation, error)
                    self.counts["outbox"].add("failures")
                    break
                self._outbox.done(operation.target, operation.written)
                self.counts["outbox"].add("replayed")
            return len(self._outbox.waiting())
        except OSError:
            self.counts["outbox"].add("failures")
            return 0
        finally:
            self._draining.release()

    def metrics(self) -> dict[str, dict[str, int]]:
        """Counters of every tier."""
        entries, size = self.ready.usage()
        memory = self.ready.counts.read() | {"entries": entries, "bytes": size}
        return {"memory": memory} | {name: counts.read() for name, counts in self.counts.items()}

    def close(self) -> None:
        """See ``Store.close``."""
        self._entries.close()
        if self._outbox is not None:
            self._outbox.close()

    def __enter__(self) -> "Tiers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, tier: str, function: Callable[[], Result]) -> Result:
        """What a tier answers; again where it fails for a moment.

        Raises:
          OSError: it is lost; counted.
        """
        try:
            return self._services[tier].call(function)
        except OSError:
            self.counts[tier].add("failures")
            raise

    def _commit(self, record: Record, data: bytes, replay: bool = False) -> Record:
        """The object, then its row."""
        lost = list[OSError]()

        def present() -> bool:
            try:
                return self._objects.exists(record.id)
            except OSError as error:
                lost.append(error)
                return False

        for _ in range(ATTEMPTS):
            self._ask("objects", lambda: self._objects.put(record.id, data))
            row = self._ask("database", lambda: self._entries.add(record, present, replay))
            if lost:
                raise lost[0]
            if row is not None:
                return row
        raise DatabaseFails(f"{record.id}: its object goes as soon as it is written")

    def _copy(self, id: str) -> Copy:
        """An artefact from the first tier, or from those below for all threads that ask."""
        loaded = list[Copy]()

        def load() -> Copy:
            loaded.append(self._load(id))
            return loaded[0]

        copy: Copy = self.ready.get(id, load, lambda found: found.record.size)
        if not loaded and id_of(copy.data) != id:
            self.ready.counts.add("damaged")
            self.ready.drop(id)
            copy = self.ready.get(id, load, lambda found: found.record.size)
        return copy

    def _load(self, id: str) -> Copy:
        waiting = self._waiting(id)
        if waiting is not None and self._outbox is not None:
            data = self._outbox.data(waiting) if waiting.action == "put" else None
            if data is None:
                raise Missing(unknown(id))
            return Copy(Record(id, len(data), waiting.written, waiting.facts), data)
        try:
            record = self._ask("database", lambda: self._entries.get(id))
        except OSError as error:
            self.counts["database"].add("degradations")
            raise Missing(Failure("unavailable", f"{id}: {cause(error)}")) from None
        if record is None:
            self.counts["database"].add("misses")
            raise Missing(unknown(id))
        self.counts["database"].add("hits")
        if isinstance(record, Failure):
            raise Missing(record)
        return Copy(record, self._bytes(record))

    def _bytes(self, record: Record) -> bytes:
        try:
            data = self._ask("objects", lambda: self._objects.get(record.id))
        except OSError as error:
            self.counts["objects"].add("degradations")
            raise Missing(Failure("unavailable", f"{record.id}: {cause(error)}")) from None
        if data is None or id_of(data) != record.id:
            self.counts["objects"].add("damaged" if data is not None else "misses")
            raise Missing(Failure("damaged", f"{record.id}: its object is {'altered' if data else 'not there'}"))
        self.counts["objects"].add("hits")
        return data

    def _promote(self, copy: Copy) -> None:
        self.ready.put(copy.record.id, copy, copy.record.size)

    def _gone(self, ids: tuple[str, ...]) -> None:
        for id in ids:
            self.ready.drop(id)

    def _wait(self, operation: Operation, data: bytes | None, error: OSError) -> None:
        """Let an operation wait that failed.

        Raises:
          StoreError: it cannot.
        """
        if self._outbox is None:
            raise StoreError(f"{operation.target}: {cause(error)}; expected services that answer")
        try:
            self._outbox.keep(operation, data)
        except OSError as second:
            raise StoreError(f"{operation.target}: {cause(error)}; {cause(second)}; expected a disk") from None
        self.counts["outbox"].add("kept")

    def _waiting(self, id: str) -> Operation | None:
        if self._outbox is None or not self._outbox.maybe:
            return None
        with suppress(OSError):
            return self._outbox.of(id)
        return None

    def _waiting_entries(self) -> tuple[StoreEntry, ...]:
        if self._outbox is None or not self._outbox.maybe:
            return ()
        with suppress(OSError):
            puts = [each for each in self._outbox.waiting() if each.action == "put"]
            return tuple(Record(each.target, each.size, each.written, each.facts).entry() for each in puts)
        return ()

    def _settled(self, id: str, written: int) -> None:
        """Nothing that was asked for earlier waits for an id any more."""
        if self._outbox is not None and self._outbox.maybe:
            with suppress(OSError):
                self._outbox.done(id, written)

    def _replay(self, operation: Operation) -> None:
        assert self._outbox is not None
        if operation.action == "put":
            data = self._outbox.data(operation)
            if data is not None:
                record = Record(operation.target, operation.size, operation.written, operation.facts)
                self._commit(record, data, replay=True)
            return
        ids: tuple[str, ...] = (operation.target,)
        if operation.action == "invalidate":
            prefix, _, version = operation.target.partition("\n")
            ids = self._ask("database", lambda: self._entries.matching(prefix, version))
        self._ask("database", lambda: self._entries.remove(ids, operation.written))
        self._gone(ids)

    def _drain(self) -> None:
        """Write what waits, where something does and it was not tried just now."""
        if self._outbox is None or not self._outbox.maybe or self._world.now() - self._drained < DRAIN:
            return
        self._drained = self._world.now()
        self.flush()

    def _refresh(self) -> None:
        """Drop from memory what other processes deleted since the last look."""
        now = self._world.now()
        if now - self._looked < FRESH:
            return
        self._looked = now
        try:
            if self._removal is None:
                self._removal = self._ask("database", self._entries.latest_removal)
                return
            self._removal, ids = self._ask("database", lambda: self._entries.removed_since(self._removal or 0))
        except OSError:
            self.counts["database"].add("degradations")
            return
        for id in ids:
            self.ready.drop(id)
