"""Opening a store by its settings: none of them is needed, and what is not named needs no service."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

from esper.urza.store import entries, requests
from esper.urza.store.alchemy import AlchemyConnections
from esper.urza.store.buckets import BucketObjects
from esper.urza.store.cache import RedisCache
from esper.urza.store.connections import Connections, SqliteConnections
from esper.urza.store.contract import StoreError
from esper.urza.store.entries import Entries
from esper.urza.store.flights import Flights
from esper.urza.store.objects import DirectoryObjects, MemoryObjects, Objects
from esper.urza.store.outbox import Outbox
from esper.urza.store.tiers import Tiers
from esper.utils.documents import cause
from esper.utils.paths import cache_folder, user_path
from esper.utils.settings import setting

FILE = "store.sqlite"
"""The database of a store that names no other."""

SCHEMA = (*entries.SCHEMA, *requests.SCHEMA)

PREFIX = "ESPER_STORE_"
"""How variables of the environment begin that hold settings; addresses with passwords belong there."""


@dataclass(frozen=True)
class StoreSettings:
    """Where a store keeps what it holds."""

    folder: str = setting("", "folder of the store; empty = a cache folder of this user's")
    redis: str = setting("", "address of a Redis server, such as redis://host:6379/0; empty = none")
    sql: str = setting("", "address of a database, such as postgresql://user@host/name; empty = SQLite in the folder")
    objects: str = setting("", "address of a bucket, such as s3://name?region=...; empty = a directory in the folder")


def from_environment() -> StoreSettings:
    """The settings that ``ESPER_STORE_FOLDER``, ``_REDIS``, ``_SQL`` and ``_OBJECTS`` hold."""
    names = [entry.name for entry in fields(StoreSettings)]
    return StoreSettings(**{name: os.environ.get(PREFIX + name.upper(), "") for name in names})


def open_store(settings: StoreSettings | None = None) -> Tiers:
    """Open a store; it is made if it is not there.

    Args:
      settings: None = those of the environment.

    Raises:
      StoreError: a setting that is not allowed, a package that is not installed, or a folder that cannot be made; one
        line. A service that does not answer is no error.
    """
    settings = from_environment() if settings is None else settings
    connections = AlchemyConnections(settings.sql, SCHEMA) if settings.sql else None
    bucket = BucketObjects(settings.objects) if settings.objects else None
    cache = RedisCache(settings.redis) if settings.redis else None
    folder, objects = _prepared(settings.folder, bucket)
    database: Connections = SqliteConnections(folder / FILE, SCHEMA) if connections is None else connections
    return Tiers(Entries(database), objects, Outbox(folder), Flights(folder / "flights"), cache)


def _prepared(name: str, bucket: Objects | None) -> tuple[Path, Objects]:
    """The folder, and where objects lie."""
    try:
        folder = user_path(name) if name else cache_folder("store")
        folder.mkdir(parents=True, exist_ok=True)
        return folder, DirectoryObjects(folder / "objects") if bucket is None else bucket
    except (OSError, ValueError) as error:
        raise StoreError(f"{name or 'store'}: {cause(error)}; expected a folder to write into") from None


def memory_store() -> Tiers:
    """A store that ends with this process, for tests and trials."""
    return Tiers(Entries(SqliteConnections(None, SCHEMA)), MemoryObjects(), None, Flights(None))
