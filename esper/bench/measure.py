"""Timing: repeats of all cases in turn, so that whatever else the machine does hits all of them alike."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

SHORTEST = 0.02
"""Seconds that one timing takes at least; shorter runs are repeated within it."""


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, by linear interpolation between order statistics.

    Args:
      values: at least one.
      share: 0 to 1.
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def seconds_of(run: Callable[[], Any], device: torch.device, loops: int = 1) -> float:
    """Seconds of one run, the mean of ``loops`` in a row; the device is done with everything before and after."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(loops):
        run()
    synchronise(device)
    return (time.perf_counter() - start) / loops


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def loops_for(seconds: float) -> int:
    """How many runs of this length make one timing."""
    return max(1, math.ceil(SHORTEST / max(seconds, 1e-9)))


def interleave(
    runs: Sequence[tuple[Callable[[], Any], int]],
    repeat: int,
    device: torch.device,
    between: Callable[[int], None] = lambda turn: None,
) -> list[list[float]]:
    """Time every run once per turn, in alternating order.

    Args:
      runs: each with the turns it takes part in at most, 0 = all; one with such a limit is long.
      repeat: turns.
      device: to wait for.
      between: called before every turn with its number, and once more after the last.

    Returns:
      per run, its seconds in the order of turns.
    """
    loops = [1 if most else loops_for(seconds_of(run, device)) for run, most in runs]
    taken: list[list[float]] = [[] for _ in runs]
    for turn in range(repeat):
        between(turn)
        gc.collect()
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for index in order:
            run, most = runs[index]
            if not most or turn < most:
                taken[index].append(seconds_of(run, device, loops[index]))
    between(repeat)
    return taken
