"""Compiling many units at once: in as many forks of this process as there are cores, gone when all is compiled."""

import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import torch

from esper.tezzeret.inductor.kept import Kept, reason_of
from esper.utils.torch_private import tell_of_compilation

MOST = 16
"""Processes at most."""

_WAITING: list[Kept] = []
"""What forks compile: they have it from their parent as it is, functions and all."""


def compile_together(units: Sequence[Kept]) -> None:
    """Compile units, and load them; what cannot be compiled says why."""
    for unit in units:
        tell_of_compilation(unit.name)
    if sys.platform == "linux":
        _in_forks(units)
    else:  # forks are not safe there
        for unit in units:
            unit.reason = _compiled(unit)
    for unit in units:
        unit.take()


def _in_forks(units: Sequence[Kept]) -> None:
    _WAITING[:] = units
    count = min(len(os.sched_getaffinity(0)), len(units), MOST)
    with ProcessPoolExecutor(count, get_context("fork"), initializer=_begin) as pool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which a fork needs
            futures = [pool.submit(_compile_at, place) for place in range(len(units))]
        for unit, future in zip(units, futures, strict=True):
            unit.reason = _answer(future)
    _WAITING.clear()


def _answer(future: "Future[str | None]") -> str | None:
    try:
        return future.result()
    except Exception as error:  # the process died
        return reason_of(error)


def _begin() -> None:
    """A fork has no threads but this one."""
    torch.set_num_threads(1)


def _compile_at(place: int) -> str | None:
    return _compiled(_WAITING[place])


def _compiled(unit: Kept) -> str | None:
    try:
        unit.compile()
    except Exception as error:  # of AOT autograd, Inductor, the compiler, the linker, the file system
        return reason_of(error)
    return None
