"""Connections to the databases that a store may use: one SQL text for all, whatever carries it there.

Without a URL that is the standard library's SQLite; with one it is SQLAlchemy Core, for SQLite and PostgreSQL alike.
Both give the same two kinds of transaction. In ``reading`` each statement sees one state. ``writing`` runs alone: it
takes the database's one lock for writers when it begins, so that what it reads is still so when it commits, and nothing
that waits for the lock has read anything yet.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

from esper.urza.lock import network_of
from esper.utils.documents import cause
from esper.utils.failpoints import reach

WAIT = 5.0
"""Seconds to wait for another process that writes."""

LARGEST_LOG = 1 << 24
"""Bytes to which SQLite's log is cut when it was written back."""

Rows = Sequence[tuple[Any, ...]]


class ServiceLost(ConnectionError):
    """A service that does not answer, or not as it should; one line without secrets."""


class DatabaseFails(OSError):
    """A local database that cannot be read or written; one line."""


class Execute(Protocol):
    """Run one statement: names after ``:`` are bound to values, never spliced into the text."""

    def __call__(self, statement: str, **values: Any) -> Rows:
        """Rows that it gives; empty where it gives none."""


class Connections(Protocol):
    """Transactions of a database; both raise OSError where it is lost."""

    def reading(self) -> Any:
        """A context whose value is an ``Execute`` for statements that change nothing."""

    def writing(self) -> Any:
        """A context whose value is an ``Execute``: all of the block, on the disk when it ends, or nothing."""

    def close(self) -> None:
        """Close what is open."""


def prepare_sqlite(execute: Callable[[str], object], folder: Path | None) -> None:
    """Settings of a new connection to SQLite.

    Args:
      execute: runs one statement.
      folder: of its file; None = in memory.
    """
    execute("PRAGMA trusted_schema = OFF")
    execute(f"PRAGMA busy_timeout = {int(WAIT * 1000)}")
    # the log needs memory that all its users share, which machines of a network do not
    shared = folder is None or network_of(folder) is not None
    execute(f"PRAGMA journal_mode = {'DELETE' if shared else 'WAL'}")
    execute("PRAGMA synchronous = FULL")
    execute(f"PRAGMA journal_size_limit = {LARGEST_LOG}")


class SqliteConnections:
    """A SQLite file, or memory, through the standard library; one connection that threads take in turn."""

    def __init__(self, path: Path | None, schema: Sequence[str] = ()) -> None:
        """Nothing is opened before it is used.

        Args:
          path: the file; None = in memory.
          schema: statements that make what is not there.
        """
        self.path, self._schema = path, schema
        self._lock, self._pid = RLock(), os.getpid()
        self._open: sqlite3.Connection | None = None

    def _connection(self) -> sqlite3.Connection:
        """The process's own; what a parent opened is left alone, for to close it would end the parent's locks."""
        if self._open is None:
            place = ":memory:" if self.path is None else self.path
            opened = sqlite3.connect(place, timeout=WAIT, isolation_level=None, check_same_thread=False)
            try:
                prepare_sqlite(opened.execute, None if self.path is None else self.path.parent)
                opened.execute("BEGIN IMMEDIATE")
                for statement in self._schema:
                    opened.execute(statement)
                opened.execute("COMMIT")
            except BaseException:
                opened.close()
                raise
            self._open = opened
        return self._open

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Execute]:
        if self._pid != os.getpid():
            self._lock, self._pid, self._left, self._open = RLock(), os.getpid(), self._open, None
        with self._lock, _told(self.path):
            connection = self._connection()

            def execute(statement: str, **values: Any) -> Rows:
                return connection.execute(statement, values).fetchall()

            connection.execute(begin)
            try:
                yield execute
                reach("commit")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def reading(self) -> Any:
        """See ``Connections``."""
        return self._transaction("BEGIN")

    def writing(self) -> Any:
        """See ``Connections``."""
        return self._transaction("BEGIN IMMEDIATE")

    def close(self) -> None:
        """See ``Connections``."""
        with self._lock:
            if self._open is not None and self._pid == os.getpid():
                self._open.close()
            self._open = None


@contextmanager
def _told(path: Path | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise DatabaseFails(f"{path or 'memory'}: {cause(error)}") from None
