"""A store of artefacts: content-addressed, in four tiers, of which none needs a service."""

from esper.urza.store.contract import (
    FORMAT,
    REASONS,
    Artefact,
    Failure,
    Store,
    StoreEntry,
    StoreError,
    id_of,
    key_of,
)
from esper.urza.store.flights import Flights
from esper.urza.store.opening import StoreSettings, from_environment, memory_store, open_store
from esper.urza.store.ready import ReadyCache
from esper.urza.store.tiers import Tiers

__all__ = [
    "FORMAT",
    "REASONS",
    "Artefact",
    "Failure",
    "Flights",
    "ReadyCache",
    "Store",
    "StoreEntry",
    "StoreError",
    "StoreSettings",
    "Tiers",
    "from_environment",
    "id_of",
    "key_of",
    "memory_store",
    "open_store",
]
