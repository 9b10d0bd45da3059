"""Files that last: what is written is there whole, after a crash at any instant, or is not there at all.

Data is written beside its place, flushed to the disk, and renamed; then the folder is flushed. After an error nothing
is left beside, and nothing is tried again on the same file: once a flush has failed, a second one may report success
without having written (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
"""

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from esper.utils.failpoints import reach

BESIDE = ".tmp-"
"""Part of the name of everything that is being written."""


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}{BESIDE}{uuid.uuid4().hex[:12]}")


def _write(path: Path, data: bytes, mode: int = 0o666) -> None:
    """A new file with its data on the disk."""
    reach("open")
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        reach("write")
        file.write(data)
        file.flush()
        reach("sync")
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Let the names in a folder be on the disk, where folders can be opened."""
    if os.name != "posix":
        return
    reach("sync-folder")
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file; an existing one is replaced in one step.

    Args:
      path: where.
      data: its content.
      mode: who may read and write it, less the process's umask.

    Raises:
      OSError: it could not be written; the old one is as it was (a failure of the folder's flush alone leaves the new
        one, which a loss of power may take back).
    """
    beside = _beside(path)
    try:
        _write(beside, data, mode)
        reach("rename")
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def commit_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder with all of its files, in one step.

    Args:
      folder: where; there must be nothing.
      files: name -> content.

    Raises:
      FileExistsError: something is there.
      OSError: it could not be written; nothing is there then.
    """
    if os.path.lexists(folder):
        raise FileExistsError(17, "there already", str(folder))
    beside = _beside(folder)
    try:
        beside.mkdir()
        for name, data in files.items():
            _write(beside / name, data)
        sync_folder(beside)
        reach("rename")
        os.rename(beside, folder)
    except BaseException:
        _discard(beside, files)
        raise
    sync_folder(folder.parent)


def _discard(folder: Path, names: Iterable[str]) -> None:
    """Remove a folder by the names in it, for which no handle is needed: there may be none."""
    for name in names:
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; see ``sync_file`` for when it is on the disk.

    Raises:
      OSError: it could not be written; a part of the line may be there, which the next call cuts off.
    """
    whole = _whole_lines(path)
    reach("open")
    with path.open("r+b" if path.exists() else "xb") as file:
        file.truncate(whole)
        file.seek(whole)
        reach("write")
        file.write(line.encode() + b"\n")


def sync_file(path: Path) -> None:
    """Let what was written into a file be on the disk.

    Raises:
      OSError: it could not be; whether it ever will be is unknown.
    """
    with path.open("r+b") as file:
        reach("sync")
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> int:
    """Bytes of a file up to its last line's end; 0 if there is no file."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def read_file(path: Path, most: int) -> bytes:
    """What an ordinary file holds. Neither a link is followed nor a pipe waited for.

    Args:
      path: the file.
      most: bytes; more are refused unread.

    Raises:
      ValueError: one line; no ordinary file, or too large.
      OSError: it cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    opened = os.open(path, flags)
    facts = os.fstat(opened)
    if not stat.S_ISREG(facts.st_mode):
        os.close(opened)
        raise ValueError(f"{path.name} is no ordinary file")
    with open(opened, "rb") as file:
        if facts.st_size > most:
            raise ValueError(f"{path.name} has {facts.st_size} bytes, more than {most}")
        return file.read(facts.st_size + 1)  # as much room is taken at once as is asked for


def remove_folder(folder: Path) -> None:
    """Remove a folder, or what has its name; one that is only half removed has no name that it could be taken for.

    Raises:
      OSError: it could not be removed; where there was no handle to look into it with, it keeps its name.
    """
    reach("remove")
    names = os.listdir(folder) if folder.is_dir() and not folder.is_symlink() else []
    aside = _beside(folder)
    os.rename(folder, aside)
    _discard(aside, names)
    if os.path.lexists(aside):
        _remove(aside)


def remove_leftovers(folder: Path) -> None:
    """Remove what was being written when a process ended. Nobody else may be writing in the folder."""
    for path in folder.glob(f"*{BESIDE}*"):
        with contextlib.suppress(OSError):
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder with all that is in it, or a file, a pipe or a link itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
