"""What cannot be compiled runs as it is written: one line in the log, and one in what a backend says of itself."""

import logging
from collections.abc import Callable
from typing import Any

from esper.tezzeret.inductor.compiled import compiled
from esper.utils.torch_private import compile_errors, without_guard_log

logger = logging.getLogger("esper")


class OrPlainly:
    """A function that is compiled at its first call, or runs as it is written if the compiler refuses it.

    What torch.compile refuses is sound all the same: a function lifted by ``torch.func.vmap`` may need the number of
    its rows as a plain number, another decides by a tensor's value. A call that fails for another reason raises.

    Attributes:
      reason: why it is not compiled; None as long as it is.
    """

    def __init__(self, what: str, function: Callable[..., Any], compiler: str = "inductor") -> None:
        """Nothing is compiled yet; ``what`` is how messages call the function."""
        self.what, self.function = what, function
        self.run = compiled(function, compiler)
        self.reason: str | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        if self.reason is None:
            try:
                with without_guard_log():
                    return self.run(*arguments)
            except compile_errors() as error:
                result = self.function(*arguments)  # where the fault is its own, this raises too
                said = " ".join(str(error).split())
                self.reason = f"{type(error).__name__}: {said[:160]}"
                logger.info("esper: backend 'inductor': %s runs as it is written: %s", self.what, self.reason)
                return result
        return self.function(*arguments)
