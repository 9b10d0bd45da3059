"""Dead letters: operations that failed and can be repeated, kept durably until somebody repeats or drops them.

One SQLite database (write-ahead log, synchronous FULL: what was acknowledged survives a crash of the machine). A letter
refers to its payload by hash. None goes away by itself: what was repeated or dropped stays as a line that says so. Room
for a letter is taken in advance, since the commonest failure is a full disk.
"""

import hashlib
import sqlite3
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from esper.utils.documents import cause
from esper.utils.resilience.causes import cause_of

FILE = "dead_letters.sqlite"
"""Name of the queue in a run directory."""

ROOM = 1 << 19
"""Bytes that are taken in advance, in the database and once more in its log."""

LARGEST = 1 << 26
"""Bytes of a payload, at most."""

WAIT = 5.0
"""Seconds to wait for another process that writes."""

SCHEMA = (
    "CREATE TABLE payloads (hash TEXT PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE letters (number INTEGER PRIMARY KEY AUTOINCREMENT, operation TEXT NOT NULL, target TEXT NOT NULL, "
    "payload TEXT NOT NULL, cause TEXT NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL, first REAL NOT NULL, "
    "last REAL NOT NULL, state TEXT NOT NULL)",
    "CREATE UNIQUE INDEX waiting ON letters (operation, target) WHERE state = 'waiting'",
)

COLUMNS = "number, operation, target, payload, cause, reason, attempts, first, last"


class DeadLetterError(ValueError):
    """A queue that cannot be read or written; one line with the file and what is wrong."""


class LetterState(Enum):
    """What became of a letter."""

    WAITING = "waiting"
    DONE = "done"
    DROPPED = "dropped"


class Letter(NamedTuple):
    """An operation that failed.

    Attributes:
      number: in its queue.
      operation: what is to be repeated.
      target: on what.
      payload: SHA-256 of what it needs.
      cause: name of the last failure's cause.
      reason: the last failure in its own words.
      attempts: how often it failed.
      first, last: when, seconds since 1970.
    """

    number: int
    operation: str
    target: str
    payload: str
    cause: str
    reason: str
    attempts: int
    first: float
    last: float


