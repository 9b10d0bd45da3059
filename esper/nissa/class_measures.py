"""Accuracy class by class, summed up over networks."""

from typing import NamedTuple

import torch
from torch import Tensor


class ClassMeasures(NamedTuple):
    """Of n networks and C classes."""

    accuracy: Tensor  # [C]; pp, mean over networks
    variance: Tensor  # [n]; of the accuracies of classes
    worst: Tensor  # [n]; pp
    gap: Tensor  # [n]; pp, best minus worst


def measure_classes(accuracy: Tensor, present: Tensor) -> ClassMeasures:
    """Measure.

    Args:
      accuracy: [n, C]; pp.
      present: bool [C]; classes with samples, at least one; the others count nowhere, and have accuracy 0.
    """
    count = present.sum()
    mean = torch.where(present, accuracy, 0.0).sum(1) / count
    spread = torch.where(present, (accuracy - mean.unsqueeze(1)).square(), 0.0).sum(1) / count
    worst = torch.where(present, accuracy, torch.inf).amin(1)
    best = torch.where(present, accuracy, -torch.inf).amax(1)
    return ClassMeasures(torch.where(present, accuracy, 0.0).mean(0), spread, worst, best - worst)
