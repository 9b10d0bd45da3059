"""Services that a run depends on, with their numbers: a breaker around each attempt, attempts around the breaker."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from esper.utils.resilience.breaker import Breaker, Limits
from esper.utils.resilience.retry import RetryPolicy, retry
from esper.utils.resilience.world import REAL, World

Result = TypeVar("Result")


class Terms(NamedTuple):
    """How a service is called."""

    limits: Limits = Limits()
    policy: RetryPolicy = RetryPolicy()


SERVICES = {
    "cache": Terms(Limits(failures=5, recovery=30.0, successes=3), RetryPolicy(attempts=3, cap=1.0, deadline=5.0)),
    "compiler": Terms(
        Limits(failures=3, recovery=45.0, successes=2, timeout=300.0),
        RetryPolicy(attempts=3, base=0.5, cap=5.0, deadline=60.0),
    ),
    "store redis": Terms(
        Limits(failures=3, recovery=2.0, successes=1, timeout=2.0),
        RetryPolicy(attempts=2, base=0.01, cap=0.05, deadline=0.5),
    ),
    "store database": Terms(
        Limits(failures=3, recovery=2.0, successes=1, timeout=10.0),
        RetryPolicy(attempts=4, base=0.02, cap=0.2, deadline=1.0),
    ),
    "store objects": Terms(
        Limits(failures=3, recovery=2.0, successes=1, timeout=60.0),
        RetryPolicy(attempts=3, base=0.05, cap=0.5, deadline=2.0),
    ),
    "files": Terms(policy=RetryPolicy(attempts=3, base=0.05, cap=0.5, deadline=2.0)),
}
"""By name; a service that is not among them has the defaults of ``Terms``. A compiler may take minutes for one call;
a training run waits for its files no longer than a step. A store goes on without a service at once, and tries it again
soon."""


class Service:
    """A service by its name.

    Attributes:
      breaker: what keeps calls away from it while it fails.
    """

    def __init__(self, name: str, world: World = REAL) -> None:
        terms = SERVICES.get(name, Terms())
        self.breaker, self._policy, self._world = Breaker(name, terms.limits, world), terms.policy, world

    def call(self, function: Callable[[], Result], idempotent: bool = True) -> Result:
        """Make a call; again where it fails for a moment only, never while the breaker is open.

        Args:
          function: without arguments.
          idempotent: whether it may be made twice.

        Raises:
          BreakerOpen: it was not made, or not again.
          Exception: of the last attempt, as it is.
        """
        return retry(lambda: self.breaker.call(function), self._policy, self._world, idempotent)
