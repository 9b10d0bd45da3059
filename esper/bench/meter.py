"""Counting: compilations and waits for the device, which should not happen, and launches and allocated bytes.

On a GPU, torch itself reports every wait. On a CPU nothing waits, so what *would* wait is counted: every value that
leaves a tensor for Python or NumPy, in Python (``tolist``, ``numpy``, ``cpu``) or inside an operator that needs a
value to know its result's size (``item``, ``nonzero`` and the like, which the profiler sees also in compiled code).
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.profiler_util import MEMORY_EVENT_NAME
from torch.utils.weak import WeakTensorKeyDictionary

from esper.utils import masks, threefry
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


class DeviceWork(NamedTuple):
    """What a run makes a device do.

    Attributes:
      waits: times that the host waits for it.
      launches: on a CPU operators, those inside others as well; on a GPU kernels and copies.
      bytes: that torch allocates on it, whether or not they are given back.
    """

    waits: int
    launches: int
    bytes: int


def count_waits(run: Callable[[], Any], device: torch.device) -> int:
    """How often a run makes the host wait for the device."""
    return count_work(run, device).waits


def count_work(run: Callable[[], Any], device: torch.device) -> DeviceWork:
    """What a run makes the device do; equal runs give equal numbers."""
    os.environ.setdefault("KINETO_LOG_LEVEL", _QUIET)
    return _on_gpu(run, device) if device.type == "cuda" else _on_cpu(run)


def _on_gpu(run: Callable[[], Any], device: torch.device) -> DeviceWork:
    before, allocated = torch.cuda.get_sync_debug_mode(), _allocated(device)
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
        torch.cuda.synchronize(device)
    launches = sum(event.device_type() == torch.profiler.DeviceType.CUDA for event in _events(seen))
    waits = sum("synchroniz" in str(warning.message) for warning in caught)
    return DeviceWork(waits, launches, _allocated(device) - allocated)


def _allocated(device: torch.device) -> int:
    """Bytes that were allocated so far."""
    return int(torch.cuda.memory_stats(device)["allocated_bytes.all.allocated"])


def _on_cpu(run: Callable[[], Any]) -> DeviceWork:
    drawn = patch.object(threefry, "MANY", 0)  # on a CPU alone, few numbers are drawn by reading the keys
    looked_at = patch.object(masks, "LOOKS", False)  # and masks are read for what need not be computed
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with (
        drawn,
        looked_at,
        _counted_reads() as found,
        torch.profiler.profile(activities=cpu, profile_memory=True) as seen,
    ):
        run()
    events = [(event.name(), event) for event in _events(seen)]
    spans = [(event.start_ns(), event.end_ns()) for name, event in events if name in ONLY_ON_CPU]
    reads = [event.start_ns() for name, event in events if name in READING_OPERATORS]
    waits = sum(not any(begin <= read <= end for begin, end in spans) for read in reads)
    sizes = (event.nbytes() for name, event in events if name == MEMORY_EVENT_NAME)
    operators = sum("::" in name for name, _ in events)
    return DeviceWork(found[0] + waits, operators, sum(size for size in sizes if size > 0))


def _events(seen: torch.profiler.profile) -> list[Any]:
    """What a profiler saw."""
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    return list(seen.profiler.kineto_results.events())


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
