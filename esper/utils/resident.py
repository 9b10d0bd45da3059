"""Memory of this process: what it holds and what it held at most, in bytes.

On Linux both come from /proc, the peak can be started anew, and what was freed is given back first. Elsewhere the peak
is the process's own since it began, and what it holds now is taken to be the same.
"""

import ctypes
import gc
import os
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _field(name: str) -> int:
    lines = STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def resident(device: torch.device) -> int:
    """Bytes held now, as they are; elsewhere than on Linux, at most so far."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _field("VmRSS") if STATUS.is_file() else peak(device)


def held(device: torch.device, collect: bool = True) -> int:
    """Bytes held now, after giving back what is free; ``collect``: and what only circles of references hold."""
    if collect:
        gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if not STATUS.is_file():
        return peak(device)
    ctypes.CDLL(None).malloc_trim(0)
    return _field("VmRSS")


def peak(device: torch.device) -> int:
    """Bytes held at most since ``restart_peak``."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.is_file():
        return _field("VmHWM")
    if os.name != "posix":  # nothing of the standard library tells
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def restart_peak(device: torch.device, collect: bool = True) -> None:
    """Let ``peak`` start from what is held now, where that is possible; see ``held``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        held(device, collect)
        CLEAR.write_text("5", encoding="utf-8")
