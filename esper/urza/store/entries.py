"""The third tier: what is known of artefacts, in SQL. A row here is what makes an artefact be there (commit point).

Each row is sealed by a digest of all that it says. ``written`` orders what happened to an id: every put and every
deletion has a higher one than those before it, whatever the clocks of the machines say.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from esper.urza.store.connections import Connections, Execute, Rows
from esper.urza.store.contract import FORMAT, Failure, StoreEntry, facts_text, matches
from esper.utils.documents import shown

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS artefacts (id VARCHAR(64) PRIMARY KEY, format INTEGER NOT NULL, size BIGINT NOT NULL, "
    "written BIGINT NOT NULL, facts TEXT NOT NULL, seal VARCHAR(64) NOT NULL)",
    "CREATE TABLE IF NOT EXISTS facts (id VARCHAR(64) NOT NULL, name VARCHAR(200) NOT NULL, "
    "value VARCHAR(500) NOT NULL, PRIMARY KEY (id, name))",
    "CREATE INDEX IF NOT EXISTS facts_by_value ON facts (name, value)",
    "CREATE TABLE IF NOT EXISTS changes (number BIGINT PRIMARY KEY, id VARCHAR(64) NOT NULL, moment BIGINT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS changes_by_id ON changes (id)",
)
"""Tables; SQLite and PostgreSQL take the same text. ``changes`` tells what memories must drop: rows that were removed,
at which moment, and rows whose facts were replaced, which is no removal (moment 0)."""

COLUMNS = "id, format, size, written, facts, seal"

LONGEST_NAME, LONGEST_VALUE = 200, 500
"""Characters of a fact that a listing finds by index; longer ones are looked for in the rows."""


class Record(NamedTuple):
    """A row.

    Attributes:
      id, size, written, format: see ``StoreEntry``.
      facts: as text, see ``facts_text``.
    """

    id: str
    size: int
    written: int
    facts: str
    format: int = FORMAT

    @property
    def seal(self) -> str:
        """Digest of all of it."""
        text = json.dumps([self.id, self.format, self.size, self.written, self.facts], default=repr)
        return hashlib.sha256(text.encode()).hexdigest()

    def entry(self) -> StoreEntry:
        """The same with facts as a table of its own."""
        return StoreEntry(self.id, self.size, json.loads(self.facts), self.written, self.format)


def sealed(row: Sequence[Any]) -> Record | Failure:
    """A row's record; damaged where its seal is another."""
    id, format, size, written, facts, seal = row
    record = Record(id, size, written, facts, format)
    return record if record.seal == seal else Failure("damaged", f"{shown(id)}: its entry does not match its seal")


class Added(NamedTuple):
    """What became of a put.

    Attributes:
      record: the row that is there now.
      replaced: whether another one was there, with other facts.
    """

    record: Record
    replaced: bool


