"""Chaos: failures at random, behind the interface that fault points have: ``reach(name)`` raises or does nothing.

Which arrival fails depends on the seed, the name and how often the name was reached, so a run that went wrong can be
had again.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Collection

from esper.utils.failpoints import ERRORS


class Chaos:
    """A source of failures.

    Attributes:
      met: failures so far, by point.
    """

    def __init__(self, seed: int, rate: float, kinds: Collection[str] = tuple(ERRORS)) -> None:
        """Set what may fail.

        Args:
          seed: of all draws.
          rate: probability of a failure at each arrival, in [0, 1].
          kinds: of ``esper.utils.failpoints.ERRORS``.

        Raises:
          ValueError: a kind that there is not, or another rate.
        """
        if not 0 <= rate <= 1 or not kinds or not set(kinds) <= ERRORS.keys():
            raise ValueError(f"rate = {rate}, kinds = {kinds}: expected 0 to 1, and some of {', '.join(ERRORS)}")
        self._seed, self._rate, self._kinds = seed, rate, sorted(kinds)
        self._arrivals: Counter[str] = Counter()
        self.met: Counter[str] = Counter()

    def reach(self, name: str) -> None:
        """Arrive at a point.

        Raises:
          OSError: this arrival fails.
        """
        self._arrivals[name] += 1
        digest = hashlib.sha256(f"{self._seed}:{name}:{self._arrivals[name]}".encode()).digest()
        if int.from_bytes(digest[:8], "big") < self._rate * 2**64:
            self.met[name] += 1
            number = ERRORS[self._kinds[int.from_bytes(digest[8:12], "big") % len(self._kinds)]]
            raise OSError(number, f"{os.strerror(number)} (chaos at {name})")
