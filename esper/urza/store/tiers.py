"""The store: four tiers behind one object, each asked only where the one before it has nothing.

Memory of this process, Redis, SQL, objects. Written are: the object, then its row, by which it is there (commit point),
then Redis, then memory. Read is in the other order, what was found going up; every tier's bytes are compared with their
id. Whether an artefact is there, and its facts, is for SQL alone to say while it can be reached: what Redis does may
change times, never answers. A service that is lost is left alone for a while and its part done by the next; what cannot
be written waits in the outbox.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from esper.urza.store.cache import RedisCache
from esper.urza.store.compile_queue import CompileQueue
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
    unknown,
)
from esper.urza.store.copies import Copy
from esper.urza.store.entries import Added, Entries, Record
from esper.urza.store.flights import Flights
from esper.urza.store.follower import Follower
from esper.urza.store.objects import Objects
from esper.urza.store.outbox import Outbox, PostponedWrite
from esper.urza.store.postponed import Postponed, invalidation
from esper.urza.store.reading import Missing, Reader
from esper.urza.store.ready import ReadyCache
from esper.urza.store.watched import ServiceWatch
from esper.utils.failpoints import reach
from esper.utils.resilience.world import REAL, World

FRESH = 0.5
"""Seconds for which memory is used without a look at what other processes changed."""

ATTEMPTS = 3
"""Of a put whose object is collected as garbage before its row is there."""


class Tiers:
    """A store; see ``esper.urza.store.contract.Store``.

    Attributes:
      entries, objects: the third and the fourth tier.
      ready: the first tier; also for what is made of artefacts, under keys that begin with their ids.
      flights: makes what is made of artefacts once among the processes of this machine.
      queue: of blueprints that are to be compiled.
      postponed: what waits in the outbox.
      watched: the services, with their counters.
    """

    def __init__(
        self,
        entries: Entries,
        objects: Objects,
        outbox: Outbox | None,
        flights: Flights,
        cache: RedisCache | None = None,
        world: World = REAL,
    ) -> None:
        """Put tiers together.

        Args:
          entries, objects, flights: see the class.
          outbox: None = what cannot be written is refused.
          cache: the second tier; None = there is none.
          world: time and chance.
        """
        self.entries, self.objects, self.flights, self.watched = entries, objects, flights, ServiceWatch(world)
        self.ready: ReadyCache[Any] = ReadyCache(fresh=self._refresh)
        self.postponed = Postponed(outbox, self._replay, self.watched.counts["outbox"], world)
        self.queue = CompileQueue(entries.connections, self.watched, self.postponed)
        self._cache, self._world = cache, world
        self._reader = Reader(self.watched, entries, objects, cache, self.postponed)
        self._change: int | None = None
        self._looked = -FRESH
        self._follower = Follower(cache, self.ready.drop) if cache is not None else None

    def put(self, data: bytes, facts: Mapping[str, Any]) -> str:
        """See ``Store.put``."""
        expect_fit(data)
        record = Record(id_of(data), len(data), time.time_ns(), facts_text(facts))
        self.postponed.drain()
        try:
            added = self._commit(record, data)
        except OSError as error:
            self.postponed.wait(
                PostponedWrite(record.id, "put", record.written, record.size, record.facts), error, data
            )
            self.ready.drop(record.id)
            return record.id
        reach("put")
        self.postponed.settled(record.id, added.record.written)
        if added.replaced:
            self._gone((record.id,))
        copy = Copy(added.record, data)
        self._reader.promote(copy)
        reach("put")
        self.ready.put(record.id, copy, record.size)
        return record.id

    def get(self, id: str, kind: str | None = None, validated: bool = True) -> Artefact | Failure:
        """See ``Store.get``."""
        if not is_id(id):
            return unknown(id)
        self.postponed.drain()
        try:
            record, data = self._copy(id)
        except Missing as missing:
            return missing.failure
        return judge(Artefact(id, data, json.loads(record.facts)), record.format, kind, validated)

    def exists(self, id: str) -> bool:
        """See ``Store.exists``."""
        if not is_id(id):
            return False
        self.postponed.drain()
        waiting = self.postponed.of(id)
        if waiting is not None:
            return waiting.action == "put"
        try:
            return self.watched.ask("database", lambda: self.entries.get(id)) is not None
        except OSError:
            self.watched.counts["database"].add("degradations")
            return self.ready.peek(id) is not None or self._reader.cached(id) is not None

    def delete(self, id: str) -> None:
        """See ``Store.delete``."""
        if not is_id(id):
            return
        self.postponed.drain()
        try:
            self.watched.ask("database", lambda: self.entries.remove([id]))
        except OSError as error:
            self.postponed.wait(PostponedWrite(id, "delete", time.time_ns()), error)
        else:
            self.postponed.settled(id, time.time_ns())
        self._gone((id,))

    def list(self, **facts: Any) -> tuple[StoreEntry, ...]:
        """See ``Store.list``."""
        self.postponed.drain()
        try:
            return tuple(record.entry() for record in self.watched.ask("database", lambda: self.entries.list(facts)))
        except OSError:
            self.watched.counts["database"].add("degradations")
            return self.postponed.entries(facts)

    def invalidate(self, prefix: str = "", version: str = "") -> tuple[str, ...]:
        """See ``Store.invalidate``."""
        if not prefix and not version:
            raise StoreError("invalidate: neither a prefix nor a version; expected one or both")
        self.postponed.drain()
        now, ids = time.time_ns(), tuple[str, ...]()
        try:
            ids = self.watched.ask("database", lambda: self.entries.matching(prefix, version))
            self.watched.ask("database", lambda: self.entries.remove(ids))
        except OSError as error:
            self.postponed.wait(PostponedWrite(invalidation(prefix, version), "invalidate", now), error)
            self.ready.drop()
        ids = tuple(dict.fromkeys((*ids, *self.postponed.dropped(prefix, version, now))))
        self._gone(ids)
        return ids

    def restore(self, id: str) -> bool:
        """Write an artefact again whose row or object is damaged, from the copy that Redis has; whether it has one."""
        copy = self._reader.cached(id)
        if copy is None:
            return False
        self._commit(copy.record, copy.data)
        return True

    def metrics(self) -> dict[str, dict[str, int]]:
        """Counters of every tier, of the outbox and of what was made once."""
        entries, size = self.ready.usage()
        found = {"memory": self.ready.counts.read() | {"entries": entries, "bytes": size}}
        found |= {name: counts.read() for name, counts in self.watched.counts.items()}
        found["outbox"]["waiting"] = self.postponed.waiting()
        found["flights"] = self.flights.counts.read()
        if self._follower is not None:
            found["redis"] |= self._follower.counts.read()
        return found

    def close(self) -> None:
        """See ``Store.close``."""
        if self._follower is not None:
            self._follower.close()
        if self._cache is not None:
            self._cache.close()
        self.entries.close()
        self.postponed.close()

    def __enter__(self) -> "Tiers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit(self, record: Record, data: bytes, replay: bool = False) -> Added:
        """The object, then its row.

        Raises:
          OSError: one of them cannot be written.
        """
        lost = list[OSError]()

        def present() -> bool:
            try:
                return self.objects.exists(record.id)
            except OSError as error:
                lost.append(error)
                return False

        for _ in range(ATTEMPTS):
            reach("put")
            self.watched.ask("objects", lambda: self.objects.put(record.id, data))
            reach("put")
            added = self.watched.ask("database", lambda: self.entries.add(record, present, replay))
            if lost:
                raise lost[0]
            if added is not None:
                return added
        raise DatabaseFails(f"{record.id}: its object goes as soon as it is written")

    def _copy(self, id: str) -> Copy:
        """An artefact from memory, or from below for all threads that ask; from memory it is compared once more."""
        loaded = list[Copy]()

        def load() -> Copy:
            loaded.append(self._reader.load(id))
            return loaded[0]

        copy: Copy = self.ready.get(id, load, lambda found: found.record.size)
        if not loaded and id_of(copy.data) != id:
            self.ready.counts.add("damaged")
            self.ready.drop(id)
            copy = self.ready.get(id, load, lambda found: found.record.size)
        return copy

    def _gone(self, ids: Sequence[str]) -> None:
        """Drop artefacts from memory and from Redis, and tell other processes."""
        cache = self._cache
        if cache is not None and ids:
            self.watched.ask_or("redis", lambda: cache.remove(ids), None)
        for id in ids:
            self.ready.drop(id)

    def _replay(self, operation: PostponedWrite, data: bytes | None) -> None:
        """Do what waited."""
        if operation.action == "request":
            self.queue.replay(operation)
        elif data is not None:
            record = Record(operation.target, operation.size, operation.written, operation.facts)
            added = self._commit(record, data, replay=True)
            if added.replaced:
                self._gone((operation.target,))
        else:
            ids: Sequence[str] = (operation.target,)
            if operation.action == "invalidate":
                prefix, version = json.loads(operation.target)
                ids = self.watched.ask("database", lambda: self.entries.matching(prefix, version))
            self.watched.ask("database", lambda: self.entries.remove(ids, operation.written))
            self._gone(ids)

    def _refresh(self) -> None:
        """Drop from memory what other processes changed since the last look."""
        now = self._world.now()
        if now - self._looked < FRESH:
            return
        self._looked = now
        try:
            if self._change is None:
                self._change = self.watched.ask("database", self.entries.latest_change)
                self.ready.drop()
                return
            number = self._change
            self._change, ids = self.watched.ask("database", lambda: self.entries.changed_since(number))
        except OSError:
            self.watched.counts["database"].add("degradations")
            return
        for id in ids:
            self.ready.drop(id)
