"""The equality gate: whoever does other work gets no time printed.

Contenders pass through the same epochs from the same numbers. The losses of every environment before each SGD step,
and the norms of all parameters after the last, are compared with Esper's. In float64 all must agree to ``EXACT``. In
float32 a relu or a maximum within rounding of its kink takes the other branch now and then, and from there on that
environment goes its own way (torch.nn leaves its own float64 trajectory as often): most environments must agree to
``CLOSE``, and few may stray.
"""

from typing import NamedTuple

import numpy as np

from bench.workload import Array

EXACT = 1e-8
"""Relative difference of a loss or norm that is allowed in float64, in every environment."""

CLOSE = 1e-4
"""Relative difference of a loss or norm within which an environment of a float32 run agrees."""

TYPICAL = 3e-5
"""Relative difference that the median environment of a float32 run must stay within."""

STRAYS = 0.1
"""Share of the environments of a float32 run that may disagree."""

POINTS = {"float64": 1e-4, "float32": 1.0}
"""Percentage points by which accuracies and effects may differ where an environment agrees; a sample of the validation
set is 0.3 or 0.4 of them.
"""


class Trajectory(NamedTuple):
    """What a contender shows of its training; the norms because seeds behind the host do not touch its losses."""

    losses: Array  # [steps, E]; nats, before each SGD step
    scores: Array  # [E, 1 + S]; accuracy and effects after the last step, percentage points
    norms: Array  # [E, 1 + S]; L2 norms of the parameters of host and seeds after the last step


class Comparison(NamedTuple):
    """What the comparison says.

    Attributes:
      green: whether the same work was done.
      steps: SGD steps compared.
      median: of the environments' largest relative differences of a loss or norm.
      worst: the largest of them.
      points: largest difference of an accuracy or effect in environments that agree.
      strays: environments that do not agree.
    """

    green: bool
    steps: int
    median: float
    worst: float
    points: float
    strays: int


def compare(precision: str, mine: Trajectory, reference: Trajectory) -> Comparison:
    """Compare a contender with the reference; ``precision`` is "float32" or "float64". NaN is never equal."""
    exact = precision == "float64"
    losses, norms = (
        _distance(*pair) for pair in zip((mine.losses, mine.norms), (reference.losses, reference.norms), strict=True)
    )
    worst = np.maximum(losses.max(0), norms.max(1))
    gap = np.abs(mine.scores - reference.scores).max(1)
    agrees = (worst <= (EXACT if exact else CLOSE)) & (gap <= POINTS[precision])
    strays = int(agrees.size - agrees.sum())
    median = float(np.median(worst))
    green = strays <= (0 if exact else STRAYS * agrees.size) and median <= TYPICAL
    return Comparison(bool(green), len(losses), median, float(worst.max()), float(gap[agrees].max(initial=0)), strays)


def _distance(mine: Array, reference: Array) -> Array:
    """Relative difference; infinite where either is not finite."""
    distance = np.abs(mine - reference) / np.maximum(np.abs(reference), np.finfo(np.float64).tiny)
    return np.where(np.isfinite(distance), distance, np.inf)
