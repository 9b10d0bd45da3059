"""What was done, read from a trace: the mix of operations over an episode, and how varied it was."""

import torch
from torch import Tensor

from esper.leyline.actions import Op
from esper.leyline.decisions import Intent
from esper.nissa.trace import Trace

PHASES = ("first", "middle", "last")
"""Thirds of an episode."""


def counts(trace: Trace) -> Tensor:
    """How often each operation was carried out, by decision: int64 [T, N], all of ``Op``."""
    return torch.stack([(trace.op == int(op)).sum(1) for op in Op], dim=1)


def shares(operations: Tensor) -> dict[str, float]:
    """Share of each operation.

    Args:
      operations: int64 [n, N]; counts, at least one in all.
    """
    total = operations.sum(0).double() / operations.sum()
    return {op.name: float(total[int(op)]) for op in Op}


def mix_entropy(operations: Tensor) -> float:
    """Entropy of the mix of operations, nats; operations int64 [n, N]."""
    share = operations.sum(0).double() / operations.sum().clamp(min=1)
    return float((share * -share.clamp(min=1e-300).log()).sum())


def by_third(values: Tensor) -> tuple[Tensor, ...]:
    """The first, middle and last third of an episode: [T, ...] in three parts, longer ones first.

    An episode of fewer than three decisions has fewer parts.
    """
    return tuple(part for part in values.tensor_split(len(PHASES)) if part.numel())


def exploring_by_third(intent: Tensor) -> list[float | None]:
    """Share of the choices that explored, by third of the episode; None in a third without a choice.

    Args:
      intent: int [T, E]; Intent.
    """
    shares: list[float | None] = []
    for part in by_third(intent):
        choices = int((part != int(Intent.NEITHER)).sum())
        shares.append(int((part == int(Intent.EXPLORE)).sum()) / choices if choices else None)
    return shares


def germinations(trace: Trace, num_blueprints: int) -> Tensor:
    """How many seeds of each blueprint were placed in each decision: int64 [T, K]."""
    placed = (trace.op == int(Op.GERMINATE)) | (trace.op == int(Op.CHANGE_BLUEPRINT))
    return torch.stack([(placed & (trace.kind == kind)).sum(1) for kind in range(num_blueprints)], dim=1)
