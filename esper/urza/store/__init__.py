"""A store of artefacts: content-addressed, in four tiers, of which none needs a service."""

from esper.urza.store.compile_queue import CompileQueue
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
from esper.urza.store.requests import BlueprintStatus, CompileRequest
from esper.urza.store.tiers import Tiers
from esper.urza.store.upkeep import Collected, Damage, collect, verify

__all__ = [
    "FORMAT",
    "REASONS",
    "Artefact",
    "BlueprintStatus",
    "Collected",
    "CompileQueue",
    "CompileRequest",
    "Damage",
    "Failure",
    "Flights",
    "ReadyCache",
    "Store",
    "StoreEntry",
    "StoreError",
    "StoreSettings",
    "Tiers",
    "collect",
    "from_environment",
    "id_of",
    "key_of",
    "memory_store",
    "open_store",
    "verify",
]
