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
"""Relative difference of a loss that is allowed in float64, in every environment."""

CLOSE = 1e-4
"""Relative difference of a loss within which an environment of a float32 run agrees."""

TYPICAL = 3e-5
"""Relative difference that the median environment of a float32 run must stay within."""

STRAYS = 0.1
"""Share of the environments of a float32 run that may disagree."""

POINTS = {"float64": 1e-4, "float32": 1.0}
"""Percentage points by which accuracies and effects may differ where an environment agrees. Only they show whether
seeds that train behind the host have learned the same. A sample in the validation set is 0.3 points.
"""


class Verdict(NamedTuple):
    """What the comparison says.

    Attributes:
      green: whether the same work was done.
      steps: SGD steps compared.
      median: of the environments' largest relative differences of a loss.
      worst: the largest of them.
      points: of the environments' largest differences of an accuracy or effect, the largest among those that agree.
      strays: environments that do not agree.
    """

    green: bool
    steps: int
    median: float
    worst: float
    points: float
    strays: int


def compare(precision: str, losses: tuple[Array, Array], scores: tuple[Array, Array]) -> Verdict:
    """Compare a contender with the reference.

    Args:
      precision: "float32" or "float64".
      losses: of the contender and of the reference, [steps, E].
      scores: likewise accuracies and effects after the last step, [E, 1 + S].

    Returns:
      the verdict. NaN is never equal.
    """
    exact = precision == "float64"
    distance = np.abs(losses[0] - losses[1]) / np.abs(losses[1])
    worst = np.where(np.isfinite(distance), distance, np.inf).max(0)
    gap = np.abs(scores[0] - scores[1]).max(1)
    agrees = (worst <= (EXACT if exact else CLOSE)) & (gap <= POINTS[precision])
    strays = int(agrees.size - agrees.sum())
    median = float(np.median(worst))
    green = strays <= (0 if exact else STRAYS * agrees.size) and median <= TYPICAL
    return Verdict(bool(green), len(distance), median, float(worst.max()), float(gap[agrees].max(initial=0)), strays)
