"""The queue of blueprints that are to be compiled: in the store's database, taken by workers for a while (lease).

    proposed -> compiling -> validating -> characterized -> deployed -> archived;   or failed

A worker that dies loses its lease, and what it had is proposed again; after ``ATTEMPTS`` such ends it has failed, so
that a document that kills its workers does not kill them all. Every change but a proposal needs the lease's token: who
lost the lease is told, and writes nothing.
"""

import json
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from esper.urza.store.connections import Connections, Rows
from esper.urza.store.contract import Failure, StoreError, facts_text, is_id
from esper.urza.store.outbox import PostponedWrite
from esper.urza.store.postponed import Postponed
from esper.urza.store.requests import (
    COLUMNS,
    BlueprintStatus,
    CompileRequest,
    request_id,
    request_in,
    request_of,
    request_rows,
    write_request,
)
from esper.urza.store.watched import ServiceWatch
from esper.utils.documents import cause, one_line, shown

LEASE = 120.0
"""Seconds that a worker has before it must say that it lives."""

ATTEMPTS = 3
"""Workers that may lose a request."""

LARGEST = 1 << 22
"""Bytes of a document, at most."""

LONGEST = 500
"""Characters of a reason."""

SECOND = 1_000_000_000


LEASED = (BlueprintStatus.COMPILING, BlueprintStatus.VALIDATING)
"""Where a worker has it."""

AFTER = {
    BlueprintStatus.PROPOSED: (BlueprintStatus.ARCHIVED,),
    BlueprintStatus.CHARACTERIZED: (BlueprintStatus.DEPLOYED, BlueprintStatus.FAILED, BlueprintStatus.ARCHIVED),
    BlueprintStatus.DEPLOYED: (BlueprintStatus.FAILED, BlueprintStatus.ARCHIVED),
    BlueprintStatus.FAILED: (BlueprintStatus.ARCHIVED,),
}
"""Where it may go from where no worker has it, beside being proposed again."""


