"""Rows of ``bench.gpu`` that look at the device: waits, kernels, the share of time it is busy, its bandwidth."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

from bench.gpu_setup import Figures, Row, Setup, bench_of, repeats
from bench.gpu_steps import waiting
from esper.bench.case import mixed
from esper.bench.measure import synchronise
from esper.bench.meter import count_waits
from esper.bench.throughput import matrix_rate
from esper.leyline.stages import ACTIVE

TOP = 10
"""Kernels that are named."""

PROFILED = 3
"""Steps under the profiler; one where sizes are small."""


def kernels(run: Callable[[], Any], device: torch.device, times: int = PROFILED) -> Figures:
    """What a run launches on a GPU; on a CPU its operators, of which those inside others count as well.

    Returns:
      per run: number of kernels, their milliseconds, the share of the wall time; and the most expensive ones with their
      milliseconds and numbers. Kernels of one stream do not overlap, so their times add up.
    """
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    synchronise(device)
    with profile(activities=kinds, record_shapes=False) as seen:
        begun = time.perf_counter()
        for _ in range(times):
            run()
        synchronise(device)
        wall = time.perf_counter() - begun
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    rows = [event for event in seen.key_averages() if event.device_type == wanted]

    def own(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3

    rows.sort(key=own, reverse=True)
    busy = sum(map(own, rows))
    return {
        "kernels": sum(event.count for event in rows) / times,
        "busy_ms": busy / times,
        "busy_share": busy / (1e3 * wall),
        "top": [[event.key[:120], own(event) / times, event.count / times] for event in rows[:TOP]],
    }


def profile_row(shape: str, envs: int, few: int) -> Row:
    """Waits and kernels of a step, half of the slots active."""

    def run(setup: Setup) -> Figures:
        engine = bench_of(shape, setup).engine(setup.size(envs, few))
        step = waiting(engine, mixed(engine, 0.5, ACTIVE))
        step()
        found = {"envs": engine.config.num_envs, "waits": count_waits(step, setup.device)}
        return (
            found
            | {"minibatches": engine.config.steps_per_epoch}
            | kernels(step, setup.device, setup.size(PROFILED, 1))
        )

    return Row(f"profile-{shape}-{envs}", "waits, kernels, busy share and the ten most expensive kernels", run, 15)


def device(setup: Setup) -> Figures:
    """What the device can do: bytes a second of a copy, read and written, and multiply-adds of a matrix product."""
    count = setup.size(1 << 28, 1 << 20)
    source = torch.ones(count, device=setup.device)
    target = torch.empty_like(source)
    taken = repeats(lambda: target.copy_(source), setup)
    found: Figures = {"bytes_per_second": 2 * source.nbytes / taken[0]}
    found["multiply_adds_per_second"] = matrix_rate(setup.device, torch.float32)
    if setup.device.type == "cuda":
        facts = torch.cuda.get_device_properties(setup.device)
        found |= {"memory_bytes": facts.total_memory, "processors": facts.multi_processor_count}
    return found
