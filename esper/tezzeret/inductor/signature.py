"""What a compiled unit takes: shapes and dtypes of its arguments, the number of rows left open."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Argument(NamedTuple):
    """One argument.

    Attributes:
      shape: sizes; None for the number of rows.
      dtype: of its numbers.
      shared: whether all rows are one and the same in memory, a minibatch that all networks see.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    shared: bool


class Signature(NamedTuple):
    """All arguments of a function on a CPU."""

    arguments: tuple[Argument, ...]

    @property
    def varies(self) -> bool:
        """Whether there is a number of rows that varies."""
        return any(None in argument.shape for argument in self.arguments)

    def example(self, rows: Any) -> tuple[Tensor, ...]:
        """Arguments of zeros, of so many rows."""
        return tuple(_zeros(argument, rows) for argument in self.arguments)


def signature_of(arguments: Sequence[Tensor], varies: bool) -> Signature:
    """The signature of a call; ``varies``: whether dimension 0 of all arguments is the number of rows."""
    return Signature(tuple(_argument(argument, varies) for argument in arguments))


def is_shared(x: Tensor) -> bool:
    """Whether it is one minibatch, seen by several networks."""
    return x.dim() > 2 and x.shape[0] > 1 and x.stride(0) == 0


def _argument(x: Tensor, varies: bool) -> Argument:
    shape: tuple[int | None, ...] = (None, *x.shape[1:]) if varies else tuple(x.shape)
    return Argument(shape, x.dtype, is_shared(x))


def _zeros(argument: Argument, rows: Any) -> Tensor:
    shape = [rows if size is None else size for size in argument.shape]
    if argument.shared:
        return torch.zeros((1, *shape[1:]), dtype=argument.dtype).expand(shape)
    return torch.zeros(shape, dtype=argument.dtype)
