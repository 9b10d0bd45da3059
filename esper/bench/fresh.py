"""Fresh processes: what the first repeat of a case takes, how much memory it needs, and what a start costs.

``python -m esper.bench.fresh`` reads one JSON object on standard input and writes one on standard output. A process
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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from esper.bench import gates, resident
from esper.bench.case import Bench, Case, Trial, mixed
from esper.bench.measure import seconds_of
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE
from esper.runtime.tasks import TASKS

START = "start"
"""In place of a case's name: build an engine and take an environment step."""


class ProbeError(RuntimeError):
    """A fresh process failed; one line with its last words."""


class Probe(NamedTuple):
    """What one fresh process found of a case."""

    first: float  # seconds of the first repeat, compilation included
    second: float  # seconds of the next
    peak_bytes: int  # held at most over the whole process, above what importing Esper takes
    run_bytes: int  # held at most during a repeat, above what is left when all of it is gone


@contextmanager
def empty_caches() -> Iterator[dict[str, str]]:
    """Environment variables that point every compiler's cache at an empty folder, which goes when the block ends."""
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as folder:
        yield {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"), "XDG_CACHE_HOME": str(Path(folder) / "cache")}


def ask(bench: Bench, case: str, envs: int, caches: dict[str, str]) -> dict[str, Any]:
    """Put a request to a fresh process.

    Args:
      bench: task and device.
      case: its name, or ``START``.
      envs: environments E.
      caches: environment variables, from ``empty_caches``; none: the caches of this process.

    Raises:
      ProbeError: the process failed.
    """
    request = {
        "case": case,
        "envs": envs,
        "task": bench.task.name,
        "device": str(bench.device),
        "precision": bench.precision.value,
        "backend": bench.backend,
        "quick": bench.quick,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "esper.bench.fresh"],
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


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the fresh process does."""
    from esper.bench.cases import cases_of  # which names the cases of this module

    torch.set_num_threads(request["threads"])
    task, precision = TASKS[request["task"]](), Precision(request["precision"])
    bench = Bench(task, torch.device(request["device"]), precision, request["backend"], request["quick"])
    if request["case"] == START:
        return {"losses": _begin(bench, request["envs"])}
    return _probe(bench, cases_of(task)[request["case"]], request["envs"])._asdict()


def _begin(bench: Bench, envs: int) -> list[float]:
    """An engine and its first step, every slot seeded, with every blueprint; its training losses [E]."""
    engine = bench.engine(envs)
    wait = torch.zeros(envs, dtype=torch.int64, device=bench.device)
    losses: list[float] = engine.step(mixed(engine, 1.0, ACTIVE), wait)[1].epoch.loss.tolist()
    return losses


def _probe(bench: Bench, case: Case, envs: int) -> Probe:
    """Prepare, run twice, let go."""
    device = bench.device
    imported = resident.held(device)
    trial = case.prepare(bench, envs)
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
    return Probe(first, second, max(before, during) - imported, during - resident.held(device))


def _cold(bench: Bench, envs: int) -> Trial:
    def run() -> list[float]:
        with empty_caches() as caches:
            return _started(bench, envs, caches)

    engine = Bench(bench.task, bench.device, bench.precision, "eager", bench.quick).engine(envs)
    return Trial(run, engine, mixed(engine, 1.0, ACTIVE))


def _warm(bench: Bench, envs: int) -> Trial:
    stack = ExitStack()
    caches = stack.enter_context(empty_caches())
    _started(bench, envs, caches)
    return _cold(bench, envs)._replace(run=lambda: _started(bench, envs, caches), close=stack.close)


def _started(bench: Bench, envs: int, caches: dict[str, str]) -> list[float]:
    losses: list[float] = ask(bench, START, envs, caches)["losses"]
    return losses


def _start_gate(trial: Trial) -> str | None:
    return gates.losses_wrong(trial, trial.run(), " in the fresh process")


CASES = (
    Case("cold-start", "process: an engine and a step", _cold, _start_gate, most=1, counted=0, probed=False),
    Case("warm-start", "the same with warm caches", _warm, _start_gate, most=3, counted=0, probed=False),
)

if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(json.loads(sys.stdin.read()))) + "\n")
