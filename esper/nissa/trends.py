"""Trends: whether a number of a run rises or falls, by least squares over the last hour."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MINUTES = 60.0
"""Time that a trend looks back."""

FEWEST = 3
"""Samples that a slope needs."""

CLEAR = 3.0
"""Standard errors beyond which a slope is called a rise or a fall."""


class Trend(NamedTuple):
    """A straight line through a series' last samples.

    Attributes:
      slope: per hour.
      error: its standard error, as of independent residuals.
      samples: how many.
      minutes: that they cover.
    """

    slope: float
    error: float
    samples: int
    minutes: float

    @property
    def word(self) -> str:
        """rises, falls or level."""
        if abs(self.slope) <= CLEAR * self.error or self.slope == 0:
            return "level"
        return "rises" if self.slope > 0 else "falls"


def trend(seconds: Sequence[float], values: Sequence[float], minutes: float = MINUTES) -> Trend | None:
    """The trend of a series.

    Args:
      seconds: when each sample was taken, ascending.
      values: of the same length; what is not finite is left out.
      minutes: how far to look back from the last sample.

    Returns:
      None of fewer than ``FEWEST`` samples, or of samples of one moment.
    """
    pairs = [
        (when / 3600, value)
        for when, value in zip(seconds, values, strict=True)
        if math.isfinite(value) and when >= seconds[-1] - 60 * minutes
    ]
    if len(pairs) < FEWEST:
        return None
    n = len(pairs)
    x_mean, y_mean = math.fsum(x for x, _ in pairs) / n, math.fsum(y for _, y in pairs) / n
    spread = math.fsum((x - x_mean) ** 2 for x, _ in pairs)
    if spread == 0:
        return None
    slope = math.fsum((x - x_mean) * (y - y_mean) for x, y in pairs) / spread
    rest = math.fsum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in pairs)
    return Trend(slope, math.sqrt(rest / (n - 2) / spread), n, 60 * (pairs[-1][0] - pairs[0][0]))


def clock_of(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """When each round ended, seconds of the run's own work since it began: what lies between two starts is no time."""
    passed, ends = 0.0, []
    for row in rows:
        passed += row.get("seconds") or 0.0
        ends.append(passed)
    return ends


def trends(rows: Sequence[Mapping[str, Any]], names: Sequence[str], minutes: float = MINUTES) -> dict[str, Trend]:
    """Trends of those of the named series that every round has and that can have one."""
    ends, found = clock_of(rows), dict[str, Trend]()
    for name in names:
        values = [row.get(name) for row in rows]
        if all(isinstance(value, int | float) for value in values):
            line = trend(ends, [float(value) for value in values], minutes)  # type: ignore[arg-type]
            found |= {} if line is None else {name: line}
    return found
