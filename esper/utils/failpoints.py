"""Fault points: named places at which a file operation or a step can be made to fail, to try what that does to a run.

``ESPER_FAILPOINT=POINT:FAULT[:K]`` in the environment lets the K-th arrival (the first, if K is not given) at one of
``POINTS`` end in one of ``FAULTS``; with ``+`` behind K it lasts: an error meets every later arrival too.
``ESPER_CHAOS=SEED:RATE[:FAULT,FAULT...]`` lets every arrival fail with a probability; errors of files (``ERRORS``, the
default) meet operations on files alone. Without the variables a point costs one addition.
"""

import errno
import hashlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

VARIABLE, CHAOS = "ESPER_FAILPOINT", "ESPER_CHAOS"

ON_FILES = ("open", "write", "sync", "rename", "sync-folder", "remove")
"""Operations on files that must last."""

POINTS = (*ON_FILES, "step", "minibatch", "saved")
"""Where in a run: such an operation; an environment step or a minibatch about to begin; a checkpoint done."""

IN_STORES = ("put", "commit")
"""Where in a store: the next part of a put about to begin (object, row, Redis, memory); a transaction about to end."""

ERRORS = {"eio": errno.EIO, "enospc": errno.ENOSPC, "emfile": errno.EMFILE}
"""Faults that raise OSError."""

FAULTS = (*ERRORS, "memory", "kill")
"""``memory``: MemoryError; ``kill``: SIGKILL to this process, where there is one; otherwise it exits at once."""


class Awaited(Protocol):
    """What is asked at every arrival: faults, and whoever else has business there."""

    def met(self, point: str, arrival: int) -> str | None:
        """What goes wrong at an arrival, if anything; one of ``FAULTS``."""


class Fault(NamedTuple):
    """What goes wrong, where and when."""

    point: str
    kind: str
    first: int = 1  # which arrival it meets
    lasts: bool = False  # whether it meets all later ones as well

    def met(self, point: str, arrival: int) -> str | None:
        """What goes wrong at an arrival, if anything."""
        here = arrival >= self.first if self.lasts else arrival == self.first
        return self.kind if point == self.point and here else None


class Chaos(NamedTuple):
    """Failures at random. Which arrival fails depends on the seed, the point and the arrival's number alone, so what
    went wrong can be had again.
    """

    seed: int
    rate: float  # probability of a failure at each arrival
    kinds: tuple[str, ...] = tuple(ERRORS)  # each as likely as another

    def met(self, point: str, arrival: int) -> str | None:
        """What goes wrong at an arrival, if anything."""
        digest = hashlib.sha256(f"{self.seed}:{point}:{arrival}".encode()).digest()
        if int.from_bytes(digest[:8], "big") >= self.rate * 2**64:
            return None
        kind = self.kinds[int.from_bytes(digest[8:12], "big") % len(self.kinds)]
        return kind if point in ON_FILES or kind not in ERRORS else None


arrivals: Counter[str] = Counter()
"""How often each point was reached by this process while a fault was awaited."""

struck: Counter[str] = Counter()
"""How many of these arrivals failed."""

_awaited: list[Awaited] = []


def parse(text: str) -> Fault:
    """A fault as the environment names it.

    Raises:
      ValueError: one line; not of the form, or no such point or fault.
    """
    point, _, rest = text.partition(":")
    kind, _, count = rest.partition(":")
    lasts, digits = count.endswith("+"), count.removesuffix("+") or "1"
    if point not in (*POINTS, *IN_STORES) or kind not in FAULTS or not digits.isdecimal() or int(digits) < 1:
        raise ValueError(
            f"{VARIABLE} = {text!r}: expected POINT:FAULT[:K], K from 1 on; points are "
            f"{', '.join((*POINTS, *IN_STORES))}; faults are {', '.join(FAULTS)}"
        )
    return Fault(point, kind, int(digits), lasts)


def parse_chaos(text: str) -> Chaos:
    """Failures at random as the environment names them.

    Raises:
      ValueError: one line; not of the form, no probability, or no such fault.
    """
    seed, _, rest = text.partition(":")
    share, _, names = rest.partition(":")
    kinds = tuple(names.split(",")) if names else tuple(ERRORS)
    try:
        rate = float(share)
    except ValueError:
        rate = -1.0
    if not seed.isdecimal() or not 0 <= rate <= 1 or not set(kinds) <= set(FAULTS):
        raise ValueError(
            f"{CHAOS} = {text!r}: expected SEED:RATE[:FAULT,FAULT...], a rate from 0 to 1; faults are "
            f"{', '.join(FAULTS)}"
        )
    return Chaos(int(seed), rate, kinds)


@contextmanager
def awaiting(fault: Awaited | None) -> Iterator[Counter[str]]:
    """Let faults meet this process within the block; counts start anew, and those of arrivals are handed out."""
    before = list(_awaited)
    _awaited[:] = [] if fault is None else [fault]
    arrivals.clear()
    struck.clear()
    try:
        yield arrivals
    finally:
        _awaited[:] = before


def reach(point: str) -> None:
    """Arrive at a point.

    Raises:
      OSError, MemoryError: the fault that is awaited there, if it is an error.
    """
    arrivals[point] += 1
    for fault in _awaited:
        kind = fault.met(point, arrivals[point])
        if kind is not None:
            struck[point] += 1
            _strike(kind, point)


def _strike(kind: str, point: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    if kind == "memory":
        raise MemoryError(f"fault point {point}")
    raise OSError(ERRORS[kind], f"{os.strerror(ERRORS[kind])} (fault point {point})")


if os.environ.get(VARIABLE):
    _awaited.append(parse(os.environ[VARIABLE]))
if os.environ.get(CHAOS):
    _awaited.append(parse_chaos(os.environ[CHAOS]))
