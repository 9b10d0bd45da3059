"""Accounts: what policies said of their decisions, a part of a trace."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RUNNERS_UP = 4
"""How many of a decision's best scores a trace keeps."""


class AccountTrace(NamedTuple):
    """What a policy said of T decisions of E environments, on the CPU."""

    confidence: Tensor  # float32 [T, E]; in [0, 1]
    reason: Tensor  # int8 [T, E]; Reason
    intent: Tensor  # int8 [T, E]; Intent
    score: Tensor  # float32 [T, E]; of the action taken, NaN without one
    best: Tensor  # int32 [T, E, N]; actions of the highest scores, the highest first
    best_score: Tensor  # float32 [T, E, N]; their scores, NaN where there are fewer


def record_account(
    action: Tensor, confidence: Tensor, reason: Tensor, intent: Tensor | None, scores: Tensor | None
) -> dict[str, Tensor]:
    """One decision's part of ``AccountTrace``.

    Args:
      action: int64 [E].
      confidence: [E].
      reason: int64 [E]; Reason.
      intent: int64 [E]; Intent; None: NEITHER.
      scores: [E, A], NaN where there is none; None: none at all.
    """
    if scores is None:
        scores = torch.full((action.shape[0], 1), torch.nan, device=action.device)
    place = action.clamp(0, scores.shape[1] - 1).unsqueeze(1)
    known = ~scores.isnan()
    top = torch.where(known, scores, -torch.inf).topk(min(RUNNERS_UP, scores.shape[1]), dim=1).indices
    return {
        "confidence": confidence.float(),
        "reason": reason.to(torch.int8),
        "intent": (torch.zeros_like(action) if intent is None else intent).to(torch.int8),
        "score": scores.gather(1, place).squeeze(1).float(),
        "best": top.int(),
        "best_score": scores.gather(1, top).float(),
    }


def stack_accounts(frames: Sequence[dict[str, Tensor]]) -> AccountTrace:
    """Put one or more decisions together, on the CPU."""
    return AccountTrace(**{name: torch.stack([frame[name] for frame in frames]).cpu() for name in frames[0]})
