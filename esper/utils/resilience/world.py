"""What of the world outside waiting depends on: the time, sleeping, and chance. Tests have worlds of their own."""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

BITS = 53
"""Of a fraction, as many as a float holds."""


class World(NamedTuple):
    """Attributes.

    Attributes:
      now: seconds that never run backwards.
      sleep: waits so many seconds.
      chance: a number in [0, 1), uniform and independent of those before.
    """

    now: Callable[[], float]
    sleep: Callable[[float], None]
    chance: Callable[[], float]


def _chance() -> float:
    """From the system: processes that fail together must not come back together."""
    return (int.from_bytes(os.urandom(8), "big") >> (64 - BITS)) * 2.0**-BITS


REAL = World(time.monotonic, time.sleep, _chance)
"""The world as it is. No number of a run depends on it."""
