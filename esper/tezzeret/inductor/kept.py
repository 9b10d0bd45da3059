"""Units that are traced, compiled once, and kept on disk.

A unit is pure and made of torch's operators alone, and its arguments differ in their number of rows only. So a trace
of it is all of it, the code made from the trace needs no guard, and the next process can take it as it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from esper.tezzeret.inductor import store
from esper.tezzeret.inductor.identity import identify
from esper.tezzeret.inductor.plainly import Refused
from esper.tezzeret.inductor.signature import Signature
from esper.utils.compilations import looked_up
from esper.utils.inductor_private import InductorCode, trace_rows, write_code
from esper.utils.torch_private import tell_of_compilation
from esper.utils.tree import leaves_of, map_leaves

USUAL = 64
"""The number of rows that the compiler takes for usual."""


def reason_of(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


class Kept:
    """A function that is loaded from disk, or compiled and put there.

    Attributes:
      name: equal for equal functions in equal surroundings.
      operations: how many it is made of.
      call: what was loaded; None as long as nothing was.
      reason: why it cannot be compiled, as far as is known.
    """

    def __init__(self, function: Callable[..., Any], signature: Signature, around: str) -> None:
        """Look for it on disk."""
        self.function, self.signature, self.threads = function, signature, torch.get_num_threads()
        self.name, self.tree, self.operations = "", None, 0
        self.call: Callable[..., Any] | None = None
        self.reason: str | None = None
        try:
            self.name, self.tree, self.operations = identify(function, signature, around)
            self.call = store.find(self.name)
            looked_up("units", self.call is not None)
        except Exception as error:  # of the function, on few rows of zeros: it is called as it stands, or raises again
            self.reason = reason_of(error)

    @property
    def is_missing(self) -> bool:
        """Whether it is not on disk, and may be compiled."""
        return self.call is None and self.reason is None

    def write(self) -> InductorCode:
        """Let Inductor write it down.

        Raises:
          Exception: whatever Inductor raises.
        """

        def flat(*arguments: Tensor) -> tuple[Tensor, ...]:
            return tuple(leaves_of(self.function(*arguments)))

        return write_code(flat, self.signature.example, USUAL, self.threads)

    def take(self) -> None:
        """Load what was compiled."""
        if self.reason is None:
            try:
                self.call = store.find(self.name)
                self.reason = None if self.call is not None else "what was compiled cannot be read"
            except Exception as error:  # of the linker, or of what Inductor wrote
                self.reason = reason_of(error)

    def __call__(self, *arguments: Tensor) -> Any:
        """Call it.

        Raises:
          Refused: it cannot be compiled.
        """
        if self.call is None:
            raise Refused(self.reason)
        leaves = iter(self.call(list(arguments)))
        return map_leaves(lambda leaf: next(leaves), self.tree)


class OnlyTraced:
    """A function as its trace for any number of rows, run as it stands: what there is to compile, uncompiled."""

    def __init__(self, function: Callable[..., Any], signature: Signature) -> None:
        """Nothing is traced yet."""
        self.function, self.signature = function, signature
        self.graph: Callable[..., Any] | None = None
        self.tree: Any = None

    def __call__(self, *arguments: Tensor) -> Any:
        """Call it.

        Raises:
          Refused: it cannot be traced.
        """
        if self.graph is None:
            tell_of_compilation("trace")
            try:
                self.graph = trace_rows(self._flat, self.signature.example, USUAL)
            except Exception as error:  # of the function, or of tracing: it is called as it stands, and raises again
                raise Refused(reason_of(error)) from error
        leaves = iter(self.graph(*arguments))
        return map_leaves(lambda leaf: next(leaves), self.tree)

    def _flat(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        result = self.function(*arguments)
        self.tree = map_leaves(lambda leaf: 0, result)
        return tuple(leaves_of(result))
