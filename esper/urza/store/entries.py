"""The third tier: what is known of artefacts, in SQL. A row here is what makes an artefact be there (commit point).

Each row is sealed by a digest of all that it says. ``written`` orders what happened to an id: every put and every
deletion has a higher one than those before it, whatever the clocks of the machines say.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from esper.urza.store.connections import Connections, Execute
from esper.urza.store.contract import FORMAT, Failure, StoreEntry, facts_text, matches
from esper.utils.documents import shown

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS artefacts (id VARCHAR(64) PRIMARY KEY, format INTEGER NOT NULL, size BIGINT NOT NULL, "
    "written BIGINT NOT NULL, facts TEXT NOT NULL, seal VARCHAR(64) NOT NULL)",
    "CREATE TABLE IF NOT EXISTS facts (id VARCHAR(64) NOT NULL, name VARCHAR(200) NOT NULL, "
    "value VARCHAR(500) NOT NULL, PRIMARY KEY (id, name))",
    "CREATE INDEX IF NOT EXISTS facts_by_value ON facts (name, value)",
    "CREATE TABLE IF NOT EXISTS removals (number BIGINT PRIMARY KEY, id VARCHAR(64) NOT NULL, moment BIGINT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS removals_by_id ON removals (id)",
)
"""Tables; SQLite and PostgreSQL take the same text."""

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


class Entries:
    """Rows of artefacts and of removals; every method raises OSError where the database is lost."""

    def __init__(self, connections: Connections, clock: Callable[[], int] = time.time_ns) -> None:
        self._connections, self._clock = connections, clock

    def get(self, id: str) -> Record | Failure | None:
        """A row; None where there is none."""
        with self._connections.reading() as execute:
            rows = execute(f"SELECT {COLUMNS} FROM artefacts WHERE id = :id", id=id)
        return sealed(rows[0]) if rows else None

    def add(self, record: Record, present: Callable[[], bool], replay: bool = False) -> Record | None:
        """Commit a row in place of the one of its id.

        Args:
          record: the row; its ``written`` is raised above all that happened to this id.
          present: whether its object is there, asked while no garbage is collected.
          replay: it was put when the record says: whatever happened since counts, and this does not.

        Returns:
          the row that is there now; None where the object is not, and nothing was committed.
        """
        with self._connections.writing() as execute:
            last = self._last(execute, record.id)
            if replay and last >= record.written:
                rows = execute(f"SELECT {COLUMNS} FROM artefacts WHERE id = :id", id=record.id)
                found = sealed(rows[0]) if rows else record
                return found if isinstance(found, Record) else record
            if not present():
                return None
            record = record._replace(written=max(record.written, last + 1))
            execute("DELETE FROM artefacts WHERE id = :id", id=record.id)
            execute("DELETE FROM facts WHERE id = :id", id=record.id)
            execute(
                f"INSERT INTO artefacts ({COLUMNS}) VALUES (:id, :format, :size, :written, :facts, :seal)",
                **record._asdict(),
                seal=record.seal,
            )
            for name, value in _indexed(json.loads(record.facts)):
                execute("INSERT INTO facts VALUES (:id, :name, :value)", id=record.id, name=name, value=value)
        return record

    def remove(self, ids: Iterable[str], moment: int | None = None) -> tuple[str, ...]:
        """Remove rows, and note that.

        Args:
          ids: which; those that are not there are noted as well, for a replay of a put that may come.
          moment: what was put later stays; None = now.

        Returns:
          those that were there.
        """
        gone = []
        with self._connections.writing() as execute:
            ((number,),) = execute("SELECT COALESCE(MAX(number), 0) FROM removals")
            for id in ids:
                last = self._last(execute, id)
                if moment is not None and last > moment:
                    continue
                if execute("SELECT 1 FROM artefacts WHERE id = :id", id=id):
                    gone.append(id)
                number += 1
                execute("DELETE FROM artefacts WHERE id = :id", id=id)
                execute("DELETE FROM facts WHERE id = :id", id=id)
                when = max(self._clock() if moment is None else moment, last + 1 if moment is None else 0)
                execute("INSERT INTO removals VALUES (:number, :id, :moment)", number=number, id=id, moment=when)
        return tuple(gone)

    def unless_kept(self, id: str, remove: Callable[[], None]) -> bool:
        """Call a function if there is no row of an id, while none can be added; whether it was called."""
        with self._connections.writing() as execute:
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
        with self._connections.reading() as execute:
            rows = execute(f"SELECT {COLUMNS} FROM artefacts{where} ORDER BY written, id", **values)
        records = [record for row in rows if isinstance(record := sealed(row), Record)]
        return tuple(record for record in records if _has(json.loads(record.facts), wanted))

    def matching(self, prefix: str, version: str) -> tuple[str, ...]:
        """Ids of the entries that ``Store.invalidate`` means."""
        wanted = {"version": version} if version else {}
        return tuple(record.id for record in self.list(wanted) if matches(record.entry(), prefix, version))

    def ids(self) -> frozenset[str]:
        """Ids of all rows, damaged ones too."""
        with self._connections.reading() as execute:
            return frozenset(str(id) for (id,) in execute("SELECT id FROM artefacts"))

    def latest_removal(self) -> int:
        """Its number; 0 = none yet."""
        with self._connections.reading() as execute:
            ((number,),) = execute("SELECT COALESCE(MAX(number), 0) FROM removals")
        return int(number)

    def removed_since(self, number: int) -> tuple[int, tuple[str, ...]]:
        """The number of the latest removal, and the ids of those after ``number``."""
        with self._connections.reading() as execute:
            rows = execute("SELECT number, id FROM removals WHERE number > :number ORDER BY number", number=number)
        return (int(rows[-1][0]) if rows else number), tuple(str(id) for _, id in rows)

    def forget_removals(self, before: int) -> None:
        """Drop notes of removals before a time; the latest stays, so that numbers go on."""
        with self._connections.writing() as execute:
            execute(
                "DELETE FROM removals WHERE moment < :before AND number < (SELECT MAX(number) FROM removals)",
                before=before,
            )

    def close(self) -> None:
        """Close the database."""
        self._connections.close()

    def _last(self, execute: Execute, id: str) -> int:
        """When something happened to an id the last time; 0 = never."""
        ((written,),) = execute("SELECT COALESCE(MAX(written), 0) FROM artefacts WHERE id = :id", id=id)
        ((moment,),) = execute("SELECT COALESCE(MAX(moment), 0) FROM removals WHERE id = :id", id=id)
        return max(int(written), int(moment))


def _indexed(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Facts that are found by index, their values as JSON."""
    pairs = [(json.dumps(name)[1:-1], json.dumps(value)) for name, value in facts.items() if _scalar(value)]
    return [(name, value) for name, value in pairs if len(name) <= LONGEST_NAME and len(value) <= LONGEST_VALUE]


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int)


def _has(facts: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(name in facts and json.dumps(facts[name]) == json.dumps(value) for name, value in wanted.items())
