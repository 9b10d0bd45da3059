"""What a run leaves behind: its results with everything needed to judge them, as one JSON object."""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import esper
from esper.bench.measure import percentile
from esper.bench.probe import Probe
from esper.bench.rates import Rates, median_rates
from esper.bench.work import NO_WORK, Work
from esper.utils.settings import SettingsError

FORMAT = 1
"""Version of the file's structure."""

PACKAGES = ("torch", "tensordict", "torchrl", "numpy")


@dataclass
class Result:
    """One case at one number of environments.

    Attributes:
      case, unit, envs: which.
      wrong: what the gate found; then nothing was timed.
      seconds: of the repeats, in their order.
      work: of one repeat.
      counted: runs over which was counted what follows; 0 = nothing was.
      recompiles: compilations during them; everything had been compiled before.
      graph_breaks: during them.
      waits: times the host waited for the device during them.
      cold, warm: what fresh processes found, with empty and with filled caches; cold only if there is compilation.
      formula_bytes: memory per environment that the formula predicts for a compiled engine.
    """

    case: str
    unit: str
    envs: int
    wrong: str | None = None
    seconds: list[float] = field(default_factory=list)
    work: Work = NO_WORK
    counted: int = 0
    recompiles: int = 0
    graph_breaks: int = 0
    waits: int = 0
    cold: Probe | None = None
    warm: Probe | None = None
    formula_bytes: float | None = None


def summary(result: Result, rates: list[Rates]) -> dict[str, float | None]:
    """The numbers that follow from a result; None where there are none.

    Args:
      result: of a case.
      rates: of the matrix product and the copy, measured in the same run.

    Returns:
      seconds: median, p10, p90; per second: env_steps, sgd_steps, samples, flops, bytes; shares of the run's rates;
      compile seconds, the first repeat of a fresh process minus its second: cold and warm; bytes: peak of such a
      process beyond its imports, and per environment while a repeat runs.
    """
    if not result.seconds:
        return {}
    median, best = percentile(result.seconds, 0.5), median_rates(rates)
    per_second = {f"{name}_per_second": amount / median or None for name, amount in result.work._asdict().items()}
    flops, moved = (per_second[f"{name}_per_second"] for name in ("flops", "bytes"))
    compiling = {
        f"{name}_seconds": None if probe is None else max(probe.first - probe.second, 0.0)
        for name, probe in (("cold", result.cold), ("warm", result.warm))
    }
    return {
        "median": median,
        "p10": percentile(result.seconds, 0.1),
        "p90": percentile(result.seconds, 0.9),
        **per_second,
        "flops_share": None if flops is None else flops / best.flops,
        "bytes_share": None if moved is None else moved / best.bytes,
        **compiling,
        "graphs": None if result.warm is None else result.warm.graphs,
        "peak_bytes": None if result.warm is None else result.warm.peak_bytes,
        "bytes_per_env": None if result.warm is None else result.warm.run_bytes / result.envs,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "esper": esper.__version__,
        "commit": commit(Path(esper.__file__).parents[1]),
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
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def to_table(
    facts: dict[str, Any], settings: dict[str, Any], rates: list[Rates], results: list[Result]
) -> dict[str, Any]:
    """Everything as plain JSON values."""
    rows = []
    for result in results:
        row = asdict(result) | {"work": result.work._asdict()}
        row |= {name: probe and probe._asdict() for name, probe in (("cold", result.cold), ("warm", result.warm))}
        rows.append(row | {"summary": summary(result, rates)})
    return {
        "format": FORMAT,
        "machine": facts,
        "settings": settings,
        "rates": [rate._asdict() for rate in rates],
        "results": rows,
    }


def read_table(path: Path) -> dict[str, Any]:
    """A file that ``run --json`` wrote.

    Raises:
      SettingsError: it cannot be read, or is something else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {str(error).splitlines()[0]}") from None
    found = table.get("format") if isinstance(table, dict) else None
    if found != FORMAT:
        raise SettingsError(f"{path}: format {found!r}; expected {FORMAT}, as written by run --json")
    return table


def results_of(table: dict[str, Any]) -> list[Result]:
    """The results of a file.

    Raises:
      SettingsError: a row is not a result.
    """
    try:
        return [_result(row) for row in table["results"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"results: {type(error).__name__}: {error}; expected rows as written by run --json"
        ) from None


def _result(row: dict[str, Any]) -> Result:
    probes = {name: None if row[name] is None else Probe(**row[name]) for name in ("cold", "warm")}
    made = {"work": Work(**row["work"]), **probes}
    return Result(**{name: value for name, value in row.items() if name not in ("summary", *made)} | made)