class CompileQueue:
    """The queue. Methods of workers raise OSError where the database is lost; they try again later."""

    def __init__(
        self,
        connections: Connections,
        watched: ServiceWatch,
        postponed: Postponed,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._connections, self._watched, self._postponed, self._clock = connections, watched, postponed, clock

    def enqueue(self, document: bytes, *, traceparent: str = "", **facts: Any) -> str:
        """Propose a document. The same one for the same facts is there once; one that failed is tried again.

        Args:
          document: up to ``LARGEST`` bytes, looked at by nobody here.
          traceparent: of the span that asks, for whoever does it; of equal requests, the first one's.
          facts: the site it is for, and so on.

        Returns:
          the request's id, at once; where the database is lost, it waits in the outbox.

        Raises:
          StoreError: too large, facts that are no JSON, or no disk to wait on.
        """
        if len(document) > LARGEST:
            raise StoreError(f"a document of {len(document)} bytes; expected <= {LARGEST}")
        text, now = facts_text(facts), self._clock()
        id = request_id(document, text)
        body = json.dumps(document.decode("latin-1"))  # any bytes, in characters that every database takes
        try:
            self._watched.ask("database", lambda: self._propose(id, body, text, now, traceparent))
        except OSError as error:
            self._postponed.wait(PostponedWrite(f"request {id}", "request", now, facts=json.dumps([body, text])), error)
        return id

    def replay(self, operation: PostponedWrite) -> None:
        """Propose what waited in the outbox."""
        body, text = json.loads(operation.facts)
        id = operation.target.removeprefix("request ")
        self._watched.ask("database", lambda: self._propose(id, body, text, operation.written))

    def _propose(self, id: str, body: str, facts: str, now: int, traceparent: str = "") -> None:
        with self._connections.writing() as execute:
            rows = request_rows(execute, id)
            if rows and rows[0][3] not in (BlueprintStatus.FAILED.value, BlueprintStatus.ARCHIVED.value):
                return
            execute("DELETE FROM requests WHERE id = :id", id=id)
            execute(
                f"INSERT INTO requests ({COLUMNS}) VALUES "
                "(:id, :document, :facts, :status, :now, :now, 0, '', '', 0, '', '')",
                id=id,
                document=body,
                facts=facts,
                status=BlueprintStatus.PROPOSED.value,
                now=now,
            )
            execute("DELETE FROM request_traces WHERE id = :id", id=id)
            if traceparent:
                execute("INSERT INTO request_traces (id, traceparent) VALUES (:id, :it)", id=id, it=traceparent[:64])

    def traceparent(self, id: str) -> str:
        """Of the span that asked for a request; empty where there is none, or the database is lost."""

        def read() -> Rows:
            with self._connections.reading() as execute:
                return execute("SELECT traceparent FROM request_traces WHERE id = :id", id=id)

        try:
            rows = self._watched.ask("database", read)
        except OSError:
            return ""
        return str(rows[0][0]) if rows else ""

    def list(self, *statuses: BlueprintStatus) -> tuple[CompileRequest, ...]:
        """Requests that are in one of these, or all, the oldest first; what is damaged is left out."""

        def read() -> Rows:
            with self._connections.reading() as execute:
                return execute(f"SELECT {COLUMNS} FROM requests ORDER BY created, id")

        found = [request for row in self._watched.ask("database", read) if (request := request_in(row)) is not None]
        return tuple(request for request in found if not statuses or request.status in statuses)

    def get(self, id: str) -> CompileRequest | Failure:
        """A request; a failure where it is unknown, damaged, or the database is lost."""

        def read() -> Rows:
            with self._connections.reading() as execute:
                return request_rows(execute, id)

        if not is_id(id):
            return Failure("unknown", f"{shown(id)}: no id; expected 64 hexadecimal digits")
        try:
            rows = self._watched.ask("database", read)
        except OSError as error:
            return Failure("unavailable", f"{id}: {cause(error)}")
        if not rows:
            return Failure("unknown", f"{id}: not in this queue")
        return request_in(rows[0]) or Failure("damaged", f"{id}: its document does not match its id")

    def counters(self) -> dict[str, int]:
        """How many requests are in each status."""

        def read() -> Rows:
            with self._connections.reading() as execute:
                return execute("SELECT status, COUNT(*) FROM requests GROUP BY status")

        found = {str(status): int(number) for status, number in self._watched.ask("database", read)}
        return {status.value: found.get(status.value, 0) for status in BlueprintStatus}

    def claim(
        self, worker: str, order: Callable[[CompileRequest], float] | None = None, lease: float = LEASE
    ) -> CompileRequest | None:
        """Take a request that nobody has, or whose worker's lease has expired.

        Args:
          worker: its name.
          order: the least comes first; None = the oldest.
          lease: seconds.

        Returns:
          the request with its token; None where there is none.
        """
        token = uuid.uuid4().hex
        waiting = self.list(BlueprintStatus.PROPOSED, *LEASED)
        for request in sorted(waiting, key=order) if order is not None else waiting:
            if request.status in LEASED and request.expires > self._clock():
                continue
            taken = self._watched.ask("database", partial(self._take, request.id, worker, token, lease))
            if taken is not None:
                return taken
        return None

    def _take(self, id: str, worker: str, token: str, lease: float) -> CompileRequest | None:
        with self._connections.writing() as execute:
            request, now = request_of(execute, id), self._clock()
            if request is None or (request.token != token and request.status in LEASED and request.expires > now):
                return None
            if request.token == token:  # it was taken, and the answer was lost
                return request
            if request.status not in (BlueprintStatus.PROPOSED, *LEASED):
                return None
            if request.attempts >= ATTEMPTS:
                reason = f"{request.attempts} workers that took it were not heard of again"
                ended = request._replace(status=BlueprintStatus.FAILED, token="", reason=reason, changed=now)
                write_request(execute, ended)
                return None
            request = request._replace(
                status=BlueprintStatus.COMPILING,
                attempts=request.attempts + 1,
                worker=one_line(worker)[:LONGEST],
                token=token,
                expires=now + int(lease * SECOND),
                changed=now,
            )
            write_request(execute, request)
        return request

    def renew(self, request: CompileRequest, lease: float = LEASE) -> bool:
        """Say that a worker lives; False where it has the request no more."""
        return self._change(request, expires=self._clock() + int(lease * SECOND))

    def validating(self, request: CompileRequest) -> bool:
        """Say that it was compiled and is being validated; False where another worker has it."""
        return self._change(request, status=BlueprintStatus.VALIDATING)

    def complete(self, request: CompileRequest, artefact: str) -> bool:
        """Say what came of it: the id of what is in the store; False where another worker has it."""
        return self._change(request, status=BlueprintStatus.CHARACTERIZED, artefact=artefact, token="", expires=0)

    def fail(self, request: CompileRequest, reason: str) -> bool:
        """Say why nothing came of it; False where another worker has it."""
        reason = one_line(reason)[:LONGEST]
        return self._change(request, status=BlueprintStatus.FAILED, reason=reason, token="", expires=0)

    def release(self, request: CompileRequest) -> bool:
        """Give it back as if it had not been taken; False where another worker has it."""
        attempts = max(0, request.attempts - 1)
        return self._change(request, status=BlueprintStatus.PROPOSED, token="", expires=0, attempts=attempts)

    def deploy(self, id: str) -> bool:
        """Note that a run grows with it; False where it is not characterized."""
        return self._move(id, BlueprintStatus.DEPLOYED)

    def archive(self, id: str) -> bool:
        """Note that nobody needs it any more; False where a worker has it, or there is none."""
        return self._move(id, BlueprintStatus.ARCHIVED)

    def _move(self, id: str, status: BlueprintStatus) -> bool:
        def move() -> bool:
            with self._connections.writing() as execute:
                found = request_of(execute, id)
                if found is None or (found.status is not status and status not in AFTER.get(found.status, ())):
                    return False
                write_request(execute, found._replace(status=status, changed=self._clock()))
            return True

        return self._watched.ask("database", move)

    def _change(self, request: CompileRequest, **values: Any) -> bool:
        """Change what this lease still holds; True as well where that was done and the answer was lost."""

        def change() -> bool:
            with self._connections.writing() as execute:
                found = request_of(execute, request.id)
                if found is None:
                    return False
                if found.token != request.token or not request.token:
                    return found.worker == request.worker and found == found._replace(**values)
                write_request(execute, found._replace(**values, changed=self._clock()))
            return True

        return self._watched.ask("database", change)
