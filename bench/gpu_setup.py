"""What the rows of ``bench.gpu`` share: where they run, how large, and what a row is."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import esper
from bench.draw import cifar
from esper.bench.case import Bench
from esper.bench.measure import seconds_of
from esper.leyline.config import Precision
from esper.runtime.tasks import chars, digits, digits_v1

Figures = dict[str, Any]
"""What a row found, JSON-able."""


class Empty(RuntimeError):
    """A row that cannot be run here; one line with the reason."""


class Setup(NamedTuple):
    """Where and how large.

    Attributes:
      device: where.
      small: tiny sizes, to see that a row works.
      backend: how networks are run.
      baseline: a checkout of an earlier revision to measure beside this one, if any.
      cores: how many processors of this machine count as "the cores".
      out: folder for what rows write beside their figures.
    """

    device: torch.device
    small: bool
    backend: str
    baseline: Path | None
    cores: int
    out: Path

    def size(self, full: int, small: int) -> int:
        """A number by the run's size."""
        return small if self.small else full


class Row(NamedTuple):
    """One row.

    Attributes:
      name: for ``--rows``.
      about: what it shows.
      run: setup -> figures; raises ``Empty``.
      seconds: that it is expected to take on a GPU, everything compiled; it is not begun with less left.
      default: whether it is run unless rows are named.
    """

    name: str
    about: str
    run: Callable[[Setup], Figures]
    seconds: float
    default: bool = True


def cifar_wide() -> esper.Task:
    """The CIFAR shape in minibatches of 128."""
    task = cifar()
    return task._replace(settings=task.settings | {"batch_size": 128})


TASKS: dict[str, Callable[[], esper.Task]] = {
    "digits": digits_v1,
    "cifar": cifar_wide,
    "chars": chars,
    "preset": digits,
}
"""Tasks that are stepped: the digits as they were first, the CIFAR shape, characters, and the digits as they are."""

SECONDS, MOST = 3.0, 15
"""How long a run is repeated, and how often at most; once at the least."""


def bench_of(shape: str, setup: Setup) -> Bench:
    """What builds engines of a task."""
    return Bench(TASKS[shape](), setup.device, Precision.FLOAT32, setup.backend, setup.small)


def repeats(run: Callable[[], Any], setup: Setup) -> list[float]:
    """Seconds of repeats, ascending; of one where sizes are small."""
    taken, begun = list[float](), time.perf_counter()
    while not taken or (not setup.small and time.perf_counter() - begun < SECONDS and len(taken) < MOST):
        taken.append(seconds_of(run, setup.device))
    return sorted(taken)


def median_ms(taken: list[float]) -> float:
    """The median of ascending seconds, in milliseconds."""
    return 1e3 * taken[len(taken) // 2]
