"""What cannot be compiled, or fails when it runs, runs as it is written: a line in the log, and one in what a backend
says of itself.
"""

import logging
from collections.abc import Callable
from typing import Any

from esper.tezzeret.fallback import FALLS_BACK, is_of_surroundings
from esper.utils.torch_private import compile_errors, without_guard_log

logger = logging.getLogger("esper")


class Refused(Exception):
    """A function that cannot be traced or compiled; one line with the reason."""


class OrPlainly:
    """A function that is compiled at its first call, or runs as it is written if the compiler refuses it.

    What the compiler refuses is sound all the same: a function lifted by ``torch.func.vmap`` may need the number of
    its rows as a plain number, another decides by a tensor's value. So is one whose compiled code raises, be it at its
    first call or later; that is a failure. A call that fails as it is written, too, raises.

    Attributes:
      reason: why it is not compiled; None as long as it is.
      failures: 1 where that is because its compiled code raised, else 0.
    """

    def __init__(self, what: str, function: Callable[..., Any], run: Callable[..., Any]) -> None:
        """Nothing is compiled yet.

        Args:
          what: how messages call the function.
          function: as it is written.
          run: the same, compiled at its first call.
        """
        self.what, self.function, self.run = what, function, run
        self.reason: str | None = None
        self.failures = 0

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        if self.reason is None:
            try:
                with without_guard_log():
                    return self.run(*arguments)
            except Exception as error:
                refused = isinstance(error, (Refused, *compile_errors()))
                if not refused and is_of_surroundings(error):
                    raise
                return self._plainly(error, refused, arguments)
        return self.function(*arguments)

    def _plainly(self, error: Exception, refused: bool, arguments: tuple[Any, ...]) -> Any:
        """The call as it is written, and from now on all others; after an error of what was compiled."""
        result = self.function(*arguments)  # where the fault is its own, this raises too
        said = " ".join(str(error).split())
        self.reason = said[:200] if isinstance(error, Refused) else f"{type(error).__name__}: {said[:160]}"
        if refused:
            logger.info("esper: backend 'inductor': %s runs as it is written: %s", self.what, self.reason)
        else:
            self.failures, self.reason = 1, f"{FALLS_BACK}: {self.reason}"
            logger.warning("backend 'inductor': %s %s; it runs as it is written now", self.what, self.reason)
        return result
