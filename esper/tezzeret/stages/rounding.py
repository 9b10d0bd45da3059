"""Another rounding of the same computation: every operation's result is moved by some units in the last place.

Monte Carlo arithmetic (Parker 1997): where a computation is done again and again, each intermediate number moved at
random by as much as its rounding may have been off, results differ by about their rounding error, however much cancels
in them and whatever magnifies it.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from esper.utils import rng
from esper.utils.torch_private import DispatchMode

POOL = 1 << 14
"""Signs that are drawn; operations take them in turn, from where the last one ended."""

CHOSEN = ("amax", "amin", "max", "min", "sort", "topk", "maximum", "minimum", "gather", "where")
"""Operations that pick numbers and round nothing; gradients find what was picked by its being equal."""

INNER = {"gelu": 0, "gelu_backward": 0}
"""Operations that cancel within: gelu is x (1 + erf) / 2 with an erf near -1 far below 0, and its derivative likewise.
By name: the place of the operand whose last place their result is moved by, too.
"""


class OtherRounding(DispatchMode):
    """A context in which floating results are moved at random, each by ``units`` in its last place, up or down."""

    def __init__(self, number: int, units: float) -> None:
        """Which of many roundings, and by how much."""
        super().__init__()
        self._number, self._units, self._place = number, units, 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        found = op(*args, **(kwargs or {}))
        if op.overloadpacket.__name__ in CHOSEN:
            return found
        held = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        if isinstance(found, Tensor):
            moved = self._moved(found, held)
            place = INNER.get(op.overloadpacket.__name__)
            return moved if place is None else moved + (self._moved(args[place], set()) - args[place])
        if isinstance(found, tuple):
            return tuple(self._moved(each, held) if isinstance(each, Tensor) else each for each in found)
        return found

    def _moved(self, value: Tensor, held: set[int]) -> Tensor:
        """A result; a view of an operand, or an operand itself, stays what it is."""
        if not value.is_floating_point() or not value.numel() or value.untyped_storage().data_ptr() in held:
            return value
        count, factors = value.numel(), _factors(self._number, self._units, value.dtype).to(value.device)
        self._place = (self._place + count) % POOL
        if self._place + count > len(factors):
            factors = factors.repeat(1 + (self._place + count) // len(factors))
        return value * factors[self._place : self._place + count].view(value.shape)


@cache
def _factors(number: int, units: float, dtype: torch.dtype) -> Tensor:
    signs = rng.uniform(rng.fold_in(rng.key(5), number), (POOL,), -1.0, 1.0).sign().repeat(2)
    return 1 + units * torch.finfo(dtype).eps * signs.to(dtype)
