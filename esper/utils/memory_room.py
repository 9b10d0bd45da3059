"""Room: how much memory a process may still take, whoever sets the limit.

On Linux that is the machine, any control group around the process (a container, a systemd unit) or its address space
where ``ulimit -v`` limits it, whichever leaves least; pages of files that the kernel gives up when asked count as left.
On macOS and Windows it is the machine.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

GROUPS, OWN_GROUP, MEMORY_INFO = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/meminfo")

STATM = Path("/proc/self/statm")
"""Pages of this process, of its address space first."""

UNLIMITED = 1 << 60
"""Bytes beyond which a limit of version 1 is none."""


class Room(NamedTuple):
    """Memory of a place.

    Attributes:
      limit: bytes that may be in use there.
      left: bytes that are not.
      place: what it is, for messages.
    """

    limit: int
    left: int
    place: str

    @property
    def share(self) -> float:
        """Of the limit, what is left; 0 to 1."""
        return min(1.0, max(0.0, self.left / self.limit)) if self.limit else 0.0


def room(device: torch.device) -> Room | None:
    """What a device has left; of a CPU, what this process may still take. None where that cannot be told."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Room(total, free + unused, str(device))
    with suppress(OSError, ValueError, AttributeError, subprocess.SubprocessError):
        places = list(_host())
        return min(places, key=lambda each: each.left) if places else None
    return None


def _host() -> Iterator[Room]:
    if MEMORY_INFO.is_file():
        yield from of_linux(MEMORY_INFO.read_text(encoding="utf-8"))
        if OWN_GROUP.is_file():
            yield from of_groups(OWN_GROUP.read_text(encoding="utf-8"), GROUPS)
        yield from _of_address_space()
    elif sys.platform == "darwin":
        said = subprocess.run(["vm_stat"], check=True, capture_output=True, encoding="utf-8", timeout=10).stdout
        yield of_macos(said, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    elif os.name == "nt":
        yield _of_windows()


def of_linux(text: str) -> Iterator[Room]:
    """The machine, as /proc/meminfo has it, in kB; nothing where the kernel does not say what is available."""
    found = {name: 1024 * int(number) for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)}
    if {"MemTotal", "MemAvailable"} <= found.keys():
        yield Room(found["MemTotal"], found["MemAvailable"], "this machine")


def of_groups(text: str, root: Path) -> Iterator[Room]:
    """Every control group around a process that has a limit.

    Args:
      text: of /proc/self/cgroup: lines of number, controllers and path with colons between.
      root: where the groups are mounted; those of version 1 in a folder ``memory``.
    """
    for each in text.splitlines():
        number, _, rest = each.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = top / path.strip("/")
        for folder in [own, *own.parents]:
            if folder == top or top in folder.parents:
                yield from _of_group(folder, *names)


def _of_group(folder: Path, limit: str, usage: str, inactive: str) -> Iterator[Room]:
    """A group; nothing where it has no limit or is out of sight, as the groups around a container are."""
    with suppress(OSError, ValueError):
        most, used = (int((folder / name).read_text(encoding="utf-8")) for name in (limit, usage))
        found = re.search(rf"^{inactive} (\d+)$", (folder / "memory.stat").read_text(encoding="utf-8"), re.M)
        if most < UNLIMITED:
            given_up = int(found[1]) if found else 0
            yield Room(most, max(0, most - used + given_up), "this control group")


def _of_address_space() -> Iterator[Room]:
    """What ``ulimit -v`` lets this process have of addresses; nothing where that is no limit."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        used = int(STATM.read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        yield Room(most, max(0, most - used), "this process (ulimit -v)")


def of_macos(text: str, total: int) -> Room:
    """The machine, as ``vm_stat`` has it: pages that are free or are given up when asked."""
    page = re.search(r"page size of (\d+) bytes", text)
    counts = {name: int(number) for name, number in re.findall(r'^"?([^":]+)"?:\s+(\d+)\.$', text, re.M)}
    pages = sum(counts.get(f"Pages {name}", 0) for name in ("free", "inactive", "speculative", "purgeable"))
    return Room(total, min(total, pages * int(page[1] if page else 4096)), "this machine")


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "left", "t1", "t2", "t3", "t4", "t5")),
    )


def _of_windows() -> Room:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return Room(status.total, status.left, "this machine")
