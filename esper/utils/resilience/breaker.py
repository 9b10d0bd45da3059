"""A circuit breaker: a service that fails in a row is left alone for a while, then asked carefully.

The machine is three pure functions of a value. *Closed*: calls are made; ``threshold`` failures in a row open it.
*Open*: none is made, until ``recovery`` seconds have passed. *Half-open*: one call at a time; ``successes`` in a row
close it, one failure opens it again. A call that reports too late (``timeout``) is a failure, and a call of an earlier
phase has no say in a later one: so a probe that never comes back blocks nothing.

How many failures open it follows the error rate:

    threshold = max(1, ceil(failures * (1 - r)))
    r <- (1 - w) * r + w * [the call failed]        over calls, w = ``weight``

where r is taken before the present row of failures. A service that was sound (r = 0) opens after ``failures``; one that
fails every other call (r = 1/2) after half as many.
"""

import math
from collections.abc import Callable
from enum import Enum
from threading import Lock
from typing import NamedTuple, TypeVar

from esper.utils.resilience.causes import Nature, cause_of
from esper.utils.resilience.world import REAL, World

Result = TypeVar("Result")


class Limits(NamedTuple):
    """Numbers of a breaker.

    Attributes:
      failures: in a row, that open it while the error rate is 0.
      recovery: seconds from opening to half-open.
      successes: in a row, that close it.
      timeout: seconds after which a call has failed.
      weight: of one call in the error rate.
    """

    failures: int = 5
    recovery: float = 60.0
    successes: int = 3
    timeout: float = 30.0
    weight: float = 0.1


class Phase(Enum):
    """Of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Circuit(NamedTuple):
    """State of a breaker.

    Attributes:
      phase: see the module.
      era: grows with every phase and every probe; a call belongs to the one that it was admitted in.
      row: failures in a row (closed), successes in a row (half-open).
      since: when it opened, or when the probe that is out was admitted.
      probing: whether a probe is out.
      rate: the error rate r, without the present row of failures.
    """

    phase: Phase = Phase.CLOSED
    era: int = 0
    row: int = 0
    since: float = 0.0
    probing: bool = False
    rate: float = 0.0


DEFAULT = Limits()


class BreakerOpen(OSError):
    """A call that was not made, since the service fails; one line. Who handles a service's failures handles this."""


def threshold(limits: Limits, rate: float) -> int:
    """Failures in a row that open the breaker at an error rate."""
    return max(1, math.ceil(limits.failures * (1 - rate)))


def admit(limits: Limits, circuit: Circuit, now: float) -> tuple[Circuit, bool]:
    """Ask whether a call may be made.

    Args:
      limits: numbers.
      circuit: before.
      now: seconds.

    Returns:
      the state after, whose ``era`` the call reports with, and whether it may be made.
    """
    if circuit.phase is Phase.HALF_OPEN and circuit.probing and now - circuit.since >= limits.timeout:
        circuit = _open(limits, circuit, now)
    if circuit.phase is Phase.CLOSED:
        return circuit, True
    if circuit.phase is Phase.OPEN:
        if now - circuit.since < limits.recovery:
            return circuit, False
        circuit = circuit._replace(phase=Phase.HALF_OPEN, row=0)
    if circuit.probing:
        return circuit, False
    return circuit._replace(era=circuit.era + 1, since=now, probing=True), True


def report(limits: Limits, circuit: Circuit, era: int, failed: bool | None, now: float) -> Circuit:
    """Tell how a call went that was admitted.

    Args:
      limits: numbers.
      circuit: before.
      era: of the state that admitted it.
      failed: None = it says nothing of the service: the call itself was wrong.
      now: seconds.
    """
    if era != circuit.era or circuit.phase is Phase.OPEN:
        return circuit
    if circuit.phase is Phase.CLOSED:
        return circuit if failed is None else _count(limits, circuit, failed, now)
    circuit = circuit._replace(probing=False)
    if failed is None:
        return circuit
    if failed:
        return _open(limits, circuit, now)
    circuit = circuit._replace(row=circuit.row + 1, rate=_averaged(limits, circuit.rate, 0, 1))
    if circuit.row < limits.successes:
        return circuit
    return circuit._replace(phase=Phase.CLOSED, era=circuit.era + 1, row=0)


def _count(limits: Limits, circuit: Circuit, failed: bool, now: float) -> Circuit:
    if not failed:
        return circuit._replace(row=0, rate=_averaged(limits, circuit.rate, circuit.row, 1))
    circuit = circuit._replace(row=circuit.row + 1)
    return _open(limits, circuit, now) if circuit.row >= threshold(limits, circuit.rate) else circuit


def _open(limits: Limits, circuit: Circuit, now: float) -> Circuit:
    failures = circuit.row if circuit.phase is Phase.CLOSED else 1
    rate = _averaged(limits, circuit.rate, failures, 0)
    return Circuit(Phase.OPEN, circuit.era + 1, failures, now, False, rate)


def _averaged(limits: Limits, rate: float, failures: int, successes: int) -> float:
    """The error rate after so many failures, then so many successes."""
    kept = (1 - limits.weight) ** failures
    return float((rate * kept + 1 - kept) * (1 - limits.weight) ** successes)


class Breaker:
    """A breaker around calls.

    Attributes:
      name: of the service.
      limits: numbers.
      circuit: the state as it is now.
    """

    def __init__(self, name: str, limits: Limits = DEFAULT, world: World = REAL) -> None:
        self.name, self.limits, self.circuit, self._world, self._lock = name, limits, Circuit(), world, Lock()

    def call(self, function: Callable[[], Result]) -> Result:
        """Make a call if the breaker admits it.

        Args:
          function: without arguments; should itself end within ``limits.timeout``.

        Returns:
          what it gives. One that took longer has failed as far as the breaker is concerned.

        Raises:
          BreakerOpen: it was not made.
          Exception: of the function, as it is.
        """
        began = self._world.now()
        with self._lock:
            self.circuit, admitted = admit(self.limits, self.circuit, began)
            era = self.circuit.era
        if not admitted:
            raise BreakerOpen(self._refusal(began))
        failed: bool | None = None
        try:
            result = function()
            failed = self._world.now() - began > self.limits.timeout
            return result
        except Exception as error:
            failed = None if cause_of(error).nature is Nature.CALLER else True
            raise
        finally:  # also where something that is no error ends the call
            with self._lock:
                self.circuit = report(self.limits, self.circuit, era, failed, self._world.now())

    def _refusal(self, now: float) -> str:
        if self.circuit.phase is Phase.HALF_OPEN:
            return f"{self.name}: left alone while one call tries it"
        left = max(0.0, self.circuit.since + self.limits.recovery - now)
        return f"{self.name}: left alone after {self.circuit.row} failures in a row, for another {left:.0f} s"
