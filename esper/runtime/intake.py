"""How documents come into a run: at its beginning, and between its rounds; and what the run writes down of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from esper.nissa.event_record import event
from esper.nissa.operations import NO_OPERATIONS, OperationLog
from esper.runtime import requests
from esper.runtime.compile_orders import CompileOrders
from esper.runtime.players import Players
from esper.runtime.resume import Origin
from esper.runtime.run_blueprints import (
    RECORD,
    RunBlueprint,
    came_later,
    document_id,
    keep,
    kept,
    named_documents,
    read_blueprint,
    read_record,
    write_record,
)
from esper.runtime.scene import Scene
from esper.runtime.train_settings import TrainSettings
from esper.tezzeret.blueprints import Document
from esper.utils.documents import cause, one_line
from esper.utils.resilience.causes import is_want
from esper.utils.settings import SettingsError

logger = logging.getLogger("esper")

REQUEST = "request"
"""Source of what came while the run trained."""


class Founding(NamedTuple):
    """What a run begins with, or goes on with.

    Attributes:
      entries: its record so far.
      documents: those that it began with.
      said: lines for people.
    """

    entries: list[RunBlueprint]
    documents: tuple[Document, ...]
    said: tuple[str, ...]


def founding(settings: TrainSettings, source: Origin | None) -> Founding:
    """The blueprints of a run, from its files, or from its directory where it is gone on with.

    Raises:
      SettingsError, DocumentError: a file cannot be read, or its document is refused.
      CheckpointError: what the run kept is not there.
    """
    entries = [] if source is None else read_record(source.folder)
    begun = [entry for entry in entries if entry.round is None]
    if source is None or (settings.blueprints and not begun):
        named = named_documents(settings.blueprints)
        entries += [RunBlueprint(document.name, document_id(document), word) for word, document in named]
        return Founding(entries, tuple(document for _, document in named), ())
    documents = kept(source.folder, [entry.id for entry in begun])
    return Founding(entries, documents, tuple(line for entry in begun for line in _changed(entry)))


def _changed(entry: RunBlueprint) -> list[str]:
    """A line on a file that says something else than when the run began."""
    try:
        found = document_id(read_blueprint(entry.source, "--blueprints"))
    except ValueError:
        return [f"--blueprints {entry.source}: not there any more, or no document; the run has its own copy\n"]
    if found == entry.id:
        return []
    return [
        f"--blueprints {entry.source}: changed since the run began ({entry.id[:12]} then, {found[:12]} now); "
        "the run goes on with its own copy\n"
    ]


def expect_used(documents: Sequence[Document], scenes: Sequence[Scene]) -> tuple[str, ...]:
    """A line on each document: where it can grow, and what runs it.

    Raises:
      SettingsError: no slot is for one.
    """
    said = []
    for document in documents:
        found = _backends(document.name, scenes)
        if not found:
            tasks = ", ".join(scene.rules.task for scene in scenes)
            raise SettingsError(f"--blueprints: {document.name!r} fits no slot of {tasks}; expected one that does")
        said.append(f"blueprint {document.name} {document_id(document)[:12]}: {_where(found)}\n")
    return tuple(said)


def _where(backends: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{task} on {backend}" for task, backend in backends)


def _backends(name: str, scenes: Sequence[Scene]) -> tuple[tuple[str, str], ...]:
    """By task that has a blueprint, what runs it."""
    having = [scene for scene in scenes if name in scene.engine.codec.blueprint_names]
    return tuple((scene.rules.task, scene.engine.backend.name) for scene in having)


@dataclass
class Intake:
    """A run's record of blueprints, kept in its directory.

    Attributes:
      folder: the run directory.
      entries: the record.
      orders: of documents that a worker compiles before they are taken; None: they are taken as they are.
      waiting: ids of those that were ordered and have not arrived.
      stuck: requests that were decided on and cannot be removed.
      closed: whether nothing is taken but what was taken before: several ranks would have to decide alike.
      operations: where it is told.
    """

    folder: Path
    entries: list[RunBlueprint]
    orders: CompileOrders | None = None
    waiting: list[str] = field(default_factory=list)
    stuck: set[str] = field(default_factory=set)
    closed: bool = False
    operations: OperationLog = NO_OPERATIONS

    def begin(self, found: Founding, scenes: Sequence[Scene], source: Origin | None) -> None:
        """Keep what the run begins with, and of a run that goes on in another directory what it has kept.

        Raises:
          OSError, CheckpointError: it cannot be written, or what was kept is not there.
        """
        if not self.entries:
            return
        later = [id for _, id in came_later(self.entries)]
        for document in (*found.documents, *(() if source is None else kept(source.folder, later))):
            keep(self.folder, document)
        self.entries = [
            entry._replace(backends=_backends(entry.name, scenes)) if entry.round is None else entry
            for entry in self.entries
        ]
        write_record(self.folder, self.entries)

    def before_round(self, players: Players, note: Callable[[str], None]) -> bool:
        """Take what this run took after so many rounds, and then, if that was all of it, what was asked for since.

        Returns:
          whether anything was taken.

        Raises:
          CheckpointError: what was kept is not there.
        """
        done, before, taken = players.learner.done, len(players.documents()), came_later(self.entries)
        for round, id in taken:
            if round <= done and id not in players.documents():
                (document,) = kept(self.folder, [id])
                players.take(players.prepared(document))
                note(f"blueprint {document.name} {id[:12]}: taken after round {round}, as before")
        if not self.closed and all(round <= done for round, _ in taken):
            for request in requests.pending(self.folder):
                if request.id not in self.stuck:
                    self._decide(request, players, note)
        return len(players.documents()) > before

    def _decide(self, request: requests.Request, players: Players, note: Callable[[str], None]) -> None:
        """Take or refuse what was asked for. It is taken when that is on the disk, and no sooner."""
        if request.id in players.documents():
            self._done_with(request)
            return
        name, round = "?", players.learner.done
        try:
            document = requests.read(request)
            name = document.name
            if self._waits_for(document, players):
                return
            ready = players.prepared(document)
        except Exception as error:  # whatever a stranger's document leads to, the run goes on
            if is_want(error):
                raise
            reason = one_line(error) if isinstance(error, ValueError) else cause(error)
            self._refuse(request, RunBlueprint(name, request.id, REQUEST, round, reason or cause(error)))
            return
        entry = RunBlueprint(name, request.id, REQUEST, round, "", ready.backends)
        try:
            keep(self.folder, document)
            write_record(self.folder, [*self.entries, entry], self.waiting)
        except OSError as error:
            logger.warning("blueprint %s: not recorded (%s); the run goes on without it for now", name, cause(error))
            return
        self.entries.append(entry)
        parent = "" if self.orders is None else self.orders.traces.get(entry.id, "")
        with self.operations("blueprint.take", round, parent, name=name, id=entry.id):
            players.take(ready)
            if self.orders is not None:
                self.orders.taken(entry.id)
        self._done_with(request)
        where = _where(entry.backends)
        logger.info("blueprint %s %s: taken after round %d: %s", name, entry.id, round, where)
        note(f"blueprint {name} {entry.id[:12]}: taken after round {round}: {where}")

    def _refuse(self, request: requests.Request, entry: RunBlueprint) -> None:
        logger.warning("blueprint %s %s: refused: %s", entry.name, entry.id[:12], entry.reason)
        said = {"name": entry.name, "id": entry.id, "error": entry.reason}
        self.operations.sinks.event(event("blueprint.take", False, entry.round or 0, **said))
        self.entries.append(entry)
        self.waiting = [id for id in self.waiting if id != entry.id]
        self._try_to_write()
        self._done_with(request)

    def _done_with(self, request: requests.Request) -> None:
        try:
            requests.done_with(request)
        except OSError as error:
            self.stuck.add(request.id)
            logger.warning("%s: not removed (%s); it was decided on", request.path, cause(error))

    def _waits_for(self, document: Document, players: Players) -> bool:
        """Whether a worker has to compile a document first, and has not."""
        id = document_id(document)
        waits = self.orders is not None and not self.orders.arrived(document, players.scenes)
        if waits and id not in self.waiting:
            logger.info("blueprint %s %s: ordered after round %d", document.name, id, players.learner.done)
            self.waiting.append(id)
            self._try_to_write()
        elif not waits:
            self.waiting = [each for each in self.waiting if each != id]
        return waits

    def _try_to_write(self) -> None:
        """Write the record, or say that it cannot be: what it says besides is for people."""
        try:
            write_record(self.folder, self.entries, self.waiting)
        except OSError as error:
            logger.warning("%s: not written (%s)", self.folder / RECORD, cause(error))
