"""Fresh processes: what the first repeat of a case takes, how much memory it needs, and what a start costs.

A process that starts with empty caches is cold; the next one with the same caches is warm. What it does is in
``esper.bench.probe``.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from esper.bench import gates
from esper.bench.case import Bench, Case, Trial, mixed
from esper.leyline.stages import ACTIVE

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
        [sys.executable, "-m", "esper.bench.probe"],
        input=json.dumps(request),
        env=os.environ | caches,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ProbeError(f"{case}, E = {envs}, in a fresh process: exit status {done.returncode}: {words[0]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


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
