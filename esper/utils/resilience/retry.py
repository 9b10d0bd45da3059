"""Trying again: exponential back-off with full jitter, up to a number of attempts and a deadline.

Only what may succeed later is tried again (``causes``), and only a call that may be made twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from esper.utils.resilience.causes import Nature, cause_of
from esper.utils.resilience.world import REAL, World

Result = TypeVar("Result")

MOST_DOUBLINGS = 64
"""Enough for any cap: 2**64 times any delay worth waiting is beyond it."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how soon.

    Attributes:
      attempts: calls in all, >= 1.
      base: seconds, the longest first delay, > 0.
      cap: seconds, the longest of any.
      deadline: seconds since the first attempt began, after which none begins.
    """

    attempts: int = 4
    base: float = 0.1
    cap: float = 60.0
    deadline: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not (0 < self.base <= self.cap) or self.deadline < 0:
            raise ValueError(f"{self}: expected attempts >= 1, 0 < base <= cap and deadline >= 0")


def delay(policy: RetryPolicy, number: int, chance: Callable[[], float]) -> float:
    """Seconds to wait after failure ``number`` (the first is 0): uniform in [0, min(cap, base * 2**number))."""
    return chance() * min(policy.cap, policy.base * 2.0 ** min(number, MOST_DOUBLINGS))


def delays(policy: RetryPolicy, chance: Callable[[], float], left: Callable[[], float]) -> Iterator[float]:
    """The delays of one call, one between two attempts; ends with the attempts, or where one would pass the deadline.

    Args:
      policy: how often and how soon.
      chance: as in ``World``.
      left: seconds to the deadline, as of now.
    """
    for number in range(policy.attempts - 1):
        seconds = delay(policy, number, chance)
        if seconds > left():
            return
        yield seconds


def retry(
    call: Callable[[], Result], policy: RetryPolicy = RetryPolicy(), world: World = REAL, idempotent: bool = True
) -> Result:
    """Make a call, again where it fails for a moment only.

    Args:
      call: without arguments.
      policy: how often and how soon.
      world: time, sleep, chance.
      idempotent: False: the call may have had its effect though it failed, and is made once.

    Returns:
      what the first attempt that does not fail gives.

    Raises:
      Exception: of the last attempt, as it is.
    """
    end = world.now() + policy.deadline
    waits = delays(policy, world.chance, lambda: end - world.now()) if idempotent else iter(())
    while True:
        try:
            return call()
        except Exception as error:  # whatever a call raises; only the transient is tried again
            seconds = next(waits, None) if cause_of(error).nature is Nature.TRANSIENT else None
            if seconds is None:
                raise
        world.sleep(seconds)
