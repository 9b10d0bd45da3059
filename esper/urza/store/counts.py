"""Counters that several threads add to."""

from collections import Counter
from threading import Lock


class Counts:
    """Counters by name."""

    def __init__(self) -> None:
        self._lock, self._counts = Lock(), Counter[str]()

    def add(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name] += number

    def read(self) -> dict[str, int]:
        """All counters as they are now."""
        with self._lock:
            return dict(self._counts)
