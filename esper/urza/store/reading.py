"""Reading an artefact from the tiers below memory, each copy compared with its digest."""

from esper.urza.store.cache import RedisCache
from esper.urza.store.contract import Failure, id_of, unknown
from esper.urza.store.copies import Copy, decode, encode
from esper.urza.store.entries import Entries, Record
from esper.urza.store.objects import Objects
from esper.urza.store.postponed import Postponed
from esper.urza.store.watched import Watched
from esper.utils.documents import cause

READS = 2
"""Of an object that does not match its id: what was altered on its way is read again."""


class Missing(Exception):
    """There is no artefact; carries why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Reader:
    """The second, third and fourth tier, and what waits in the outbox."""

    def __init__(
        self, watched: Watched, entries: Entries, objects: Objects, cache: RedisCache | None, postponed: Postponed
    ) -> None:
        self._watched, self._entries, self._objects = watched, entries, objects
        self._cache, self._postponed = cache, postponed

    def load(self, id: str) -> Copy:
        """A copy whose row and bytes match their digests; Redis has it afterwards.

        Args:
          id: a well-formed one.

        Raises:
          Missing: there is none, or it cannot be had.
        """
        waiting = self._postponed.of(id)
        if waiting is not None:
            return _there(self._postponed.copy(waiting), unknown(id))
        try:
            record = self._watched.ask("database", lambda: self._entries.get(id))
        except OSError as error:
            self._watched.counts["database"].add("degradations")
            return _there(self.cached(id), Failure("unavailable", f"{id}: {cause(error)}"))
        if record is None:
            self._watched.counts["database"].add("misses")
            raise Missing(unknown(id))
        self._watched.counts["database"].add("hits")
        if isinstance(record, Failure):
            return self._restored(id, record)
        return self._filled(record)

    def _filled(self, record: Record) -> Copy:
        """The copy that a row stands for."""
        found = self.cached(record.id)
        if found is not None and found.record == record:
            return found
        copy = Copy(record, found.data if found is not None else self._object(record.id))
        self.promote(copy)
        return copy

    def _restored(self, id: str, damage: Failure) -> Copy:
        """The copy of a damaged row; Redis may have the row as it was, which then is written again."""
        self._watched.counts["database"].add("damaged")
        copy = _there(self.cached(id), damage)
        written = self._watched.ask_or(
            "database", lambda: self._entries.add(copy.record, lambda: self._objects.exists(id)), None
        )
        if written is not None:
            self._watched.counts["database"].add("repaired")
            copy = copy._replace(record=written.record)
            self.promote(copy)
        return copy

    def cached(self, id: str) -> Copy | None:
        """The copy that Redis has; one that is damaged is removed."""
        if self._cache is None:
            return None
        cache, counts = self._cache, self._watched.counts["redis"]
        try:
            data = self._watched.ask("redis", lambda: cache.get(id))
        except OSError:
            counts.add("degradations")
            return None
        copy = decode(data, id) if data is not None else None
        counts.add("hits" if copy is not None else "misses" if data is None else "damaged")
        if copy is None and data is not None:
            self._watched.ask_or("redis", lambda: cache.forget(id), None)
        return copy

    def promote(self, copy: Copy) -> None:
        """Let Redis have a copy."""
        cache = self._cache
        if cache is not None:
            self._watched.ask_or("redis", lambda: cache.put(copy.record.id, encode(copy)), None)

    def _object(self, id: str) -> bytes:
        counts = self._watched.counts["objects"]
        data: bytes | None = None
        for _ in range(READS):
            try:
                data = self._watched.ask("objects", lambda: self._objects.get(id))
            except OSError as error:
                counts.add("degradations")
                raise Missing(Failure("unavailable", f"{id}: {cause(error)}")) from None
            if data is not None and id_of(data) == id:
                counts.add("hits")
                return data
            counts.add("misses" if data is None else "damaged")
        raise Missing(Failure("damaged", f"{id}: its object {'is not there' if data is None else 'was altered'}"))


def _there(copy: Copy | None, otherwise: Failure) -> Copy:
    if copy is None:
        raise Missing(otherwise)
    return copy
