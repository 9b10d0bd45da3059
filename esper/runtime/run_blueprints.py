"""Blueprints that a run has from documents: read, and kept in the run directory.

``blueprints/ID.json`` are their canonical bytes, by their SHA-256; a file that the run was begun with may change or go
away. ``blueprints.json`` says which there are: those that it began with, those that came later, with the round after
which they did, and those that were refused. Going on with a run takes all of it from there, in the same order.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.structure import Structure
from esper.runtime.policy_checkpoint import SERIES
from esper.tezzeret.blueprints import LIMITS, Document, blueprint_of, canonical, parse
from esper.urza.checkpoint import CheckpointError
from esper.urza.store import Failure, StoreError, id_of, open_store
from esper.utils.compilations import LEDGER
from esper.utils.documents import one_line, shown, to_json
from esper.utils.files import read_file, replace_file
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError

RECORD, FOLDER = "blueprints.json", "blueprints"

STORE = "store:"
"""How the name of a package in the store begins."""

LARGEST_RECORD = 1 << 24


class RunBlueprint(NamedTuple):
    """A blueprint of a run.

    Attributes:
      name: the document's.
      id: SHA-256 of the document's canonical bytes.
      source: where it came from: a file's name, or "request".
      round: rounds that were done when it came; None: the run began with it.
      reason: why it was refused; empty: it was not.
      backends: by task, what runs it.
    """

    name: str
    id: str
    source: str
    round: int | None = None
    reason: str = ""
    backends: tuple[tuple[str, str], ...] = ()


def named_documents(names: str, place: str = "--blueprints") -> list[tuple[str, Document]]:
    """The documents in files named with commas between, and their names.

    Raises:
      SettingsError: one cannot be read, or two have one name.
      DocumentError: one is refused.
    """
    words = [word.strip() for word in names.split(",")] if names else []
    found = [(word, read_blueprint(word, place)) for word in words]
    known = [document.name for _, document in found]
    if len(set(known)) < len(known):
        raise SettingsError(f"{place} = {names!r}: blueprints named {', '.join(known)}; expected different names")
    return found


def read_blueprint(name: str, place: str) -> Document:
    """The document in a file, or in the store's package ``store:ID``.

    Raises:
      SettingsError: it cannot be read.
      DocumentError: it is refused.
    """
    if name.startswith(STORE):
        return _stored(name.removeprefix(STORE), f"{place} {name}")
    path = user_path(name)
    try:
        data = read_file(path, LIMITS.bytes)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(one_line(f"{place} {name}: {why}; expected a file with a blueprint document")) from None
    return parse(data, name)


def _stored(id: str, place: str) -> Document:
    """The document of a validated package in the store that the environment names."""
    from esper.tezzeret.stages.package import KIND, PackageError, unpack  # nothing else needs what it imports

    try:
        with open_store() as store:
            found = store.get(id, KIND)
        if isinstance(found, Failure):
            raise SettingsError(one_line(f"{place}: {found.reason}: {found.detail}"))
        return unpack(found.data, place).document
    except (StoreError, PackageError) as error:
        raise SettingsError(one_line(f"{place}: {error}")) from None


def document_id(document: Document) -> str:
    """SHA-256 of a document's canonical bytes: the same for all that say the same."""
    return id_of(canonical(document))


def keep(folder: Path, document: Document) -> str:
    """Write a document into a run directory; its id.

    Raises:
      OSError: it cannot be written.
    """
    data = canonical(document)
    (folder / FOLDER).mkdir(exist_ok=True)
    replace_file(folder / FOLDER / f"{id_of(data)}.json", data)
    return id_of(data)


def kept(folder: Path, ids: Iterable[str]) -> tuple[Document, ...]:
    """The documents of a run directory by their ids.

    Raises:
      CheckpointError: one is not there, or is not what its name says.
    """
    return tuple(_kept(folder / FOLDER / f"{id}.json", id) for id in ids)


def _kept(path: Path, id: str) -> Document:
    try:
        data = read_file(path, LIMITS.bytes)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"blueprint {path}: {why}; expected the document that the run keeps there") from None
    if id_of(data) != id:
        raise CheckpointError(f"blueprint {path}: SHA-256 {id_of(data)[:12]}...; expected {id[:12]}..., as it was kept")
    return parse(data, path.name)


def kept_of(place: Path, table: dict[str, Any]) -> tuple[Document, ...]:
    """The documents of a run that a checkpoint's table names; ``place`` is the run directory, or one checkpoint."""
    ids = table.get("blueprints", [])
    if not all(isinstance(id, str) and id.isalnum() for id in ids):
        raise CheckpointError(f"checkpoint: blueprints is {shown(ids)}; expected a list of ids")
    if place.resolve().parent.name == SERIES:
        place = place.resolve().parents[1]
    return kept(place if place.is_dir() else place.parent, ids)


def write_record(folder: Path, entries: Sequence[RunBlueprint], pending: Sequence[str] = ()) -> None:
    """Write down which blueprints a run has and which it refused, and the ids of those that it waits for.

    Raises:
      OSError: it cannot be written.
    """
    rows = [entry._asdict() | {"backends": dict(entry.backends)} for entry in entries]
    replace_file(folder / RECORD, (to_json({"blueprints": rows, "pending": pending}, indent=2) + "\n").encode())


def read_record(folder: Path) -> list[RunBlueprint]:
    """What ``write_record`` wrote; nothing where there is no record.

    Raises:
      CheckpointError: it cannot be read.
    """
    try:
        rows = json.loads(read_file(folder / RECORD, LARGEST_RECORD))["blueprints"]
        entries = [RunBlueprint(**row | {"backends": tuple(row["backends"].items())}) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / RECORD}: {type(error).__name__}; expected the run's own record") from None
    if not all(isinstance(entry.round, int | None) and isinstance(entry.reason, str) for entry in entries):
        raise CheckpointError(f"{folder / RECORD}: rounds and reasons of another kind; expected the run's own record")
    return entries


def came_later(entries: Iterable[RunBlueprint]) -> list[tuple[int, str]]:
    """Of those that came while the run trained and were taken: rounds that were done then, and id; in order."""
    return [(entry.round, entry.id) for entry in entries if entry.round is not None and not entry.reason]


@cache
def blueprint_from(document: Document) -> Blueprint:
    """The blueprint of a document; one and the same for all engines of a process, which share what they make of it."""
    return blueprint_of(document)


LEDGER.cache("blueprints", lambda: blueprint_from.cache_info()[:2])


def is_for(document: Document, structure: Structure) -> bool:
    """Whether a slot is for a document's seeds."""
    blueprint = blueprint_from(document)
    return any(blueprint.suits(slot.reads, slot.acts, slot.is_bypass) for slot in structure.slots)
