"""Cases of a start: a fresh process that builds the engine, compiles every unit and takes an environment step.

``python -m esper.bench.start`` is that process; see ``esper.bench.probe`` for what it reads.
"""

import json
import sys
import time
from contextlib import ExitStack
from typing import Any

import torch

from esper.bench import gates
from esper.bench.case import SEED, Bench, Case, Trial
from esper.bench.probe import ask, bench_of, empty_caches
from esper.bench.scenes import Seeds, seeded
from esper.engine import Engine
from esper.leyline.stages import ACTIVE
from esper.leyline.state import State
from esper.runtime.compilation import warm_up


def _first_state(engine: Engine) -> State:
    """Every slot seeded, with every blueprint."""
    every = tuple(range(len(engine.network.blueprints)))
    return seeded(engine, 1.0, Seeds(every, ACTIVE, engine.config.blends), SEED)


def begin(bench: Bench, envs: int) -> dict[str, Any]:
    """What the fresh process does. Returns the training losses [E] of its step."""
    engine = bench.engine(envs)
    if bench.compile:
        warm_up(engine.network, engine.data)
    wait = torch.zeros(envs, dtype=torch.int64, device=bench.device)
    _, event = engine.step(_first_state(engine), wait)
    return {"losses": event.epoch.loss.tolist()}


def _timed(bench: Bench, envs: int, caches: dict[str, str]) -> list[float]:
    found: list[float] = ask("start", bench, "start", envs, caches)["losses"]
    return found


def _cold(bench: Bench, envs: int) -> Trial:
    def run() -> list[float]:
        with empty_caches() as caches:
            return _timed(bench, envs, caches)

    engine = Bench(bench.task, bench.device, bench.precision, compile=False, quick=bench.quick).engine(envs)
    return Trial(run, engine, _first_state(engine))


def _warm(bench: Bench, envs: int) -> Trial:
    stack = ExitStack()
    caches = stack.enter_context(empty_caches())
    _timed(bench, envs, caches)
    return _cold(bench, envs)._replace(run=lambda: _timed(bench, envs, caches), close=stack.close)


CASES = (
    Case(
        "cold-start", "process: everything compiled, one step", _cold, gates.start_gate, most=1, counted=0, probed=False
    ),
    Case("warm-start", "the same with warm caches", _warm, gates.start_gate, most=3, counted=0, probed=False),
)


def main() -> None:
    """Answer one request."""
    begun = time.perf_counter()
    request = json.loads(sys.stdin.read())
    answer = begin(bench_of(request), request["envs"])
    sys.stdout.write(json.dumps(answer | {"seconds": time.perf_counter() - begun}) + "\n")


if __name__ == "__main__":
    main()