class DeadLetters:
    """A queue.

    Attributes:
      path: its file.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Open the queue; make it if it is not there.

        Args:
          path: file in a directory that is there.
          clock: seconds since 1970.

        Raises:
          DeadLetterError: it cannot be opened, or is no queue of this form.
        """
        self.path, self._clock = path, clock
        if path.is_symlink() or (path.exists() and not stat.S_ISREG(path.stat().st_mode)):
            raise DeadLetterError(f"{path}: expected a regular file")
        with self._told():
            self._open = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
        try:
            with self._told():
                self._prepare()
        except DeadLetterError:
            self._open.close()
            raise

    def put(self, operation: str, target: str, payload: bytes, error: BaseException) -> int:
        """Add a letter; or count another failure of one that waits, whose payload is replaced.

        Args:
          operation, target: what is to be repeated on what; one letter waits for each pair.
          payload: what it needs.
          error: how it failed.

        Returns:
          its number. The letter is on the disk then.

        Raises:
          DeadLetterError: it cannot be written.
        """
        if len(payload) > LARGEST:
            raise DeadLetterError(f"{self.path}: {operation} {target}: {len(payload)} bytes; expected <= {LARGEST}")
        name, now = hashlib.sha256(payload).hexdigest(), self._clock()
        with self._written():
            self._open.execute("INSERT OR IGNORE INTO payloads VALUES (?, ?)", (name, zlib.compress(payload)))
            (number,) = self._open.execute(
                "INSERT INTO letters (operation, target, payload, cause, reason, attempts, first, last, state) "
                "VALUES (?, ?, ?, ?, ?, 1, ?, ?, 'waiting') ON CONFLICT (operation, target) WHERE state = 'waiting' "
                "DO UPDATE SET payload = excluded.payload, cause = excluded.cause, reason = excluded.reason, "
                "attempts = attempts + 1, last = excluded.last RETURNING number",
                (operation, target, name, cause_of(error).name, cause(error), now, now),
            ).fetchone()
            self._forget_payloads()
        return int(number)

    def waiting(self) -> list[Letter]:
        """Letters that wait, the oldest first."""
        with self._told():
            found = self._open.execute(f"SELECT {COLUMNS} FROM letters WHERE state = 'waiting' ORDER BY number")
            return [Letter(*row) for row in found]

    def ended(self) -> dict[LetterState, int]:
        """How many letters were done, and how many dropped."""
        with self._told():
            found = dict(self._open.execute("SELECT state, count(*) FROM letters GROUP BY state"))
        return {state: int(found.get(state.value, 0)) for state in (LetterState.DONE, LetterState.DROPPED)}

    def payload(self, letter: Letter) -> bytes:
        """What a letter that waits needs.

        Raises:
          DeadLetterError: it is not what was put.
        """
        with self._told():
            row = self._open.execute("SELECT body FROM payloads WHERE hash = ?", (letter.payload,)).fetchone()
        try:
            body = zlib.decompressobj().decompress(bytes(row[0]), LARGEST + 1) if row else b""
        except (zlib.error, TypeError):
            body = b""
        if row is None or hashlib.sha256(body).hexdigest() != letter.payload:
            raise DeadLetterError(f"{self.path}: letter {letter.number}: its payload is damaged; expected what was put")
        return body

    def failed_again(self, number: int, error: BaseException) -> None:
        """Count another failure of a letter."""
        with self._written():
            self._open.execute(
                "UPDATE letters SET cause = ?, reason = ?, attempts = attempts + 1, last = ? WHERE number = ?",
                (cause_of(error).name, cause(error), self._clock(), number),
            )

    def end(self, number: int, state: LetterState) -> bool:
        """Note that a letter was done or dropped; False where none of this number waits. Its payload goes."""
        with self._written():
            found = self._open.execute(
                "UPDATE letters SET state = ?, last = ? WHERE number = ? AND state = 'waiting'",
                (state.value, self._clock(), number),
            )
            self._forget_payloads()
        return found.rowcount == 1

    def close(self) -> None:
        """Close the queue."""
        self._open.close()

    def finish(self) -> None:
        """Close the queue, of whose users this is the last; its file goes where nothing waits and nothing was dropped.

        Raises:
          DeadLetterError, OSError: it cannot be read or removed; it is closed all the same.
        """
        try:
            empty = not self.waiting() and not self.ended()[LetterState.DROPPED]
        finally:
            self._open.close()
        if empty:
            self.path.unlink(missing_ok=True)

    def _prepare(self) -> None:
        self._open.execute("PRAGMA trusted_schema = OFF")
        found = _schema(self._open)
        if found and found != _own_schema():
            raise DeadLetterError(f"{self.path}: another database; expected a queue of dead letters")
        if not found:
            with self._written():
                for statement in SCHEMA if not _schema(self._open) else ():
                    self._open.execute(statement)
        self._open.execute("PRAGMA journal_mode = WAL")
        self._open.execute("PRAGMA synchronous = FULL")

    def reserve(self) -> None:
        """Take ``ROOM`` in advance; it is kept as long as the queue is open.

        Raises:
          DeadLetterError: there is none.
        """
        with self._written():
            self._open.execute("INSERT INTO payloads VALUES ('', zeroblob(?))", (ROOM,))
        with self._written():
            self._open.execute("DELETE FROM payloads WHERE hash = ''")
        with self._told():
            self._open.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def _forget_payloads(self) -> None:
        self._open.execute(
            "DELETE FROM payloads WHERE hash NOT IN (SELECT payload FROM letters WHERE state = 'waiting')"
        )

    @contextmanager
    def _written(self) -> Iterator[None]:
        """A transaction: all of the block, on the disk when it ends, or nothing."""
        with self._told():
            self._open.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._open.execute("COMMIT")
            except BaseException:
                if self._open.in_transaction:
                    self._open.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DeadLetterError(f"{self.path}: {error}; expected a queue that can be read and written") from error


def _schema(connection: sqlite3.Connection) -> set[str]:
    """What a database holds, as SQL; SQLite's own tables left out."""
    return {text for (text,) in connection.execute("SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")}


def _own_schema() -> set[str]:
    with closing(sqlite3.connect(":memory:")) as memory:
        for statement in SCHEMA:
            memory.execute(statement)
        return _schema(memory)
