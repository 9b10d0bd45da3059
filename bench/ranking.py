"""How well scores rank what they are to foretell: rank correlation by environment, and what the choice brings.

Arrays are [N, C]: N environments, C candidates. Intervals are percentiles of means over environments drawn with
replacement (the bootstrap, Efron 1979), from a fixed key.
"""

from typing import NamedTuple

import numpy as np
import torch

from esper.utils import rng, stats

Array = np.ndarray
DRAWS = 10_000
"""Resamples behind an interval."""
KEY = 0x5EED
"""Of the resamples."""


class Mean(NamedTuple):
    """A mean over environments, and its 95 % interval."""

    mean: float
    low: float
    high: float


def ranks(values: Array) -> Array:
    """Ranks 1 to C of every row, [N, C], the lowest value first; tied values share the mean of their ranks."""
    return np.stack([stats.ranks(torch.as_tensor(row)).numpy() for row in values])


def spearman(first: Array, second: Array) -> Array:
    """Spearman's rank correlation of every row, [N, C] x [N, C] -> [N]; 0 where one of the rows is constant."""
    pairs = zip(torch.as_tensor(first), torch.as_tensor(second), strict=True)
    return np.array([stats.rank_correlation(*pair) or 0.0 for pair in pairs])


def bootstrap(values: Array) -> Mean:
    """Mean of [N] environments with its interval."""
    count = values.shape[0]
    drawn = (rng.bits(rng.key(KEY), (DRAWS, count)) % count).numpy()
    low, high = np.percentile(values[drawn].mean(1), (2.5, 97.5))
    return Mean(float(values.mean()), float(low), float(high))


def elsewhere(values: Array) -> Array:
    """Every candidate's mean over all other environments, [N, C] -> [N, C]."""
    return (values.sum(0) - values) / (values.shape[0] - 1)


def chosen(scores: Array, gains: Array) -> Array:
    """What the candidate of highest score brings, [N]; the mean of those that share it."""
    top = scores == scores.max(1, keepdims=True)
    return (gains * top).sum(1) / top.sum(1)


def centred(values: Array) -> Array:
    """Values less every candidate's mean: what is this environment's own."""
    return values - values.mean(0)


def assess(scores: Array, accuracy: Array, loss: Array) -> dict[str, Mean]:
    """What a score is worth.

    Args:
      scores: [N, C]; higher is more promising.
      accuracy: [N, C]; percentage points that growing brought.
      loss: [N, C]; nats by which growing lowered the loss.

    Returns:
      ``rank``, ``rank_loss``: Spearman with both gains; ``own``: with the accuracy gained, of what is left when every
      candidate's mean is taken away from (ranked) scores and gains; ``gain``: what the choice brings, pp; ``random``
      and ``constant``: that minus a random choice and minus the candidate that is best on average in the other
      environments; ``regret``: the best in hindsight minus the choice.
    """
    choice = chosen(scores, accuracy)
    found = {
        "rank": spearman(scores, accuracy),
        "rank_loss": spearman(scores, loss),
        "own": spearman(centred(ranks(scores)), centred(accuracy)),
        "gain": choice,
        "random": choice - accuracy.mean(1),
        "constant": choice - chosen(elsewhere(accuracy), accuracy),
        "regret": accuracy.max(1) - choice,
    }
    return {name: bootstrap(values) for name, values in found.items()}
