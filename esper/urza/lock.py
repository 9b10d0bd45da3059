"""One writer per folder: a lock that dies with its process, and a number by which a writer that lost it is told.

The lock is the operating system's, on a file that nothing else opens, and a forked child has no part in it; who holds
it stands in a file beside it, for messages. Where a folder is on a network, such a lock may bind one machine only;
there the number decides: every writer that opens the folder takes the next one, and whoever finds another than its own
writes no more.
"""

import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from esper.utils.files import read_file, replace_file

LOCK, OWNER = "lock", "owner.json"

NETWORKS = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "ceph", "lustre", "gpfs", "beegfs")
"""How the types of file systems begin that several machines may have mounted."""

LARGEST_OWNER = 4096


class LockError(ValueError):
    """Somebody else writes in a folder; one line with who that is."""


@dataclass
class Lock:
    """The right to write in a folder.

    Attributes:
      folder: which.
      epoch: the writer's number; later writers have higher ones.
    """

    folder: Path
    epoch: int
    held: FileLock = field(repr=False)

    def check(self) -> None:
        """Nothing, where the folder is still this writer's.

        Raises:
          LockError: another one opened it since, or it is not there any more.
          OSError: it cannot be told, for want of a handle, say.
        """
        found = _owner(self.folder)
        if not found:
            raise LockError(f"{self.folder}: moved, removed or taken over; nothing more is written here")
        if found.get("epoch") != self.epoch:
            raise LockError(f"{self.folder}: taken over by {_named(found)}; nothing more is written here")

    def release(self) -> None:
        """Let others write."""
        self.held.release()


def hold(folder: Path, expected: str = "a folder of its own") -> Lock:
    """Take a folder, at once or not at all.

    Args:
      folder: must exist.
      expected: what a message asks for, where somebody else has it.

    Raises:
      LockError: somebody else has it.
      OSError: it cannot be written.
    """
    held = FileLock(folder / LOCK, timeout=0, is_singleton=False, thread_local=False)
    try:
        held.acquire()
    except Timeout:
        raise LockError(f"{folder}: {_named(_owner(folder))} is writing here; expected {expected}") from None
    try:
        epoch = _number(_owner(folder).get("epoch")) + 1
        owner = {"epoch": epoch, "pid": os.getpid(), "host": socket.gethostname()}
        replace_file(folder / OWNER, (json.dumps(owner) + "\n").encode())
    except BaseException:
        held.release()
        raise
    return Lock(folder, epoch, held)


def _owner(folder: Path) -> dict[str, Any]:
    """Who took the folder last; empty if nobody did, or if what stands there is no record of it.

    Raises:
      OSError: it is there and cannot be read.
    """
    try:
        found = json.loads(read_file(folder / OWNER, LARGEST_OWNER))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _named(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    here = owner.get("host") == socket.gethostname()
    return f"process {owner.get('pid')}" + ("" if here else f" on {owner.get('host')}")


def network_of(folder: Path, mounts: str = "/proc/mounts") -> str | None:
    """The type of the file system that a folder is on, if several machines may have it; None elsewhere, or unknown."""
    try:
        table = Path(mounts).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    place = folder.resolve()
    rows = [line.split(" ")[1:3] for line in table.splitlines() if line.count(" ") >= 3]
    above = [(Path(where), kind) for where, kind in rows if place.is_relative_to(where)]
    kind = max(above, key=lambda row: len(row[0].parts), default=(place, ""))[1]
    return kind if kind.startswith(NETWORKS) else None
