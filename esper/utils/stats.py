"""Statistics for reports."""

import math
from statistics import NormalDist

import torch
from torch import Tensor

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
