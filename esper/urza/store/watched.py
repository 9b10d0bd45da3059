"""Calls of services under watch: tried again, left alone while they fail (``utils.resilience``), counted by tier."""

from collections.abc import Callable
from typing import TypeVar

from esper.urza.store.counts import Counts
from esper.utils.resilience.services import Service
from esper.utils.resilience.world import REAL, World

Result = TypeVar("Result")

TIERS = ("redis", "database", "objects")
"""Services of a store; the first tier is memory."""


class Watched:
    """Services of a store.

    Attributes:
      counts: by tier, and of the outbox: hits, misses, failures (calls), degradations (answers given without it),
        damaged (copies that did not match their digest), repaired, kept, replayed.
    """

    def __init__(self, world: World = REAL) -> None:
        self.counts = {name: Counts() for name in (*TIERS, "outbox")}
        self._services = {name: Service(f"store {name}", world) for name in TIERS}

    def ask(self, tier: str, function: Callable[[], Result]) -> Result:
        """What a tier answers; again where it fails for a moment.

        Args:
          tier: one of ``TIERS``.
          function: may be called more than once.

        Raises:
          OSError: it is lost, or left alone.
        """
        try:
            return self._services[tier].call(function)
        except OSError:
            self.counts[tier].add("failures")
            raise

    def ask_or(self, tier: str, function: Callable[[], Result], otherwise: Result) -> Result:
        """The same; ``otherwise`` where it is lost, which is a degradation."""
        try:
            return self.ask(tier, function)
        except OSError:
            self.counts[tier].add("degradations")
            return otherwise
