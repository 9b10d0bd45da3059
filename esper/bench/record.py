"""What a run leaves behind: its results with everything needed to judge them, as one JSON object."""

import json
import math
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from esper.bench.fresh import Probe
from esper.bench.measure import percentile
from esper.utils.documents import shown
from esper.utils.settings import SettingsError
from esper.version import __version__

FORMAT = 3
"""Version of the file's structure."""

READ = (2, 3)
"""Versions that are read; 2 has neither launches nor bytes."""

PACKAGES = ("torch", "tensordict", "torchrl", "numpy")


@dataclass
class Result:
    """One case at one number of environments.

    Attributes:
      case, unit, envs: which.
      wrong: what the gate found; then nothing was timed.
      seconds: of the repeats, in their order.
      counted: runs over which was counted what follows; 0 = nothing was.
      recompiles: compilations during them; everything had been compiled before.
      waits: times the host waited for the device during them.
      launches, bytes: of them, see ``meter.DeviceWork``; None where they were not counted.
      rates: of a case with parts, units a second of each, repeat by repeat: alone, and beside all others.
      probe: what a fresh process found.
    """

    case: str
    unit: str
    envs: int
    wrong: str | None = None
    seconds: list[float] = field(default_factory=list)
    counted: int = 0
    recompiles: int = 0
    waits: int = 0
    launches: int | None = None
    bytes: int | None = None
    rates: dict[str, list[list[float]]] = field(default_factory=dict)
    probe: Probe | None = None

    @property
    def counts(self) -> dict[str, int | None]:
        """What was counted, by name; empty where nothing was."""
        found = {name: getattr(self, name) for name in COUNTS}
        return found if self.counted else {}


COUNTS = ("recompiles", "waits", "launches", "bytes")


def summary(result: Result) -> dict[str, float | None]:
    """The numbers that follow from a result; None where there are none.

    Returns:
      seconds: median, p10, p90; envs_per_second: repeats of one environment; first_seconds: how much longer a fresh
      process's first repeat takes than its second; bytes: peak of such a process beyond its imports, and per
      environment while a repeat runs.
    """
    if not result.seconds:
        return {}
    median, low, high = (percentile(result.seconds, share) for share in (0.5, 0.1, 0.9))
    found: dict[str, float | None] = {"median": median, "p10": low, "p90": high}
    found |= {"envs_per_second": result.envs / median, "first_seconds": None, "peak_bytes": None, "bytes_per_env": None}
    if result.probe is not None:
        first = max(result.probe.first - result.probe.second, 0.0)
        found |= {"first_seconds": first, "peak_bytes": result.probe.peak_bytes}
        found["bytes_per_env"] = result.probe.run_bytes / result.envs
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "esper": __version__,
        "commit": commit(Path(__file__).parents[2]),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cores": cores,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def commit(folder: Path) -> str | None:
    """The commit checked out in a folder, with a + if tracked files differ from it; None outside a repository."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(
            command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=60
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def to_table(facts: dict[str, Any], settings: dict[str, Any], results: list[Result]) -> dict[str, Any]:
    """Everything as plain JSON values."""
    rows = []
    for result in results:
        row = asdict(result) | {"probe": result.probe and result.probe._asdict()}
        rows.append(row | {"summary": summary(result)})
    return {"format": FORMAT, "machine": facts, "settings": settings, "results": rows}


def read_table(path: Path) -> dict[str, Any]:
    """A file that ``run --json`` wrote.

    Raises:
      SettingsError: it cannot be read, or is something else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: {str(error).splitlines()[0]}") from None
    found = table.get("format") if isinstance(table, dict) else None
    if found not in READ:
        raise SettingsError(f"{path}: format {shown(found)}; expected {FORMAT}, as written by run --json")
    for name in ("machine", "settings"):
        if not isinstance(table.get(name), dict):
            raise SettingsError(f"{path}: {name} {shown(table.get(name))}; expected a table, as written by run --json")
    return table


def results_of(table: dict[str, Any]) -> list[Result]:
    """The results of a file.

    Raises:
      SettingsError: a row is not a result.
    """
    try:
        return [_result(row) for row in table["results"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"results: {type(error).__name__}: {error}; expected rows as written by run --json"
        ) from None


def _result(row: dict[str, Any]) -> Result:
    probe = None if row["probe"] is None else Probe(**row["probe"])
    found = Result(**{name: value for name, value in row.items() if name != "summary"} | {"probe": probe})
    numbers = [*found.seconds, *(rate for pairs in found.rates.values() for pair in pairs for rate in pair)]
    counts = [found.envs, found.counted, *(count for count in found.counts.values() if count is not None)]
    if not all(isinstance(each, int | float) and 0 < each < math.inf for each in numbers):
        raise ValueError(f"{shown(found.case)}: seconds and rates are positive numbers")
    if not isinstance(found.case, str) or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(f"{shown(found.case)}: a case is a word, and counts are integers")
    return found
