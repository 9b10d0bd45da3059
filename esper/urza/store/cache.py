"""The second tier: copies in Redis, for a day, and word of what was deleted to every process that follows.

A copy carries its row, so that it can stand in where the database is lost; both are compared with their digests. Redis
holds nothing that is not elsewhere: it may be emptied or cut off at any time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from esper.urza.keeping import LIFETIME, SCHEMES
from esper.urza.store.addresses import package, shown_address, told
from esper.urza.store.connections import ServiceLost
from esper.urza.store.contract import FORMAT, StoreError

KEY, CHANNEL = f"esper:store:{FORMAT}:", f"esper:store:{FORMAT}:gone"

WAIT = 1.0
"""Seconds after which a server that says nothing is given up."""

LARGEST = 1 << 26
"""Bytes of a copy, at most; larger artefacts are read where they lie."""

MOST_IDS = 100
"""In one message: a subscriber that reads slowly must not be cut off for it."""


class RedisCache:
    """Copies in a Redis server; every method raises OSError where it is lost."""

    def __init__(self, address: str) -> None:
        """Nothing is asked yet.

        Raises:
          StoreError: no address of Redis, or the package is not installed.
        """
        if not address.startswith(SCHEMES):
            raise StoreError(f"{shown_address(address)}: expected an address that begins with {' or '.join(SCHEMES)}")
        self._redis, self._address = package("redis", address), address
        once = package("redis.retry", address).Retry(package("redis.backoff", address).NoBackoff(), 0)
        try:
            self._client = self._redis.Redis.from_url(
                address, socket_timeout=WAIT, socket_connect_timeout=WAIT, retry=once
            )
        except (ValueError, TypeError) as error:
            raise StoreError(f"{told(error, address)}; expected an address of a Redis server") from None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (self._redis.RedisError, OSError, ValueError) as error:
            raise ServiceLost(told(error, self._address)) from None

    def get(self, id: str) -> bytes | None:
        """The bytes of a copy, unchecked; None where there is none."""
        with self._told():
            found = self._client.get(KEY + id)
        return bytes(found) if found is not None else None

    def put(self, id: str, data: bytes) -> None:
        """Keep the bytes of a copy, unless they are too many."""
        if len(data) <= LARGEST:
            with self._told():
                self._client.set(KEY + id, data, ex=LIFETIME)

    def forget(self, id: str) -> None:
        """Remove one copy, of which nobody need hear."""
        with self._told():
            self._client.delete(KEY + id)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove copies, and tell all that follow."""
        with self._told():
            for start in range(0, len(ids), MOST_IDS):
                some = ids[start : start + MOST_IDS]
                self._client.delete(*(KEY + id for id in some))
                self._client.publish(CHANNEL, ",".join(some))

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def subscribe(self) -> Any:
        """A subscription to what is deleted."""
        subscription = self._client.pubsub()
        with self._told():
            subscription.subscribe(CHANNEL)
        return subscription
