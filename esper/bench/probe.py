"""What a fresh process does: it reads one JSON object, a request of ``fresh``, and writes one."""

import gc
import json
import sys
import time
from typing import Any

import torch

from esper.bench.case import Bench, Case, mixed
from esper.bench.cases import cases_of
from esper.bench.fresh import START, Probe
from esper.bench.measure import seconds_of
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE
from esper.runtime.tasks import TASKS
from esper.utils import resident


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the fresh process does."""
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


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(json.loads(sys.stdin.read()))) + "\n")
