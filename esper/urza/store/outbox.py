"""What could not be written while a service was lost, kept on the local disk until it can be.

A put's bytes lie in a directory of objects, what is to be done in SQLite beside it. For each target the latest counts.
"""

import threading
from pathlib import Path
from typing import NamedTuple

from esper.urza.store.connections import SqliteConnections
from esper.urza.store.contract import id_of, is_id
from esper.urza.store.objects import DirectoryObjects
from esper.utils.documents import cause

FILE = "outbox.sqlite"

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS operations (target TEXT PRIMARY KEY, action TEXT NOT NULL, written BIGINT NOT NULL, "
    "size BIGINT NOT NULL, facts TEXT NOT NULL, attempts INTEGER NOT NULL, error TEXT NOT NULL)",
)

COLUMNS = "target, action, written, size, facts, attempts, error"


class PostponedWrite(NamedTuple):
    """What is to be done.

    Attributes:
      target: an id; of an invalidation its prefix and version, a list of JSON; of a request what it begins with.
      action: put, delete, invalidate or request.
      written: when it was asked for, nanoseconds since 1970.
      size, facts: of what is put; of a request its facts.
      attempts: how often it failed.
      error: how it failed the last time, one line.
    """

    target: str
    action: str
    written: int
    size: int = 0
    facts: str = ""
    attempts: int = 0
    error: str = ""


class Outbox:
    """Operations that wait; methods raise OSError where the local disk fails.

    Attributes:
      maybe: False while surely nothing waits that this process put there.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is made before it is needed.

        Args:
          folder: of this store.
        """
        self._folder = folder
        self._connections = SqliteConnections(folder / FILE, SCHEMA)
        self._lock = threading.Lock()
        self.maybe = True

    def _objects(self) -> DirectoryObjects:
        return DirectoryObjects(self._folder / "outbox")

    def _is_there(self) -> bool:
        return (self._folder / FILE).exists()

    def keep(self, operation: PostponedWrite, data: bytes | None = None) -> None:
        """Let an operation wait in place of the one of its target; it is on the disk when this returns."""
        self.maybe = True
        if data is not None:
            self._objects().put(operation.target, data)
        with self._connections.writing() as execute:
            execute("DELETE FROM operations WHERE target = :target", target=operation.target)
            execute(
                f"INSERT INTO operations ({COLUMNS}) VALUES "
                "(:target, :action, :written, :size, :facts, :attempts, :error)",
                **operation._asdict(),
            )

    def waiting(self) -> tuple[PostponedWrite, ...]:
        """All of them, the oldest first."""
        if not self._is_there():
            self.maybe = False
            return ()
        with self._connections.reading() as execute:
            rows = execute(f"SELECT {COLUMNS} FROM operations ORDER BY written")
        self.maybe = bool(rows)
        return tuple(PostponedWrite(*row) for row in rows)

    def of(self, target: str) -> PostponedWrite | None:
        """What waits for a target."""
        if not self._is_there():
            return None
        with self._connections.reading() as execute:
            rows = execute(f"SELECT {COLUMNS} FROM operations WHERE target = :target", target=target)
        return PostponedWrite(*rows[0]) if rows else None

    def data(self, operation: PostponedWrite) -> bytes | None:
        """The bytes of a put; None where they are not those that were put."""
        data = self._objects().get(operation.target)
        return data if data is not None and id_of(data) == operation.target else None

    def failed(self, operation: PostponedWrite, error: BaseException) -> None:
        """Count a failure."""
        with self._connections.writing() as execute:
            execute(
                "UPDATE operations SET attempts = attempts + 1, error = :error "
                "WHERE target = :target AND written = :written",
                target=operation.target,
                written=operation.written,
                error=cause(error),
            )

    def done(self, target: str, written: int) -> None:
        """Forget what waits for a target, if it is no younger than ``written``; its bytes go."""
        if not self._is_there():
            return
        with self._connections.writing() as execute:
            execute(
                "DELETE FROM operations WHERE target = :target AND written <= :written", target=target, written=written
            )
            if not execute("SELECT 1 FROM operations WHERE target = :target", target=target) and is_id(target):
                self._objects().remove(target)

    def close(self) -> None:
        """Close its file."""
        self._connections.close()
