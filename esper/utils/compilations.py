"""What this process compiled, and what its caches of compiled things answered: counted where it happens, whatever asks
for it, and told in a run's rows by the names of this table.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

COMPILED = {
    "library": "the native library, by the C++ compiler",
    "programs": "modules, written as programs of the native library",
    "units": "functions that Inductor wrote on a CPU; seconds as this process waits for them, several at once",
    "graphs": "graphs of torch.compile",
}
"""What is compiled."""

CACHES = {
    "library": "the file of the native library",
    "programs": "in this process",
    "units": "files of Inductor's functions",
    "graphs": "torch's own cache of compiled graphs",
    "blueprints": "documents that are blueprints already, in this process",
    "artefacts": "of a store, in this process",
}
"""Where it is looked for before; a hit is a look-up that found it."""


class Counted(NamedTuple):
    """A number that is counted.

    Attributes:
      what: ``compilations``, ``compilation_seconds``, ``cache_hits`` or ``cache_misses``.
      of: of ``COMPILED``, or of ``CACHES``.
    """

    what: str
    of: str


_FACTS = {"compilations": COMPILED, "compilation_seconds": COMPILED, "cache_hits": CACHES, "cache_misses": CACHES}

NAMES = {f"{what}_{of}": Counted(what, of) for what, known in _FACTS.items() for of in known}
"""Name in a row -> what it counts."""

Lookups = Callable[[], tuple[int, int]]
"""() -> hits and misses of a cache since this process began."""


class Ledger:
    """Sums by name; a forked child begins anew."""

    def __init__(self) -> None:
        self._caches = dict[str, Lookups]()
        self._begin()

    def _begin(self) -> None:
        self._lock, self._pid = Lock(), os.getpid()
        self._sums = dict.fromkeys(NAMES, 0.0)
        self._told = self._now()

    def _own(self) -> Lock:
        if self._pid != os.getpid():
            self._begin()
        return self._lock

    def _now(self) -> dict[str, float]:
        found = dict(self._sums)
        for name, lookups in self._caches.items():
            found[f"cache_hits_{name}"], found[f"cache_misses_{name}"] = map(float, lookups())
        return found

    def cache(self, name: str, lookups: Lookups) -> None:
        """Ask a cache that counts by itself."""
        with self._own():
            self._caches[name] = lookups

    def add(self, name: str, number: float) -> None:
        """Add to a number of ``NAMES``."""
        with self._own():
            self._sums[name] += number

    def since_told(self) -> dict[str, float]:
        """All numbers of ``NAMES``, each as it grew since this was asked last, or since the process began."""
        with self._own():
            now = self._now()
            before, self._told = self._told, now
        return {name: value - before[name] for name, value in now.items()}


LEDGER = Ledger()
"""Of this process."""


def count_compiled(kind: str, seconds: float, number: int = 1) -> None:
    """Count compilations; ``seconds``: that they took, all together."""
    LEDGER.add(f"compilations_{kind}", number)
    LEDGER.add(f"compilation_seconds_{kind}", seconds)


@contextmanager
def compiling(kind: str, number: int = 1) -> Iterator[None]:
    """A context that is ``number`` compilations, also where it raises."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        count_compiled(kind, time.perf_counter() - begun, number)


def looked_up(cache: str, hit: bool) -> None:
    """Count a look-up in a cache."""
    LEDGER.add(f"cache_{'hits' if hit else 'misses'}_{cache}", 1)
