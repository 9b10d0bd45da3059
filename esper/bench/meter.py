"""Counting what should not happen: compilations, and waiting for the device.

On a GPU, torch itself reports every wait. On a CPU nothing waits, so what *would* wait is counted: every value that
leaves a tensor for Python or NumPy, in Python (``tolist``, ``numpy``, ``cpu``) or inside an operator that needs a
value to know its result's size (``item``, ``nonzero`` and the like, which the profiler sees also in compiled code).
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from esper.utils import threefry
from esper.utils.torch_private import on_compilation

READS = ("cpu", "numpy", "tolist")
"""Methods that hand a tensor's values to the host. Reading what ``cpu`` returned costs nothing more."""

READING_OPERATORS = frozenset(
    f"aten::{name}"
    for name in ("_local_scalar_dense", "nonzero", "equal", "_unique2", "unique_dim", "unique_consecutive", "bincount")
)
"""Operators that do; others that must know a value call one of these."""

ONLY_ON_CPU = frozenset({"aten::var", "aten::std"})
"""Operators whose CPU kernels read a value in passing, where a GPU's do not."""

_QUIET = "6"
"""Level of the profiler's own log that says nothing."""


@contextmanager
def compilations() -> Iterator[list[int]]:
    """Count compilations, of a frame or a backward, while the block runs."""
    found = [0]

    def begun(arguments: Any) -> None:
        del arguments
        found[0] += 1

    with on_compilation(begun):
        yield found


def count_waits(run: Callable[[], Any], device: torch.device) -> int:
    """How often a run makes the host wait for the device."""
    return _reported_waits(run) if device.type == "cuda" else _reads(run)


def _reported_waits(run: Callable[[], Any]) -> int:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _reads(run: Callable[[], Any]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", _QUIET)
    as_on_a_device = patch.object(threefry, "MANY", 0)  # on a CPU alone, few numbers are drawn by reading the keys
    with (
        as_on_a_device,
        _counted_reads() as found,
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen,
    ):
        run()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events = seen.profiler.kineto_results.events()
    spans = [(event.start_ns(), event.end_ns()) for event in events if event.name() in ONLY_ON_CPU]
    reads = [event.start_ns() for event in events if event.name() in READING_OPERATORS]
    return found[0] + sum(not any(begin <= read <= end for begin, end in spans) for read in reads)


@contextmanager
def _counted_reads() -> Iterator[list[int]]:
    """Count calls of the reading methods while the block runs."""
    found = [0]
    on_host = WeakTensorKeyDictionary()

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def read(self: Tensor, *arguments: Any, **options: Any) -> Any:
            if self not in on_host:
                found[0] += 1
            value = method(self, *arguments, **options)
            if name == "cpu":
                value = value.view_as(value)
                on_host[value] = True
            return value

        return read

    for name in READS:
        setattr(Tensor, name, counted(name, getattr(Tensor, name)))
    try:
        yield found
    finally:
        for name in READS:
            delattr(Tensor, name)
