"""Requests: documents that are handed to a running training, which looks at them between its rounds.

A request is a file in the run directory's ``requests``. Who hands it over does not wait, and needs no lock; the run
takes it, says in ``blueprints.json`` what became of it, and removes it.
"""

from pathlib import Path
from typing import NamedTuple

from esper.runtime.resume import holds_run
from esper.runtime.run_blueprints import read_record
from esper.tezzeret.blueprints import LIMITS, Document, canonical, parse
from esper.urza.store import id_of
from esper.urza.store.contract import is_id
from esper.utils.files import read_file, replace_file
from esper.utils.settings import SettingsError

REQUESTS = "requests"


class Request(NamedTuple):
    """A document that was handed over.

    Attributes:
      id: SHA-256 of its canonical bytes.
      path: its file.
    """

    id: str
    path: Path


def ask(run: Path, data: bytes, place: str) -> str:
    """Hand a document to a run, without waiting.

    Args:
      run: its directory; it may be running or not, here or elsewhere.
      data: the document.
      place: what messages call it.

    Returns:
      its id.

    Raises:
      DocumentError: the document is refused at once.
      SettingsError: there is no run, it has the document, or it cannot be written there.
    """
    document = parse(data, place)
    if not holds_run(run):
        raise SettingsError(f"{run}: holds no run; expected a run directory")
    canon = canonical(document)
    id = id_of(canon)
    for entry in read_record(run):
        if not entry.reason and id == entry.id:
            since = "its beginning" if entry.round is None else f"round {entry.round}"
            raise SettingsError(f"{place}: {run} has blueprint {entry.name!r} already, since {since}")
    try:
        (run / REQUESTS).mkdir(exist_ok=True)
        replace_file(run / REQUESTS / f"{id}.json", canon)
    except OSError as error:
        raise SettingsError(f"{run / REQUESTS}: {error.strerror}; expected a place that can be written") from None
    return id


def pending(run: Path) -> list[Request]:
    """What was handed over and not taken yet, the oldest first; a file whose name is no id is none."""
    found = []
    for path in (run / REQUESTS).glob("*.json") if (run / REQUESTS).is_dir() else ():
        try:
            found.append((path.stat().st_mtime_ns, path))
        except OSError:  # taken meanwhile
            continue
    return [Request(path.stem, path) for _, path in sorted(found) if is_id(path.stem)]


def read(request: Request) -> Document:
    """The document of a request.

    Raises:
      DocumentError: it is refused.
      ValueError, OSError: its file cannot be read, or is not what its name says.
    """
    data = read_file(request.path, LIMITS.bytes)
    document = parse(data, request.path.name)
    if id_of(canonical(document)) != request.id:
        raise ValueError(f"{request.path.name}: another document than its name says; expected its id")
    return document


def done_with(request: Request) -> None:
    """Remove a request.

    Raises:
      OSError: it cannot be removed.
    """
    request.path.unlink(missing_ok=True)
