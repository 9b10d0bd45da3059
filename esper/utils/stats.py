"""Statistics for reports."""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from esper.utils import rng

FEWEST = 6
"""Values of which an interval is taken: ``t_quantile`` is good for 5 degrees of freedom and more."""


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution by its expansion in 1/degrees.

    Args:
      probability: (0, 1).
      degrees: degrees of freedom, >= 5 for three correct digits at 0.975.

    Source: Abramowitz & Stegun 1964, 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / degrees + second / degrees**2 + third / degrees**3 + fourth / degrees**4


def mean_interval(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Mean of independent values and the half-width of its confidence interval (Student's t).

    Args:
      values: [n], n >= ``FEWEST``.
      level: confidence, (0, 1).

    Raises:
      ValueError: fewer values.
    """
    count = values.numel()
    if count < FEWEST:
        raise ValueError(f"mean_interval: {count} values; expected at least {FEWEST}")
    error = float(values.double().std()) / math.sqrt(count)
    return float(values.double().mean()), t_quantile((1 + level) / 2, count - 1) * error


def measured_interval(values: Tensor) -> tuple[float | None, float | None, int]:
    """``mean_interval`` of those values that were measured; NaN stands for one that was not.

    Args:
      values: [n].

    Returns:
      mean, half-width, and how many values were measured. Fewer than ``FEWEST`` have neither mean nor half-width; a
      mean that is infinite has no half-width.
    """
    measured = values[~values.isnan()]
    if measured.numel() < FEWEST:
        return None, None, measured.numel()
    mean, half = mean_interval(measured)
    if not math.isfinite(mean):
        return (None if math.isnan(mean) else mean), None, measured.numel()
    return mean, half, measured.numel()


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1, [n] float64; equal values share the mean of theirs.

    Args:
      values: [n], without NaN.
    """
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rank correlation of those pairs of which both were measured, in [-1, 1]; None where undefined.

    Args:
      first, second: [n]; NaN stands for a value that was not measured.

    Source: Spearman 1904; ties as in Kendall 1945.
    """
    measured = ~(first.isnan() | second.isnan())
    pairs = torch.stack((ranks(first[measured]), ranks(second[measured])))
    if pairs.shape[1] < 2 or bool((pairs.std(1) == 0).any()):
        return None
    return float(torch.corrcoef(pairs)[0, 1].clamp(-1.0, 1.0))


def interquartile_mean(scores: Tensor) -> Tensor:
    """Mean of the middle half, [..., n] to [...]: the floor(n / 4) lowest and as many highest are left out.

    Law: the trimmed mean of proportion 1/4. It bends to outliers less than the mean, and less to chance than the
    median (Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice").
    """
    count = scores.shape[-1]
    cut = count // 4
    return scores.sort(-1).values[..., cut : count - cut].mean(-1)


def stratified_interval(scores: Tensor, key: Tensor, draws: int = 2000) -> tuple[float, float, float]:
    """Interquartile mean of runs over tasks with its 95 % interval, as in rliable.

    Every resample draws, for each task on its own, as many runs as there are, with replacement (strata are tasks); the
    interval is that of the percentiles 2.5 and 97.5 of the resamples' interquartile means over runs and tasks together.

    Args:
      scores: [R, M]; R runs, each on M tasks.
      key: [2]; of the resamples.
      draws: how many.

    Returns:
      the interquartile mean, and the interval's ends. Law: of one run the ends are the mean.

    Source: Agarwal et al. 2021.
    """
    runs, tasks = scores.shape
    drawn = rng.bits(key, (draws, runs, tasks)) % runs
    means = interquartile_mean(scores.double()[drawn, torch.arange(tasks)].flatten(1))
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(interquartile_mean(scores.double().flatten())), low, high
