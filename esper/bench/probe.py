"""A case in a fresh process: what compiling it takes, and how much memory it needs.

``python -m esper.bench.probe`` reads one JSON object on standard input and writes one on standard output. A process
that starts with empty caches is cold; the next one with the same caches is warm.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from esper.bench import resident
from esper.bench.case import Bench, Case
from esper.bench.measure import seconds_of
from esper.bench.meter import compilations
from esper.leyline.config import Precision
from esper.runtime.tasks import TASKS


class ProbeError(RuntimeError):
    """A fresh process failed; one line with its last words."""


class Probe(NamedTuple):
    """What one fresh process found."""

    first: float  # seconds of the first repeat, compilation included
    second: float  # seconds of the next
    graphs: int  # captured up to the end of the first repeat
    graph_breaks: int
    peak_bytes: int  # held at most over the whole process, above what importing Esper takes
    run_bytes: int  # held at most during a repeat, above what is left when all of it is gone


@contextmanager
def empty_caches() -> Iterator[dict[str, str]]:
    """Environment variables that point every compiler's cache at an empty folder, which goes when the block ends."""
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as folder:
        yield {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"), "XDG_CACHE_HOME": str(Path(folder) / "cache")}


def ask(module: str, bench: Bench, case: str, envs: int, caches: dict[str, str]) -> dict[str, Any]:
    """Put a request to a fresh process.

    Args:
      module: what answers it, of this package.
      bench: task and device.
      case: its name.
      envs: environments E.
      caches: environment variables, from ``empty_caches``; the second process with the same ones is warm.

    Raises:
      ProbeError: the process failed.
    """
    request = {
        "case": case,
        "envs": envs,
        "task": bench.task.name,
        "device": str(bench.device),
        "precision": bench.precision.value,
        "compile": bench.compile,
        "quick": bench.quick,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-m", f"esper.bench.{module}"],
        input=json.dumps(request),
        env=os.environ | caches,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ProbeError(f"{case}, E = {envs}, in a fresh process: exit status {done.returncode}: {words[0]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bench_of(request: dict[str, Any]) -> Bench:
    """The bench that a request describes, in the process that answers it."""
    torch.set_num_threads(request["threads"])
    task, precision = TASKS[request["task"]](), Precision(request["precision"])
    return Bench(task, torch.device(request["device"]), precision, request["compile"], request["quick"])


def answer(request: dict[str, Any], table: dict[str, Case]) -> dict[str, Any]:
    """What the fresh process does: prepare, run twice, let go."""
    bench = bench_of(request)
    device = bench.device
    imported = resident.held(device)
    with compilations() as compiled:
        trial = table[request["case"]].prepare(bench, request["envs"])
        begun = time.perf_counter()
        trial.run()
        first = time.perf_counter() - begun
    before = resident.peak(device)
    resident.restart_peak(device)
    second = seconds_of(trial.run, device)
    during = resident.peak(device)
    trial.close()
    bench.engines.clear()
    del trial
    gc.collect()
    return Probe(
        first=first,
        second=second,
        graphs=compiled.graphs,
        graph_breaks=compiled.graph_breaks,
        peak_bytes=max(before, during) - imported,
        run_bytes=during - resident.held(device),
    )._asdict()


def main() -> None:
    """Answer one request."""
    from esper.bench.cases import cases_of

    request = json.loads(sys.stdin.read())
    table = cases_of(TASKS[request["task"]]())
    sys.stdout.write(json.dumps(answer(request, table)) + "\n")


if __name__ == "__main__":
    main()
