"""Following what other processes delete: word of it comes by Redis, and memory drops it."""

from collections.abc import Callable
from threading import Event, Thread
from time import monotonic
from typing import Any

from esper.urza.store.cache import WAIT, RedisCache
from esper.urza.store.connections import ServiceLost
from esper.urza.store.contract import is_id
from esper.urza.store.counts import Counts

PING, AGAIN = 0.5, 0.2
"""Seconds between two signs of life of a subscription, and between two attempts to subscribe."""


class Follower:
    """A thread that does nothing but drop from memory what others deleted.

    What was sent while it was cut off is lost: after any error, or a sign of life that stays out, it subscribes anew
    and drops everything.

    Attributes:
      counts: heard (ids), cuts, subscriptions.
      following: set while it is subscribed.
    """

    def __init__(self, cache: RedisCache, drop: Callable[[str], object]) -> None:
        """Begin to follow.

        Args:
          cache: whose server.
          drop: told an id; or nothing, which means all.
        """
        self.counts, self.following = Counts(), Event()
        self._cache, self._drop, self._stop = cache, drop, Event()
        self._thread = Thread(target=self._run, name="esper store follower", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._cache.subscribe() as subscription:
                    self._follow(subscription)
            except Exception:  # whatever the client or a server of another kind does: only a new one is sure
                self.counts.add("cuts")
            if self.following.is_set():
                self.following.clear()
                self._drop("")
            self._stop.wait(AGAIN)

    def _follow(self, subscription: Any) -> None:
        asked = heard = monotonic()
        while not self._stop.is_set():
            message = subscription.get_message(timeout=AGAIN)
            now = monotonic()
            if message is not None:
                heard = now
                self._take(message)
            if now - heard > 4 * PING:
                raise ServiceLost("no sign of life")
            if now - asked >= PING:
                subscription.ping()
                asked = now

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("type") == "subscribe":
            self._drop("")  # of what was deleted before, nobody told
            self.counts.add("subscriptions")
            self.following.set()
        if message.get("type") != "message":
            return
        for word in filter(is_id, message["data"].decode("ascii", "replace").split(",")):
            self._drop(word)
            self.counts.add("heard")

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(5 * WAIT)
