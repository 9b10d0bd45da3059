"""Connections by SQLAlchemy Core, for a database that has an address: SQLite and PostgreSQL on one path."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from esper.urza.store.addresses import package, shown_address, told
from esper.urza.store.connections import WAIT, DatabaseFails, Execute, Rows, ServiceLost, prepare_sqlite
from esper.urza.store.contract import StoreError
from esper.utils.failpoints import reach

DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
"""Schemes of addresses, and how SQLAlchemy calls them."""

WRITERS = 0x45535045
"""Number of the lock that a writer of PostgreSQL takes, so that writers take turns as they do in SQLite."""

POOL = {"pool_size": 8, "max_overflow": 24, "pool_timeout": WAIT, "pool_pre_ping": True}

LIMITS = {"connect_timeout": 2, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 2}
"""Of a connection to PostgreSQL: seconds, and packets without an answer."""

STATEMENT = "SET statement_timeout = '10s'; SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '90s'"


class AlchemyConnections:
    """A database by its address. Each process has an engine of its own, made at its first transaction."""

    def __init__(self, address: str, schema: Sequence[str] = ()) -> None:
        """Nothing is asked yet.

        Args:
          address: ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``.
          schema: statements that make what is not there.

        Raises:
          StoreError: another address, or a package is not installed.
        """
        scheme, found, rest = address.partition("://")
        if not found or scheme not in DRIVERS:
            raise StoreError(
                f"{shown_address(address)}: expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
            )
        self._sql, self._address, self._schema = package("sqlalchemy", address), address, schema
        self._postgres = scheme != "sqlite"
        if self._postgres:
            package("psycopg", address)
        try:
            self._url = self._sql.make_url(f"{DRIVERS[scheme]}://{rest}")
        except (self._sql.exc.ArgumentError, ValueError):
            raise StoreError(f"{shown_address(address)}: expected an address of a database") from None
        self._engine: Any = None
        self._pid, self._made = os.getpid(), False

    def _own_engine(self) -> Any:
        """The process's own engine: a connection that was inherited speaks with another process's server."""
        if self._engine is not None and self._pid != os.getpid():
            self._engine.dispose(close=False)
            self._engine = None
        if self._engine is None:
            self._pid = os.getpid()
            arguments: dict[str, Any] = {"connect_args": LIMITS} if self._postgres else {}
            engine = self._sql.create_engine(self._url, hide_parameters=True, **POOL, **arguments)
            self._sql.event.listen(engine, "connect", self._prepare)
            self._engine = engine
        return self._engine

    def _prepare(self, connection: Any, _: object) -> None:
        if self._postgres:
            connection.autocommit = True
            connection.execute(STATEMENT)
            connection.autocommit = False
            return
        connection.isolation_level = None  # or the driver begins transactions itself, as readers
        place = self._url.database
        prepare_sqlite(connection.execute, Path(place).absolute().parent if place else None)

    @contextmanager
    def _transaction(self, begin: str, writes: bool) -> Iterator[Execute]:
        with self._told(), self._own_engine().connect() as connection:

            def execute(statement: str, **values: Any) -> Rows:
                result = connection.execute(self._sql.text(statement), values)
                return [tuple(row) for row in result] if result.returns_rows else ()

            if not self._postgres:
                connection.exec_driver_sql(begin)
            elif writes:
                execute("SELECT pg_advisory_xact_lock(:number)", number=WRITERS)
            yield execute
            reach("commit")
            connection.commit()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._sql.exc.DBAPIError as error:
            kind = ServiceLost if self._postgres else DatabaseFails
            raise kind(told(error.orig or error, self._address)) from None
        except self._sql.exc.SQLAlchemyError as error:  # no connection is free in time, for one
            raise ServiceLost(told(error, self._address)) from None

    def _make(self) -> None:
        """Make the tables; again only where another process did so at the same moment."""
        with self._transaction("BEGIN IMMEDIATE", True) as execute:
            for statement in self._schema:
                execute(statement)
        self._made = True

    @contextmanager
    def reading(self) -> Iterator[Execute]:
        """See ``Connections``."""
        if not self._made:
            self._make()
        with self._transaction("BEGIN", False) as execute:
            yield execute

    @contextmanager
    def writing(self) -> Iterator[Execute]:
        """See ``Connections``."""
        if not self._made:
            self._make()
        with self._transaction("BEGIN IMMEDIATE", True) as execute:
            yield execute

    def close(self) -> None:
        """See ``Connections``."""
        if self._engine is not None:
            self._engine.dispose(close=self._pid == os.getpid())
            self._engine = None
