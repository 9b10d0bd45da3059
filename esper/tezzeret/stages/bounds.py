"""Bounds of time and memory: what was compiled must not be much slower than the eager form, nor keep what it used."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from esper.tezzeret.stages.forms import BlueprintForm, Subject
from esper.tezzeret.stages.inputs import BATCHES, Numbers, batch_of, goal_of
from esper.tezzeret.stages.refusal import require
from esper.utils.resident import held, resident


class Bounds(NamedTuple):
    """What is allowed.

    Attributes:
      slower: times the eager form's seconds.
      leak: bytes that stay.
      runs: calls of a measurement of memory, twice.
    """

    slower: float = 2.0
    leak: int = 1 << 20
    runs: int = 24


TURNS, AGAIN = 3, 3
"""Turns of a measurement of time, and how often it is taken anew where it says too slow: other processes disturb it."""


def _run(form: BlueprintForm, subject: Subject, numbers: Numbers) -> Callable[[], object]:
    """Inference and training of the largest batch."""
    batch = batch_of(subject, "normal", BATCHES[-1], numbers.params.shape[0], numbers.params)
    row = (numbers.params, numbers.buffers, batch.x)
    goal = goal_of(subject, form.infer(*row), batch.targets)
    return lambda: (form.infer(*row), form.train(*row, goal))


def check_time(
    form: BlueprintForm, reference: BlueprintForm, subject: Subject, numbers: Numbers, bounds: Bounds
) -> float:
    """How many times the eager form's seconds a form takes, for inference and training of a batch.

    Raises:
      ArtefactRefused: more than allowed, whenever it is looked at.
    """
    mine, other = (_run(each, subject, numbers) for each in (form, reference))
    ratios = list[float]()
    for attempt in range(AGAIN):
        turns = TURNS * 3**attempt
        taken = [(_seconds(mine), _seconds(other)) for _ in range(turns)]
        ratios.append(median(one for one, _ in taken) / median(two for _, two in taken))
        if ratios[-1] <= bounds.slower:
            return ratios[-1]
    least = min(ratios)
    require(False, "slow", f"{least:.2f} times the eager form's time", f"at most {bounds.slower:g}")
    return least


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def check_leak(form: BlueprintForm, subject: Subject, numbers: Numbers, bounds: Bounds) -> int:
    """Bytes that stay after many calls.

    Raises:
      ArtefactRefused: more than allowed, in two stretches of calls one after the other.
    """
    run, device = _run(form, subject, numbers), numbers.params.device
    for _ in range(2):
        run()
    held(device, collect=False)  # what leaks into memory that is free already would not show

    def growth(measure: Callable[[], int]) -> int:
        marks = [measure()]
        for _ in range(2):
            for _ in range(bounds.runs):
                run()
            marks.append(measure())
        return max(0, min(marks[1] - marks[0], marks[2] - marks[1]))

    stayed = growth(lambda: resident(device))
    if stayed > bounds.leak:  # garbage in circles, and what the allocator has not given back, are no leaks
        stayed = growth(lambda: held(device))
    require(
        stayed <= bounds.leak,
        "leak",
        f"{stayed / 2**20:.1f} MB more after {bounds.runs} calls, and again after as many",
        f"at most {bounds.leak / 2**20:g} MB",
    )
    return stayed
