"""Compiling many units at once: in as many forks of this process as there are cores, gone when all is compiled.

A fork takes the unit with the most operations that nobody has taken, and lets Inductor write it down; some of what it
has written becomes one library, by one call of the C++ compiler.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from esper.tezzeret.inductor import store
from esper.tezzeret.inductor.kept import Kept, reason_of
from esper.utils.compilations import compiling
from esper.utils.inductor_private import InductorCode
from esper.utils.torch_private import tell_of_compilation

MOST = 16
"""Processes at most."""

TOGETHER = 6
"""Units in a library: a call of the compiler takes most of a second before it has read a line of them."""

Say = Callable[[tuple[int, str | None]], Any]
"""Takes the place of a unit and why it cannot be compiled, or None: it was."""


def compile_together(units: Sequence[Kept]) -> None:
    """Compile units, and load them; what cannot be compiled says why."""
    ordered = sorted(units, key=lambda unit: -unit.operations)
    for unit in ordered:
        tell_of_compilation(unit.name)
    with compiling("units", len(ordered)):
        if sys.platform == "linux":
            reasons = _in_forks(ordered)
        else:  # forks are not safe there
            told: list[tuple[int, str | None]] = []
            _work(ordered, range(len(ordered)), told.append)
            reasons = dict(told)
    for place, unit in enumerate(ordered):
        unit.reason = reasons.get(place, "the process that compiled it died")
        unit.take()


def _in_forks(units: Sequence[Kept]) -> dict[int, str | None]:
    """What forks say of every unit; nothing of those that were in one that died."""
    context = get_context("fork")
    taken, ends, told = context.Value("i", 0), [], {}
    for _ in range(min(len(os.sched_getaffinity(0)), len(units), MOST)):
        end, other = context.Pipe(duplex=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which a fork needs
            context.Process(target=_fork, args=(units, taken, other), daemon=True).start()
        other.close()
        ends.append(end)
    while ends:
        for end in [each for each in wait(ends) if isinstance(each, Connection)]:
            try:
                place, reason = end.recv()
                told[place] = reason
            except EOFError:
                ends.remove(end)
    return told


def _fork(units: Sequence[Kept], taken: Any, end: Connection) -> None:
    """A fork has no threads but this one."""
    torch.set_num_threads(1)
    _work(units, _untaken(taken, len(units)), end.send)


def _untaken(taken: Any, count: int) -> Iterator[int]:
    """Places that no process has taken; ``taken``: how many are, common to all."""
    while True:
        with taken.get_lock():
            place, taken.value = taken.value, taken.value + 1
        if place >= count:
            return
        yield place


def _work(units: Sequence[Kept], places: Iterable[int], say: Say) -> None:
    """Compile the units at these places."""
    written: dict[int, InductorCode] = {}
    for place in places:
        try:
            written[place] = units[place].write()
        except Exception as error:  # of AOT autograd or Inductor
            say((place, reason_of(error)))
        if len(written) == TOGETHER:
            _build(units, written, say)
            written = {}
    _build(units, written, say)


def _build(units: Sequence[Kept], written: dict[int, InductorCode], say: Say) -> None:
    """Build what was written and keep it; where that fails, one by one, to see whose fault it is."""
    try:
        store.keep({units[place].name: each for place, each in written.items()})
    except Exception as error:  # of the compiler, the linker, the file system
        if len(written) == 1:
            say((next(iter(written)), reason_of(error)))
            return
        for place, each in written.items():
            _build(units, {place: each}, say)
        return
    for place in written:
        say((place, None))
