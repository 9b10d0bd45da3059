"""Kept libraries: what was built is verified before it is loaded, and what is not this user's own is no library.

Beside a library stands its sha256. It is read once, verified, and loaded from a private copy of what was read, so that
neither a file that is cut off while it is mapped nor one that is exchanged after it was verified reaches the process.
"""

import ctypes
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from esper.utils.files import read_file, replace_file

LARGEST = 1 << 28
"""Bytes of a library."""


def _seal(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def keep(path: Path, data: bytes) -> None:
    """Put a library into the cache.

    Raises:
      OSError: it cannot be written.
    """
    replace_file(path, data)
    replace_file(_seal(path), hashlib.sha256(data).hexdigest().encode() + b"\n")


def kept(path: Path) -> bytes | None:
    """A library from the cache; None where there is none, or it is damaged, or anybody else could have written it."""
    try:
        if not all(_is_own(file) for file in (path, _seal(path))):
            return None
        data, digest = read_file(path, LARGEST), read_file(_seal(path), 65)
    except (OSError, ValueError):
        return None
    return data if hashlib.sha256(data).hexdigest().encode() + b"\n" == digest else None


def _is_own(path: Path) -> bool:
    """Whether a file is this user's, and nobody else may write it."""
    facts = path.lstat()
    return facts.st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def open_library(data: bytes, folder: Path) -> ctypes.CDLL:
    """Load a library.

    Args:
      data: its bytes.
      folder: in which a private copy may lie for a moment.

    Raises:
      OSError: it cannot be loaded.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="load-") as private:
        copy = Path(private) / "esper.so"
        copy.write_bytes(data)
        return ctypes.CDLL(str(copy))
