"""Value calibration: what a critic predicted beside what came of it.

The critic predicts what is left of the episode, as it was trained to; see ``esper.simic.ppo``.
"""

import math
from typing import Any

import torch
from torch import Tensor

from esper.utils.stats import t_quantile

BINS = 10


def returns_to_go(reward: Tensor, gamma: float) -> Tensor:
    """Realised discounted return from every decision on.

    Args:
      reward: [T, E].
      gamma: discount per decision.

    Returns:
      float64 [T, E]. Law: G_t = sum_{k < T - t} gamma^k r_{t+k}.
    """
    future, found = torch.zeros_like(reward[0], dtype=torch.float64), []
    for earned in reward.double().flip(0):
        future = earned + gamma * future
        found.append(future)
    return torch.stack(found[::-1])


def calibrate(predicted: Tensor, realised: Tensor) -> dict[str, Any]:
    """Compare predictions with outcomes.

    Args:
      predicted, realised: [T, E]; all finite.

    Returns:
      "slope", "intercept": of realised on predicted, by least squares (perfect: 1 and 0); "explained_variance":
      1 - var(realised - predicted) / var(realised); "bins": up to ``BINS`` groups of equal size by prediction, each
      with its count, mean prediction, mean outcome and that mean's 95 % half-width. None where undefined.
    """
    x, y = predicted.double(), realised.double()
    spread, wander = float(x.var(correction=0)), float(y.var(correction=0))
    slope = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 0 else None
    order = x.flatten().argsort(stable=True)
    env = torch.arange(x.shape[1]).expand_as(x).flatten()
    groups = [rows for rows in order.tensor_split(min(BINS, order.numel())) if rows.numel()]
    return {
        "slope": slope,
        "intercept": None if slope is None else float(y.mean()) - slope * float(x.mean()),
        "explained_variance": 1 - float((y - x).var(correction=0)) / wander if wander > 0 else None,
        "bins": [
            {
                "count": rows.numel(),
                "predicted": float(x.flatten()[rows].mean()),
                "realised": float(y.flatten()[rows].mean()),
                "half_width": _clustered(y.flatten()[rows], env[rows]),
            }
            for rows in groups
        ],
    }


def _clustered(values: Tensor, cluster: Tensor) -> float | None:
    """95 % half-width of a mean whose values are independent between clusters only; None below 6 clusters.

    Source: the linearised variance of a ratio of sums (Cochran 1977, 6.4).
    """
    names, member = cluster.unique(return_inverse=True)
    count = names.numel()
    if count < 6:
        return None
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, member, values - values.mean())
    variance = count / (count - 1) * float(sums.square().sum()) / values.numel() ** 2
    return t_quantile(0.975, count - 1) * math.sqrt(variance)
