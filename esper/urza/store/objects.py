"""The fourth tier: bytes under their id. In memory for tests, in a directory; in a bucket see ``buckets``.

Whatever holds them, equal ids mean equal bytes, so that of two writers it does not matter which one wins.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Protocol

from esper.urza.store.contract import FORMAT, LARGEST, id_of, is_id
from esper.utils.failpoints import reach
from esper.utils.files import BESIDE, read_file, replace_file, sync_folder

PRIVATE = 0o600
"""Who may read and write an object: its owner, as what is loaded may be executed."""


class Stored(NamedTuple):
    """An object as a listing has it.

    Attributes:
      id: see ``Artefact``.
      size: bytes.
      written: seconds since 1970, when it was last put.
    """

    id: str
    size: int
    written: float


class Objects(Protocol):
    """Bytes under their id. Every method raises OSError where the service or the disk fails."""

    def put(self, id: str, data: bytes) -> None:
        """Keep bytes; they last when this returns. What is there already is as young as a new one after it."""

    def get(self, id: str) -> bytes | None:
        """What is there, unchecked; None where nothing is."""

    def exists(self, id: str) -> bool:
        """Whether something is there."""

    def remove(self, id: str) -> None:
        """Remove what is there."""

    def stored(self, id: str) -> Stored | None:
        """What a listing would say of one object."""

    def list(self) -> Iterator[Stored]:
        """All objects."""

    def sweep(self, before: float) -> int:
        """Remove what writers left half-done that ended before a time (seconds since 1970); how much."""


class MemoryObjects:
    """Objects in this process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._held: dict[str, tuple[bytes, float]] = {}
        self._clock, self._lock = clock, Lock()

    def put(self, id: str, data: bytes) -> None:
        """See ``Objects``."""
        with self._lock:
            self._held[id] = (data, self._clock())

    def get(self, id: str) -> bytes | None:
        """See ``Objects``."""
        with self._lock:
            return self._held.get(id, (None, 0.0))[0]

    def exists(self, id: str) -> bool:
        """See ``Objects``."""
        return self.get(id) is not None

    def remove(self, id: str) -> None:
        """See ``Objects``."""
        with self._lock:
            self._held.pop(id, None)

    def stored(self, id: str) -> Stored | None:
        """See ``Objects``."""
        return next((each for each in self.list() if each.id == id), None)

    def list(self) -> Iterator[Stored]:
        """See ``Objects``."""
        with self._lock:
            held = list(self._held.items())
        return (Stored(id, len(data), written) for id, (data, written) in held)

    def sweep(self, before: float) -> int:
        """See ``Objects``: nothing is half-done."""
        return 0


class DirectoryObjects:
    """Objects in a directory: each flushed to the disk, then renamed, then its folder flushed."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is not there.

        Raises:
          OSError: it cannot be.
        """
        self.folder = folder / f"v{FORMAT}"
        self.folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder)

    def _path(self, id: str) -> Path:
        return self.folder / id[:2] / id

    def put(self, id: str, data: bytes) -> None:
        """See ``Objects``. What is there is compared, and written again where it differs."""
        path = self._path(id)
        there = self.get(id)
        if there is not None and id_of(there) == id:
            os.utime(path)
            sync_folder(path.parent)  # its writer may have been killed before it did
            return
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            sync_folder(self.folder)
        replace_file(path, data, PRIVATE)

    def get(self, id: str) -> bytes | None:
        """See ``Objects``. A link, or whatever else is no ordinary file, is none."""
        try:
            return read_file(self._path(id), LARGEST)
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                return None
            raise

    def exists(self, id: str) -> bool:
        """See ``Objects``."""
        return self._path(id).is_file()

    def remove(self, id: str) -> None:
        """See ``Objects``."""
        reach("remove")
        self._path(id).unlink(missing_ok=True)

    def stored(self, id: str) -> Stored | None:
        """See ``Objects``."""
        try:
            facts = self._path(id).stat()
        except FileNotFoundError:
            return None
        return Stored(id, facts.st_size, facts.st_mtime)

    def list(self) -> Iterator[Stored]:
        """See ``Objects``."""
        for path in sorted(self.folder.glob("??/*")):
            found = self.stored(path.name) if is_id(path.name) else None
            if found is not None:
                yield found

    def sweep(self, before: float) -> int:
        """See ``Objects``."""
        swept = 0
        for path in self.folder.glob(f"??/*{BESIDE}*"):
            with suppress(OSError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    swept += 1
        return swept
