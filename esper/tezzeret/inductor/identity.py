"""What tells a function of tensors from others: the operations that it is made of, at few numbers of rows.

The operations are written down while they run on zeros. That is a hundred times faster than tracing, so a process
finds compiled code that another one left without tracing anything.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.tezzeret.inductor.signature import Signature
from esper.utils.torch_private import DispatchMode
from esper.utils.tree import map_leaves

FEW = (3, 5)
"""Numbers of rows; a size that is either in both runs is a constant of the function."""


class Operations(DispatchMode):
    """A context that writes down every operation: tensors by number, and what the function brings along by value."""

    def __init__(self, arguments: tuple[Tensor, ...]) -> None:
        """Arguments have the first numbers."""
        super().__init__()
        self.lines: list[str] = []
        self.numbers: dict[int, int] = {}
        self.held: list[Tensor] = []  # so that no other tensor takes the place of one in memory
        self.number(arguments)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note an operation, and run it."""
        del types
        said = f"{func} {self.said(args)} {self.said(kwargs or {})}"
        result = func(*args, **(kwargs or {}))
        self.number(result)
        self.lines.append(f"{said} -> {self.said(result)}")
        return result

    def number(self, tree: Any) -> None:
        """Give numbers to tensors that have none."""

        def meet(leaf: Any) -> None:
            if isinstance(leaf, Tensor) and id(leaf) not in self.numbers:
                self.numbers[id(leaf)] = len(self.held)
                self.held.append(leaf)

        map_leaves(meet, tree)

    def said(self, tree: Any) -> str:
        """A nest of tensors and plain values in words."""
        return repr(map_leaves(lambda leaf: self._word(leaf) if isinstance(leaf, Tensor) else repr(leaf), tree))

    def _word(self, tensor: Tensor) -> str:
        if id(tensor) in self.numbers:
            return f"#{self.numbers[id(tensor)]}"
        return f"{tuple(tensor.shape)} {tensor.dtype} {tensor.tolist()}"


class Identity(NamedTuple):
    """What a function is.

    Attributes:
      name: equal for equal functions.
      tree: the nest that it returns, with something at every leaf.
      operations: how many it is made of.
    """

    name: str
    tree: Any
    operations: int


def identify(function: Callable[..., Any], signature: Signature, around: str) -> Identity:
    """Tell a function from others.

    Args:
      function: of tensors; what it returns is a nest of tensors.
      signature: of its arguments.
      around: what else its compiled code depends on.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what is computed is tiny
    try:
        known: list[Any] = [signature, around]
        for rows in FEW if signature.varies else FEW[:1]:
            arguments = signature.example(rows)
            with Operations(arguments) as operations:
                result = function(*arguments)
            known.append((operations.lines, operations.said(result)))
    finally:
        torch.set_num_threads(threads)
    name = hashlib.sha256(repr(known).encode()).hexdigest()[:32]
    return Identity(name, map_leaves(lambda leaf: 0, result), len(operations.lines))
