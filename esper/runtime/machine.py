"""What the bits of a run rest on, beside the versions of its packages: threads, build, instructions, device, and what
runs the networks.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from esper.utils.files import read_file

VERSIONS = "versions.json"

LARGEST = 1 << 20
"""Bytes that are read of it."""


def machine(device: torch.device, backends: Sequence[str]) -> dict[str, str]:
    """The machine as ``versions.json`` keeps it.

    Args:
      device: where the run computes.
      backends: names of what runs its networks, task by task.

    Returns:
      ``threads``, torch's in one operation; ``torch_build``, a digest of ``torch.__config__.show()``;
      ``instructions``, the CPU's vector instructions as torch uses them; ``device``, its name; ``backend``, what
      ``auto`` came to: without a compiler it comes to another.
    """
    build = hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:16]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "threads": str(torch.get_num_threads()),
        "torch_build": build,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": name,
        "backend": ", ".join(backends),
    }


def moved(folder: Path, device: torch.device, backends: Sequence[str]) -> list[str]:
    """What a run directory's last command had otherwise, a line that ends with a newline, or nothing.

    A run goes on to the same bits only where all of it is as it was. What the record lacks or cannot tell is left out.
    """
    try:
        before = json.loads(read_file(folder / VERSIONS, LARGEST))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(before, dict):
        return []
    now = machine(device, backends)
    changed = [
        f"{name} {before[name]}, now {now[name]}" for name in now if name in before and before[name] != now[name]
    ]
    return [f"{folder}: {'; '.join(changed)}: the run goes on, to other bits than there\n"] if changed else []
