"""Loss and accuracy of the networks of a body on given samples."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Effect(NamedTuple):
    """What samples say of networks, the mean over these.

    Attributes:
      loss: nats.
      accuracy: percentage points.
    """

    loss: float
    accuracy: float


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of each network [E]; outputs [E, B, C] or [E, B, T, C], targets [B] or [B, T]."""
    rows = outputs.flatten(1, -2)
    wanted = targets.flatten().expand(rows.shape[:2])
    return F.cross_entropy(rows.transpose(1, 2), wanted, reduction="none").mean(1)


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether each prediction is right, bool [E, B] or [E, B, T]."""
    return outputs.argmax(-1) == targets


def effect(outputs: Tensor, targets: Tensor) -> Effect:
    """Loss and accuracy."""
    right = hits(outputs, targets).double().mean()
    return Effect(float(losses(outputs, targets).mean()), 100 * float(right))


def paired(right: Tensor, without: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy lost without something, and its standard error, [E] in percentage points, from the same samples."""
    change = 100 * (right.flatten(1).to(torch.float64) - without.flatten(1).to(torch.float64))
    return change.mean(1), change.std(1) / change.shape[1] ** 0.5
