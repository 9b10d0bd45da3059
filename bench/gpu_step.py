"""Environment steps in a process of their own: ``python -P bench/gpu_step.py SHAPE ENVS``.

It runs whatever checkout PYTHONPATH names, this one or an earlier revision (c227639), on a device or on some
processors, and writes one JSON object: seconds to the end of the first step, and of the steps after it.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

MOST = 15
"""How often steps are repeated at most; once at the least."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=("digits", "cifar"))
    parser.add_argument("envs", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--active", type=float, default=0.5, help="share of the slots that hold an active seed")
    parser.add_argument("--cores", default="", help="processors to run on, such as 0,1; one thread each")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long steps are repeated (default 4)")
    parser.add_argument("--plain", action="store_true", help="nothing is compiled")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="whole numbers of the engine")
    return parser.parse_args()


def begin(options: argparse.Namespace) -> tuple[Any, Any]:
    """The engine on its device, and a state with seeds in some of its slots, drawn on the CPU."""
    sizes = {name: int(number) for name, _, number in (text.partition("=") for text in options.set)}
    if importlib.util.find_spec("bench.draw") is not None:
        from bench.draw import WorkloadConfig, build_engine, draw_state

        config = WorkloadConfig(options.shape, options.envs, active=options.active)
        state = draw_state(build_engine(config, "eager", **sizes), config)
        engine = build_engine(config, "eager" if options.plain else "auto", options.device, **sizes)
    else:
        from bench.deal import Deal, build_engine, deal_state  # type: ignore[import-not-found]

        config = Deal(options.shape, options.envs, active=options.active)
        state = deal_state(build_engine(config, False, **sizes), config)
        engine = build_engine(config, not options.plain, device=options.device, **sizes)
    return engine, state.to(options.device)


def seconds_of(step: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one step; the device is done with everything before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - begun


def main() -> None:
    """Run."""
    options = parse()
    if options.cores:
        cores = [int(core) for core in options.cores.split(",")]
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
    device = torch.device(options.device)
    engine, state = begin(options)
    action = torch.zeros(options.envs, dtype=torch.int64, device=device)

    def step() -> Any:
        return engine.step(state, action)

    first, taken = seconds_of(step, device), list[float]()
    while not taken or (sum(taken) < options.seconds and len(taken) < MOST):
        taken.append(seconds_of(step, device))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    found = {"first_seconds": first, "seconds": taken, "peak_bytes": peak}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
