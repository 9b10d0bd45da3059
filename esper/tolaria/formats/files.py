"""Files that may be broken: bounded reading, and errors that say in one line where and what."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from esper.tolaria.data import DatasetError
from esper.utils.paths import user_path

MAX_BYTES = 2**32
"""The most bytes that one file, or one unpacked array, may hold: 4 GiB. A dataset lives on one device in full."""

DEFLATE_RATIO = 1032
"""DEFLATE unpacks a byte to at most this many: a match of 258 bytes takes at least 2 bits (RFC 1951, 3.2.5)."""

MAX_LISTED = 200
"""The most files that ``listing`` names."""

_BLOCK = 2**20  # bytes asked for at a time, so that memory follows what is there and not what is promised


class Readable(Protocol):
    """What ``read_up_to`` reads from."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""


class Listed(NamedTuple):
    """A file that was found: its path relative to the dataset's and its size in bytes."""

    name: str
    size: int


def broken(path: Path, place: str, found: str, expected: str) -> DatasetError:
    """The one-line error ``path: place: found ..., expected ...``.

    Line breaks become spaces, and what UTF-8 cannot say (an undecodable file name) is escaped.
    """
    line = " ".join(f"{path}: {place}: found {found}, expected {expected}".split())
    return DatasetError(line.encode("utf-8", "backslashreplace").decode("utf-8"))


@contextmanager
def opened(path: Path, limit: int | None = MAX_BYTES) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file for reading.

    Yields:
      The file and its size in bytes, from 1 to ``limit``; None = any size, 0 as well.

    Raises:
      DatasetError: it is missing, unreadable, not a regular file, empty or too large; or the system reports an
        error while it is read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening: to open a pipe would wait for its writer
            raise broken(path, "file", "a folder or device", "a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if limit is not None and not 0 < size <= limit:
                raise broken(path, "file", f"{size} bytes", f"1 to {limit} bytes")
            yield file, size
    except OSError as error:
        raise broken(path, "file", error.strerror or str(error), "a readable file") from None


def read_up_to(stream: Readable, count: int) -> bytearray:
    """Read ``count`` bytes, or as many as there are; memory grows with what is read."""
    data = bytearray()
    while len(data) < count:
        block = stream.read(min(_BLOCK, count - len(data)))
        if not block:
            break
        data += block
    return data


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path that names something; ``~`` is a home folder. Of a folder that holds a file of its own name, that file.

    Raises:
      DatasetError: there is nothing at it.
    """
    path = user_path(path)
    if not os.path.exists(path):  # unlike Path.exists, False for every name that no file can have
        raise broken(path, "path", "nothing", "a dataset's folder or file")
    inner = path / path.name
    return inner if os.path.isdir(path) and os.path.isfile(inner) else path


def regular(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these names that is a file of a folder, or is the folder of one that has one of them, too.

    Archives unpack to such folders: ``train-images-idx3-ubyte/train-images-idx3-ubyte``.
    """
    for name in names:
        if os.path.isfile(folder / name):
            return folder / name
    inner = (folder / outer / name for outer in names if os.path.isdir(folder / outer) for name in (outer, *names))
    return next((path for path in inner if os.path.isfile(path)), None)


def names_in(folder: Path) -> tuple[str, ...]:
    """Names of the entries of a folder, sorted.

    Raises:
      DatasetError: it cannot be read.
    """
    try:
        return tuple(sorted(os.listdir(folder)))
    except OSError as error:
        raise broken(folder, "path", error.strerror or str(error), "a readable folder") from None


def listing(path: Path) -> tuple[Listed, ...]:
    """Regular files at ``path``, in it and in its folders (no deeper), by name; ``MAX_LISTED`` at most.

    Raises:
      DatasetError: a folder cannot be read.
    """
    if not os.path.isdir(path):
        return (Listed(path.name, path.stat().st_size),)
    folders = [path, *(path / name for name in names_in(path) if os.path.isdir(path / name))]
    files = [folder / name for folder in folders for name in names_in(folder) if os.path.isfile(folder / name)]
    return tuple(Listed(str(file.relative_to(path)), file.stat().st_size) for file in files[:MAX_LISTED])


def from_zero(labels: Sequence[np.ndarray], num_classes: int) -> list[np.ndarray]:
    """Labels 1 to C as 0 to C - 1, if that is what all of these arrays together hold; any others as they are."""
    low, high = min(int(each.min()) for each in labels), max(int(each.max()) for each in labels)
    return [each - 1 for each in labels] if (low, high) == (1, num_classes) else list(labels)


SHIFTED = "; labels 1 to {0} are classes 0 to {0} - 1"
"""What a split says of labels that ``from_zero`` moved."""


def check_labels(path: Path, labels: np.ndarray, num_classes: int, first: int, stride: int) -> None:
    """Check labels uint8 [N], of which record i has its own at byte ``first + stride * i`` of the file.

    Raises:
      DatasetError: a label is no class; names the first such record.
    """
    wrong = np.flatnonzero(labels >= num_classes)
    if len(wrong):
        record = int(wrong[0])
        place = f"record {record} (byte {first + stride * record})"
        raise broken(path, place, f"label {labels[record]}", f"a label from 0 to {num_classes - 1}")
