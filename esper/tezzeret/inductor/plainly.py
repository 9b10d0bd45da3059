"""What cannot be compiled runs as it is written: one line in the log, and one in what a backend says of itself."""

import logging
from collections.abc import Callable
from typing import Any

from esper.utils.torch_private import compile_errors, without_guard_log

logger = logging.getLogger("esper")


class Refused(Exception):
    """A function that cannot be traced or compiled; one line with the reason."""


class OrPlainly:
    """A function that is compiled at its first call, or runs as it is written if the compiler refuses it.

    What the compiler refuses is sound all the same: a function lifted by ``torch.func.vmap`` may need the number of
    its rows as a plain number, another decides by a tensor's value. A call that fails for another reason raises.

    Attributes:
      reason: why it is not compiled; None as long as it is.
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

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        if self.reason is None:
            try:
                with without_guard_log():
                    return self.run(*arguments)
            except Exception as error:
                if not isinstance(error, (Refused, *compile_errors())):
                    raise
                result = self.function(*arguments)  # where the fault is its own, this raises too
                said = " ".join(str(error).split())
                self.reason = said[:200] if isinstance(error, Refused) else f"{type(error).__name__}: {said[:160]}"
                logger.info("esper: backend 'inductor': %s runs as it is written: %s", self.what, self.reason)
                return result
        return self.function(*arguments)
