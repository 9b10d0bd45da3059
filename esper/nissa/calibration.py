"""Calibration: what was predicted beside what came of it.

A critic predicts what is left of the episode, as it was trained to (see ``esper.simic.ppo``); a policy's confidence
foretells whether things will be better soon.
"""

import math
from typing import Any

import torch
from torch import Tensor

from esper.utils.stats import t_quantile

BINS = 10

AHEAD = 5
"""Decisions after which a decision is judged."""


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
      predicted, realised: [T, E]; pairs with a NaN are left out, and at least one is left.

    Returns:
      "slope", "intercept": of realised on predicted, by least squares (perfect: 1 and 0); "explained_variance":
      1 - var(realised - predicted) / var(realised); "bins": up to ``BINS`` groups of equal size by prediction, each
      with its count, mean prediction, mean outcome and that mean's 95 % half-width. None where undefined.
    """
    known = ~(predicted.isnan() | realised.isnan())
    x, y = predicted.double()[known], realised.double()[known]
    spread, wander = float(x.var(correction=0)), float(y.var(correction=0))
    slope = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 0 else None
    order = x.argsort(stable=True)
    env = torch.arange(known.shape[1]).expand_as(known)[known]
    groups = [rows for rows in order.tensor_split(min(BINS, order.numel())) if rows.numel()]
    return {
        "slope": slope,
        "intercept": None if slope is None else float(y.mean()) - slope * float(x.mean()),
        "explained_variance": 1 - float((y - x).var(correction=0)) / wander if wander > 0 else None,
        "bins": [
            {
                "count": rows.numel(),
                "predicted": float(x[rows].mean()),
                "realised": float(y[rows].mean()),
                "half_width": _clustered(y[rows], env[rows]),
            }
            for rows in groups
        ],
    }


def better_soon(accuracy: Tensor, ahead: int = AHEAD) -> Tensor:
    """Whether a decision was followed by something better.

    Args:
      accuracy: [T, E]; pp, validation after every decision; NaN where there was none.
      ahead: decisions.

    Returns:
      float64 [T, E]: 1 where accuracy was higher ``ahead`` decisions on (at the latest after the last one) than before
      the decision, else 0; NaN where either was not measured, as before the first decision.
    """
    length = accuracy.shape[0]
    before = torch.cat((torch.full_like(accuracy[:1], torch.nan), accuracy[:-1]))
    after = accuracy[(torch.arange(length) + ahead - 1).clamp(max=length - 1)]
    known = ~(before.isnan() | after.isnan())
    return torch.where(known, (after > before).double(), torch.nan)


def confidence_calibration(confidence: Tensor, acted: Tensor, accuracy: Tensor) -> dict[str, Any] | None:
    """How well confidence foretells that things get better.

    Args:
      confidence: [T, E], in [0, 1].
      acted: bool [T, E]; decisions that are judged.
      accuracy: [T, E]; see ``better_soon``.

    Returns:
      "count", "mean": decisions judged and their mean confidence; "better": the share that ``better_soon`` says;
      "brier": mean of (confidence - outcome)^2, 0 at best, 0.25 for one half throughout; and those of ``calibrate``.
      None where no decision is judged.

    Source: G. W. Brier, "Verification of forecasts expressed in terms of probability" (1950).
    """
    outcome = better_soon(accuracy)
    judged = acted & ~outcome.isnan()
    if not bool(judged.any()):
        return None
    sure, came = confidence.double()[judged], outcome[judged]
    return {
        "count": sure.numel(),
        "mean": float(sure.mean()),
        "better": float(came.mean()),
        "brier": float((sure - came).square().mean()),
        **calibrate(torch.where(judged, confidence.double(), torch.nan), outcome),
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
