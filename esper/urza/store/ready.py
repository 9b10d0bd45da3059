"""The first tier: what is ready for use in this process, the least recently used going first; made once for each key.

Threads that ask for one key at the same time wait for the first of them (single flight). What was dropped while it was
being made is handed to those that wait and is not kept.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from threading import Event, RLock, get_ident
from typing import Any, Generic, NamedTuple, TypeVar

from esper.urza.store.counts import Counts
from esper.utils.compilations import looked_up

Value = TypeVar("Value")

ENTRIES = 128
"""Kept at most."""

SIZE = 512 << 20
"""Bytes of what is kept, at most."""


class _Held(NamedTuple):
    value: Any
    size: int


class _Flight:
    """A value that is being made."""

    def __init__(self) -> None:
        self.thread, self.done, self.stale = get_ident(), Event(), False
        self.held: _Held | None = None
        self.error: Exception | None = None


class ReadyCache(Generic[Value]):
    """A bounded map from keys to values that are ready for use.

    Attributes:
      counts: hits, misses, evictions, waits (for another thread), drops.
    """

    def __init__(self, entries: int = ENTRIES, size: int = SIZE, fresh: Callable[[], None] = lambda: None) -> None:
        """Make an empty one.

        Args:
          entries, size: bounds, both hold.
          fresh: called before every look-up; may drop what others deleted.
        """
        self.counts = Counts()
        self._entries, self._size, self._fresh = entries, size, fresh
        self._begin()

    def _begin(self) -> None:
        self._lock, self._pid = RLock(), os.getpid()
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._used = 0

    def _own(self) -> RLock:
        """The lock; a forked child begins anew, since a thread that is not there may hold its parent's."""
        if self._pid != os.getpid():
            self._begin()
        return self._lock

    def get(self, key: str, make: Callable[[], Value], weigh: Callable[[Value], int] = lambda value: 0) -> Value:
        """A value; made where it is not there, by one thread for all that ask meanwhile.

        Args:
          key: artefacts' keys begin with their id, so that they go when it is deleted.
          make: without arguments.
          weigh: bytes of a value; one larger than the bound is handed out and not kept.

        Raises:
          RuntimeError: ``make`` asks for its own key.
          Exception: of ``make``, as it is, to all that waited for it.
        """
        self._fresh()
        while True:
            with self._own():
                held = self._held.get(key)
                if held is not None:
                    self._held.move_to_end(key)
                    self.counts.add("hits")
                    looked_up("artefacts", True)
                    return held.value
                flight = self._flights.get(key)
                if flight is None:
                    self.counts.add("misses")
                    looked_up("artefacts", False)
                    flight = self._flights[key] = _Flight()
                    break
                if flight.thread == get_ident():
                    raise RuntimeError(f"{key}: made of itself")
                self.counts.add("waits")
            flight.done.wait()
            if flight.error is not None:
                raise flight.error
            if flight.held is not None:
                return flight.held.value
        return self._make(key, flight, make, weigh)

    def _make(self, key: str, flight: _Flight, make: Callable[[], Value], weigh: Callable[[Value], int]) -> Value:
        try:
            value = make()
            flight.held = _Held(value, weigh(value))
            return value
        except Exception as error:
            flight.error = error
            raise
        finally:  # also where an interrupt ends it: those that wait then try themselves
            with self._own():
                if self._flights.get(key) is flight:
                    del self._flights[key]
                if flight.held is not None and not flight.stale:
                    self._keep(key, flight.held)
            flight.done.set()

    def put(self, key: str, value: Value, size: int = 0) -> None:
        """Keep a value in place of the one that is there."""
        with self._own():
            self._keep(key, _Held(value, size))

    def peek(self, key: str) -> Value | None:
        """A value that is there, as used just now; None otherwise. It is not counted."""
        with self._own():
            held = self._held.get(key)
            if held is None:
                return None
            self._held.move_to_end(key)
            return held.value

    def drop(self, prefix: str = "") -> int:
        """Forget every key that begins so; how many were there. What is being made under such a key is not kept."""
        with self._own():
            gone = [key for key in self._held if key.startswith(prefix)]
            for key in gone:
                self._used -= self._held.pop(key).size
            for key, flight in list(self._flights.items()):
                if key.startswith(prefix):
                    flight.stale = True
                    del self._flights[key]
            self.counts.add("drops", len(gone))
            return len(gone)

    def usage(self) -> tuple[int, int]:
        """Entries and bytes now."""
        with self._own():
            return len(self._held), self._used

    def _keep(self, key: str, held: _Held) -> None:
        old = self._held.pop(key, None)
        self._used -= old.size if old else 0
        if held.size > self._size or self._entries < 1:
            return
        self._held[key] = held
        self._used += held.size
        while self._used > self._size or len(self._held) > self._entries:
            _, gone = self._held.popitem(last=False)
            self._used -= gone.size
            self.counts.add("evictions")
