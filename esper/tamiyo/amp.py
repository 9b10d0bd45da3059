"""The policy's matrix products in bfloat16, by ``torch.amp``: weights, memory, scores and values stay float32.

A policy is not compiled, so its forward passes may run under ``torch.autocast``. What leaves a module has float32
again: log-probabilities, losses, and the memory that is carried from decision to decision are sums of many.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from esper.leyline.config import Precision

Forward = TypeVar("Forward", bound=Callable[..., Any])


def narrowing(forward: Forward) -> Forward:
    """A module's forward pass, under ``torch.autocast`` where ``set_precision`` asked for it."""

    @functools.wraps(forward)
    def call(self: nn.Module, *arguments: Any) -> Any:
        kind: torch.dtype | None = getattr(self, "narrow", None)
        if kind is None:
            return forward(self, *arguments)
        with torch.autocast(arguments[0].device.type, kind):
            return _widened(forward(self, *arguments))

    call.narrows = True  # type: ignore[attr-defined]
    return cast(Forward, call)


class NarrowLSTM(nn.LSTM):
    """``torch.nn.LSTM``, whose matrix products may be in bfloat16; states are float32."""

    @narrowing
    def forward(self, *arguments: Any) -> Any:
        """As ``torch.nn.LSTM``."""
        return super().forward(*arguments)


def set_precision(policy: nn.Module, precision: Precision) -> None:
    """Let a policy's matrix products run in bfloat16, or in its weights' type; only ``Precision.BF16`` is the first."""
    for module in policy.modules():
        if getattr(type(module).forward, "narrows", False):
            module.narrow = torch.bfloat16 if precision is Precision.BF16 else None  # type: ignore[assignment]


def widened(scores: Tensor) -> Tensor:
    """Scores as float32 where they have fewer bits, before an exponential is summed up."""
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def _widened(value: Any) -> Any:
    """Every tensor of nested tuples."""
    if isinstance(value, tuple):
        return tuple(map(_widened, value))
    return widened(value)
