"""Fault points: named places at which a file operation or a step can be made to fail, to try what that does to a run.

``ESPER_FAILPOINT=POINT:FAULT[:K]`` in the environment lets the K-th arrival (the first, if K is not given) at one of
``POINTS`` end in one of ``FAULTS``; with ``+`` behind K it lasts: an error meets every later arrival too. Without the
variable a point costs one addition.
"""

import errno
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

VARIABLE = "ESPER_FAILPOINT"

POINTS = ("open", "write", "sync", "rename", "sync-folder", "remove", "step", "minibatch", "saved")
"""Where: operations on files that must last; an environment step or a minibatch about to begin; a checkpoint done."""

ERRORS = {"eio": errno.EIO, "enospc": errno.ENOSPC, "emfile": errno.EMFILE}
"""Faults that raise OSError."""

FAULTS = (*ERRORS, "kill")
"""``kill``: SIGKILL to this process, where there is one; otherwise it exits at once."""


class Fault(NamedTuple):
    """What goes wrong, where and when."""

    point: str
    kind: str
    first: int = 1  # which arrival it meets
    lasts: bool = False  # whether it meets all later ones as well


arrivals: Counter[str] = Counter()
"""How often each point was reached by this process while a fault was awaited."""

_awaited: list[Fault] = []


def parse(text: str) -> Fault:
    """A fault as the environment names it.

    Raises:
      ValueError: one line; not of the form, or no such point or fault.
    """
    point, _, rest = text.partition(":")
    kind, _, count = rest.partition(":")
    lasts, digits = count.endswith("+"), count.removesuffix("+") or "1"
    if point not in POINTS or kind not in FAULTS or not digits.isdecimal() or int(digits) < 1:
        raise ValueError(
            f"{VARIABLE} = {text!r}: expected POINT:FAULT[:K], K from 1 on; points are {', '.join(POINTS)}; "
            f"faults are {', '.join(FAULTS)}"
        )
    return Fault(point, kind, int(digits), lasts)


@contextmanager
def awaiting(fault: Fault | None) -> Iterator[Counter[str]]:
    """Let a fault meet this process within the block; counts start anew, and are what is handed out."""
    before = list(_awaited)
    _awaited[:] = [] if fault is None else [fault]
    arrivals.clear()
    try:
        yield arrivals
    finally:
        _awaited[:] = before


def reach(point: str) -> None:
    """Arrive at a point.

    Raises:
      OSError: the fault that is awaited there, if it is an error.
    """
    arrivals[point] += 1
    for fault in _awaited:
        met = arrivals[point] >= fault.first if fault.lasts else arrivals[point] == fault.first
        if fault.point == point and met:
            _strike(fault.kind, point)


def _strike(kind: str, point: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    raise OSError(ERRORS[kind], f"{os.strerror(ERRORS[kind])} (fault point {point})")


if os.environ.get(VARIABLE):
    _awaited.append(parse(os.environ[VARIABLE]))
