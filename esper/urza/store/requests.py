"""Requests for blueprints to be compiled, as rows of a database."""

import hashlib
import json
from enum import Enum
from typing import Any, NamedTuple

from esper.urza.store.connections import Execute, Rows

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS requests (id VARCHAR(64) PRIMARY KEY, document TEXT NOT NULL, facts TEXT NOT NULL, "
    "status VARCHAR(20) NOT NULL, created BIGINT NOT NULL, changed BIGINT NOT NULL, attempts INTEGER NOT NULL, "
    "worker TEXT NOT NULL, token VARCHAR(64) NOT NULL, expires BIGINT NOT NULL, artefact VARCHAR(64) NOT NULL, "
    "reason TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS requests_by_status ON requests (status, created)",
    "CREATE TABLE IF NOT EXISTS request_traces (id VARCHAR(64) PRIMARY KEY, traceparent VARCHAR(64) NOT NULL)",
)

COLUMNS = "id, document, facts, status, created, changed, attempts, worker, token, expires, artefact, reason"


class BlueprintStatus(Enum):
    """Where a request is."""

    PROPOSED = "proposed"
    COMPILING = "compiling"
    VALIDATING = "validating"
    CHARACTERIZED = "characterized"
    DEPLOYED = "deployed"
    FAILED = "failed"
    ARCHIVED = "archived"


class CompileRequest(NamedTuple):
    """A request.

    Attributes:
      id: SHA-256 of document and facts.
      document: bytes of the blueprint's document.
      facts: of the site and whatever else is asked for; strict JSON.
      status: where it is.
      created, changed: nanoseconds since 1970.
      attempts: workers that took it.
      worker: who took it last.
      token: of the lease; empty = none.
      expires: nanoseconds since 1970, when the lease does.
      artefact: id of what came of it; empty = nothing yet.
      reason: why it failed, one line.
    """

    id: str
    document: bytes
    facts: dict[str, Any]
    status: BlueprintStatus
    created: int
    changed: int
    attempts: int = 0
    worker: str = ""
    token: str = ""
    expires: int = 0
    artefact: str = ""
    reason: str = ""


def request_id(document: bytes, facts: str) -> str:
    """The id of a request, of whose facts the text is given."""
    return hashlib.sha256(len(document).to_bytes(8, "little") + document + facts.encode()).hexdigest()


def request_rows(execute: Execute, id: str) -> Rows:
    """The row of an id, if there is one."""
    return execute(f"SELECT {COLUMNS} FROM requests WHERE id = :id", id=id)


def request_of(execute: Execute, id: str) -> CompileRequest | None:
    """The request of an id; None where there is none, or it is damaged."""
    rows = request_rows(execute, id)
    return request_in(rows[0]) if rows else None


def request_in(row: tuple[Any, ...]) -> CompileRequest | None:
    """A row's request; None where its document and facts are not those of its id."""
    try:
        document, status = json.loads(row[1]).encode("latin-1"), BlueprintStatus(row[3])
        if request_id(document, row[2]) != row[0]:
            return None
        return CompileRequest(row[0], document, json.loads(row[2]), status, *row[4:])
    except (ValueError, TypeError, AttributeError):
        return None


def write_request(execute: Execute, request: CompileRequest) -> None:
    """Write what changes of a request."""
    names = ("id", "changed", "attempts", "worker", "token", "expires", "artefact", "reason")
    values = {name: value for name, value in request._asdict().items() if name in names}
    execute(
        "UPDATE requests SET status = :status, changed = :changed, attempts = :attempts, worker = :worker, "
        "token = :token, expires = :expires, artefact = :artefact, reason = :reason WHERE id = :id",
        status=request.status.value,
        **values,
    )