class Entries:
    """Rows of artefacts and of changes; every method raises OSError where the database is lost."""

    def __init__(self, connections: Connections, clock: Callable[[], int] = time.time_ns) -> None:
        self.connections, self._clock = connections, clock

    def get(self, id: str) -> Record | Failure | None:
        """A row; None where there is none."""
        with self.connections.reading() as execute:
            rows = self._rows(execute, id)
        return sealed(rows[0]) if rows else None

    def add(self, record: Record, present: Callable[[], bool], replay: bool = False) -> Added | None:
        """Commit a row in place of the one of its id.

        Args:
          record: the row; its ``written`` is raised above all that happened to this id.
          present: whether its object is there, asked while no garbage is collected.
          replay: it was put when the record says: whatever happened since counts, and this does not.

        Returns:
          the row that is there now; None where the object is not, and nothing was committed.
        """
        with self.connections.writing() as execute:
            last, rows = self._last(execute, record.id), self._rows(execute, record.id)
            if replay and last >= record.written:
                found = sealed(rows[0]) if rows else record
                return Added(found if isinstance(found, Record) else record, False)
            if not present():
                return None
            record = record._replace(written=max(record.written, last + 1))
            replaced = bool(rows) and rows[0][4] != record.facts
            self._forget(execute, record.id)
            execute(
                f"INSERT INTO artefacts ({COLUMNS}) VALUES (:id, :format, :size, :written, :facts, :seal)",
                **record._asdict(),
                seal=record.seal,
            )
            for name, value in _indexed(json.loads(record.facts)):
                execute("INSERT INTO facts VALUES (:id, :name, :value)", id=record.id, name=name, value=value)
            if replaced:
                self._note(execute, record.id, 0)
        return Added(record, replaced)

    def remove(self, ids: Iterable[str], moment: int | None = None) -> tuple[str, ...]:
        """Remove rows, and note that.

        Args:
          ids: which; those that are not there are noted as well, for a replay of a put that may come.
          moment: what was put later stays; None = now.

        Returns:
          those that were there.
        """
        gone = []
        with self.connections.writing() as execute:
            for id in ids:
                last = self._last(execute, id)
                if moment is not None and last > moment:
                    continue
                if self._rows(execute, id):
                    gone.append(id)
                self._forget(execute, id)
                self._note(execute, id, max(self._clock(), last + 1) if moment is None else moment)
        return tuple(gone)

    def unless_kept(self, id: str, remove: Callable[[], None]) -> bool:
        """Call a function if there is no row of an id, while none can be added; whether it was called."""
        with self.connections.writing() as execute:
            if execute("SELECT 1 FROM artefacts WHERE id = :id", id=id):
                return False
            remove()
        return True

    def list(self, facts: dict[str, Any]) -> tuple[Record, ...]:
        """Rows with these facts, the oldest first; those that are damaged are left out."""
        wanted = json.loads(facts_text(facts))
        found, values = list[str](), dict[str, str]()
        for number, (name, value) in enumerate(_indexed(wanted)):
            found.append(f"id IN (SELECT id FROM facts WHERE name = :name{number} AND value = :value{number})")
            values |= {f"name{number}": name, f"value{number}": value}
        where = f" WHERE {' AND '.join(found)}" if found else ""
        with self.connections.reading() as execute:
            rows = execute(f"SELECT {COLUMNS} FROM artefacts{where} ORDER BY written, id", **values)
        records = [record for row in rows if isinstance(record := sealed(row), Record)]
        return tuple(record for record in records if _has(json.loads(record.facts), wanted))

    def matching(self, prefix: str, version: str) -> tuple[str, ...]:
        """Ids of the entries that ``Store.invalidate`` means."""
        wanted = {"version": version} if version else {}
        return tuple(record.id for record in self.list(wanted) if matches(record.entry(), prefix, version))

    def ids(self) -> frozenset[str]:
        """Ids of all rows, damaged ones too."""
        with self.connections.reading() as execute:
            return frozenset(str(id) for (id,) in execute("SELECT id FROM artefacts"))

    def latest_change(self) -> int:
        """Its number; 0 = none yet."""
        with self.connections.reading() as execute:
            ((number,),) = execute("SELECT COALESCE(MAX(number), 0) FROM changes")
        return int(number)

    def changed_since(self, number: int) -> tuple[int, tuple[str, ...]]:
        """The number of the latest change, and the ids of those after ``number``."""
        with self.connections.reading() as execute:
            rows = execute("SELECT number, id FROM changes WHERE number > :number ORDER BY number", number=number)
        return (int(rows[-1][0]) if rows else number), tuple(str(id) for _, id in rows)

    def forget_changes(self, before: int) -> None:
        """Drop notes of what changed before a time; the latest stays, so that numbers go on."""
        with self.connections.writing() as execute:
            rows = execute("SELECT MAX(number) FROM changes WHERE moment > 0 AND moment < :before", before=before)
            if rows[0][0] is not None:
                execute(
                    "DELETE FROM changes WHERE number <= :number AND number < (SELECT MAX(number) FROM changes)",
                    number=rows[0][0],
                )

    def close(self) -> None:
        """Close the database."""
        self.connections.close()

    def _last(self, execute: Execute, id: str) -> int:
        """When something happened to an id the last time; 0 = never."""
        ((written,),) = execute("SELECT COALESCE(MAX(written), 0) FROM artefacts WHERE id = :id", id=id)
        ((moment,),) = execute("SELECT COALESCE(MAX(moment), 0) FROM changes WHERE id = :id", id=id)
        return max(int(written), int(moment))

    def _rows(self, execute: Execute, id: str) -> Rows:
        return execute(f"SELECT {COLUMNS} FROM artefacts WHERE id = :id", id=id)

    def _forget(self, execute: Execute, id: str) -> None:
        execute("DELETE FROM artefacts WHERE id = :id", id=id)
        execute("DELETE FROM facts WHERE id = :id", id=id)

    def _note(self, execute: Execute, id: str, moment: int) -> None:
        ((number,),) = execute("SELECT COALESCE(MAX(number), 0) FROM changes")
        execute("INSERT INTO changes VALUES (:number, :id, :moment)", number=number + 1, id=id, moment=moment)


def _indexed(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Facts that are found by index, their values as JSON."""
    pairs = [(json.dumps(name)[1:-1], json.dumps(value)) for name, value in facts.items() if _scalar(value)]
    return [(name, value) for name, value in pairs if len(name) <= LONGEST_NAME and len(value) <= LONGEST_VALUE]


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int)


def _has(facts: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(name in facts and json.dumps(facts[name]) == json.dumps(value) for name, value in wanted.items())
