"""The equality gate: whoever does other work gets no time printed.

Contenders pass through the same epochs from the same numbers, and the losses of every environment are compared with
Esper's before each SGD step. In float64 all must agree to ``EXACT``. In float32 a relu or a maximum within rounding of
its kink takes the other branch now and then, and from there on that environment goes its own way (torch.nn leaves its
own float64 trajectory as often): most environments must agree to ``CLOSE``, and few may stray.
"""

from typing import NamedTuple

import numpy as np

from bench.workload import Array

EXACT = 1e-8
"""Relative difference that is allowed in float64, in every environment."""

CLOSE = 1e-4
"""Relative difference within which an environment of a float32 run agrees."""

TYPICAL = 3e-5
"""Relative difference that the median environment of a float32 run must stay within."""

STRAYS = 0.1
"""Share of the environments of a float32 run that may leave ``CLOSE``."""

POINTS = 1.0
"""Percentage points by which accuracies and effects may differ in environments that agree."""


class Verdict(NamedTuple):
    """What the comparison says.

    Attributes:
      green: whether the same work was done.
      steps: SGD steps compared.
      median: of the environments' largest relative differences of a loss.
      worst: the largest of them.
      strays: environments that left ``CLOSE`` (``EXACT`` in float64).
      points: largest difference of an accuracy or effect after the first epoch, over all other environments.
    """

    green: bool
    steps: int
    median: float
    worst: float
    strays: int
    points: float


def compare(precision: str, losses: tuple[Array, Array], scores: tuple[Array, Array]) -> Verdict:
    """Compare a contender with the reference.

    Args:
      precision: "float32" or "float64".
      losses: of the contender and of the reference, [steps, E].
      scores: likewise accuracies and effects after the first epoch, [E, 1 + S].

    Returns:
      the verdict. NaN is never equal.
    """
    mine, reference = losses
    distance = np.abs(mine - reference) / np.abs(reference)
    worst = np.where(np.isfinite(distance), distance, np.inf).max(0)
    exact = precision == "float64"
    agrees = worst <= (EXACT if exact else CLOSE)
    allowed = 0 if exact else STRAYS * agrees.size
    gaps = np.abs(scores[0] - scores[1])[agrees]
    points = float(gaps.max()) if gaps.size else np.inf
    strays = int(agrees.size - agrees.sum())
    median = float(np.median(worst))
    green = strays <= allowed and points <= POINTS and median <= (EXACT if exact else TYPICAL)
    return Verdict(bool(green), mine.shape[0], median, float(worst.max()), strays, points)
