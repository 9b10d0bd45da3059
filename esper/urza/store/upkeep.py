"""Looking after a store: what in it is damaged, and what nobody refers to any more."""

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from esper.urza.store.contract import Failure, id_of
from esper.urza.store.entries import Record
from esper.urza.store.tiers import Tiers

GRACE = 86_400.0
"""Seconds for which an object may lie without a row: its writer may be about to commit it."""

SECOND = 1_000_000_000


class Damage(NamedTuple):
    """Something that is not as it was put.

    Attributes:
      id: of the artefact.
      tier: database or objects.
      detail: one line.
      repaired: whether another tier had it as it was, and it was written again.
    """

    id: str
    tier: str
    detail: str
    repaired: bool


class Collected(NamedTuple):
    """What was removed as garbage.

    Attributes:
      objects: how many, without a row and older than the grace period.
      bytes: of these.
      kept: without a row, and younger.
      leftovers: files that writers left half-done, and locks.
    """

    objects: int
    bytes: int
    kept: int
    leftovers: int


def verify(store: Tiers) -> Iterator[Damage]:
    """Compare every artefact with its digests, in SQL and where its object lies; repaired is what Redis has whole.

    Raises:
      OSError: a service is lost.
    """
    for id in sorted(store.watched.ask("database", store.entries.ids)):
        row = store.watched.ask("database", partial(store.entries.get, id))
        if isinstance(row, Failure):
            yield Damage(id, "database", row.detail, store.restore(id))
        elif isinstance(row, Record):
            detail = _object_damage(store, row)
            if detail is not None:
                yield Damage(id, "objects", detail, store.restore(id))


def _object_damage(store: Tiers, row: Record) -> str | None:
    data = store.watched.ask("objects", lambda: store.objects.get(row.id))
    if data is None:
        return f"{row.id}: its object is not there"
    return None if id_of(data) == row.id else f"{row.id}: its object was altered"


def collect(store: Tiers, grace: float = GRACE, now: float | None = None) -> Collected:
    """Remove objects that no row refers to and that are older than a grace period.

    No put is disturbed: an object is looked at once more, and removed, while no row can be added.

    Args:
      store: the store.
      grace: seconds.
      now: seconds since 1970; None = the clock's.

    Raises:
      OSError: a service is lost.
    """
    before = (time.time() if now is None else now) - grace
    kept_ids = store.watched.ask("database", store.entries.ids)
    objects = size = kept = 0
    for stored in store.watched.ask("objects", lambda: list(store.objects.list())):
        if stored.id in kept_ids:
            continue
        if stored.written >= before or not _removed(store, stored.id, before):
            kept += 1
            continue
        objects, size = objects + 1, size + stored.size
    leftovers = store.watched.ask("objects", lambda: store.objects.sweep(before)) + store.flights.sweep(before)
    with suppress(OSError):  # notes of changes are for memories, which live no longer than that
        store.entries.forget_changes(int((before - GRACE) * SECOND))
    return Collected(objects, size, kept, leftovers)


def _removed(store: Tiers, id: str, before: float) -> bool:
    """Remove an object that is still old and still without a row."""
    removed = list[str]()

    def remove() -> None:
        found = store.objects.stored(id)
        if found is not None and found.written < before:
            store.objects.remove(id)
            removed.append(id)

    store.watched.ask("database", lambda: store.entries.unless_kept(id, remove))
    return bool(removed)
