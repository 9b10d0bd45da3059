"""Anomalies: which number of a run is out of the ordinary, by one table of rules over sliding windows.

Everything is a fold over samples, a sample being the numbers of one round by name: equal samples give equal findings,
live and when a run's file is read again. A sample is judged by those before it and enters the window afterwards, so a
spike is found with the sample that it is in.

A z-score of 3 shall mean the same whatever the window holds. With n earlier samples, the distance from their mean in
units of their standard deviation is not normal: for a normal series it is Student's t with n - 1 degrees of freedom,
times sqrt(1 + 1/n), and with n = 20 exceeds 3 in 0.87 % of all calm samples. What is compared with the limit is the
normal deviate of the same probability (Wallace 1959: within 0.03 of it for n >= 8), so a calm normal series is flagged
in 0.27 % of its samples, a window half full as well. Rules that carry the governor's constants compare plainly.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from esper.utils.documents import figure

EPSILON = 1e-6
"""Least standard deviation, as a share of the mean: rounding alone is no news."""


class RuleKind(Enum):
    """What is looked for.

    ``DEVIATION``: a sample far from the window's mean, either way. ``SPIKE``: one far above it, by the governor's three
    tests at once. ``STILL``: a window that does not move. ``ABOVE``, ``BELOW``: samples in a row beyond the limit.
    ``GROWTH``: more than (1 + limit) times what was there a window before.
    """

    DEVIATION = "deviation"
    SPIKE = "spike"
    STILL = "still"
    ABOVE = "above"
    BELOW = "below"
    GROWTH = "growth"


class Rule(NamedTuple):
    """One line of the table.

    Attributes:
      name: of the anomaly.
      kind: what is looked for.
      series: names of a sample's numbers to which it applies; one that a sample lacks is not judged.
      window: samples.
      limit: beyond which it is one; standard deviations, or the series' own unit.
      least: samples that the window must hold.
      high: beyond which it is severe.
      says: in words.
      multiple, absolute: of SPIKE, further bounds: window means, and the series' own unit.
      in_a_row: samples that must follow each other.
    """

    name: str
    kind: RuleKind
    series: tuple[str, ...]
    window: int
    limit: float
    least: int
    high: float
    says: str
    multiple: float = 0.0
    absolute: float = -math.inf
    in_a_row: int = 1


DEVIATION, SPIKE, STILL, ABOVE, BELOW, GROWTH = RuleKind

WATCHED = ("val_loss", "return", "value_loss", "gradient_norm", "kl", "surprise")
"""Series of which a sudden value is news."""

RULES = (
    Rule("sudden", DEVIATION, WATCHED, 20, 3.0, 8, 4.0, "far from its last 20 values"),
    Rule("spike", SPIKE, ("val_loss",), 20, 6.0, 10, 6.0, "a spike by the governor's rule", 3.0, 12.0, 3),
    Rule("stall", STILL, ("val_loss",), 5, 0.001, 5, 0.0, "has not moved for 5 rounds"),
    Rule("rollbacks", ABOVE, ("rolled_back",), 1, 0.10, 1, 1.0, "rollbacks per environment and episode"),
    Rule("failing seeds", BELOW, ("seed_success",), 5, 0.5, 5, 0.0, "less than half of the seeds succeed, 5 rounds"),
    Rule("memory", GROWTH, ("memory_bytes",), 3, 0.5, 3, 1.0, "grew by half within 3 rounds"),
    Rule("memory runs out", BELOW, ("memory_left",), 1, 0.1, 1, 0.05, "share of the memory that is left"),
    Rule("failed compilations", ABOVE, ("compile_failed",), 1, 0.05, 1, 0.5, "share of compilations that failed"),
    Rule("slow compilations", ABOVE, ("compile_seconds",), 1, 5.0, 1, 60.0, "mean seconds of a compilation"),
)
"""All rules. The numbers of ``spike`` are the governor's."""

LONGEST = max(max(rule.window, rule.in_a_row) for rule in RULES)


class Anomaly(NamedTuple):
    """Something out of the ordinary.

    Attributes:
      round: in which.
      rule: name of the rule.
      series: name of the number.
      value: the number.
      score: what was compared with the rule's limit.
      severity: "medium" or "high".
      says: in words.
    """

    round: int
    rule: str
    series: str
    value: float
    score: float
    severity: str
    says: str

    @property
    def line(self) -> str:
        """On one line."""
        return self.line_in("round")

    def line_in(self, what: str) -> str:
        """The same, where samples are called otherwise than rounds."""
        told = f"{self.series} = {figure(self.value)}: {self.says}"
        return f"anomaly in {what} {self.round} ({self.severity}): {told} ({self.rule} {figure(self.score)})"


class AnomalyMemory(NamedTuple):
    """What judging the next sample needs; begins empty. Keys are (rule, series).

    Attributes:
      windows: the last values, oldest first.
      streaks: how many samples in a row went beyond the limit.
    """

    windows: Mapping[tuple[str, str], tuple[float, ...]] = {}
    streaks: Mapping[tuple[str, str], int] = {}


def deviate(window: Sequence[float], value: float) -> float:
    """How far a value lies from earlier ones, as the normal deviate of the same probability.

    Args:
      window: n >= 3 earlier values.
      value: the new one.

    Returns:
      signed; for values that are all normal it is normal.
    """
    n = len(window)
    mean, sigma = _moments(window, n - 1)
    t = (value - mean) / max(sigma * math.sqrt(1 + 1 / n), EPSILON * abs(mean), 1e-300)
    df = n - 1
    return math.copysign((8 * df + 1) / (8 * df + 3) * math.sqrt(df * math.log1p(min(t * t, 1e300) / df)), t)


def _moments(window: Sequence[float], divisor: int) -> tuple[float, float]:
    mean = math.fsum(window) / len(window)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in window) / divisor)


def judge_sample(rule: Rule, window: Sequence[float], value: float, streak: int = 0) -> tuple[float, bool]:
    """What a rule makes of one value.

    Args:
      rule: of the table.
      window: the values before, at most ``rule.window``, oldest first.
      value: the new one, finite.
      streak: samples in a row before this one that went beyond the limit.

    Returns:
      what is compared with the limit, and whether the value goes beyond it.
    """
    if rule.kind is ABOVE or rule.kind is BELOW:
        return value, value > rule.limit if rule.kind is ABOVE else value < rule.limit
    if rule.kind is STILL:
        last = [*window, value][-rule.window :]
        spread = _moments(last, len(last))[1]
        return spread, len(last) >= rule.least and spread < rule.limit
    if len(window) < rule.least:
        return 0.0, False
    if rule.kind is GROWTH:
        share = value / window[-rule.window] - 1 if window[-rule.window] > 0 else 0.0
        return share, share > rule.limit
    if rule.kind is DEVIATION:
        score = deviate(window, value)
        return score, abs(score) > rule.limit
    mean, sigma = _moments(window, len(window))
    beyond = value > rule.absolute and value > mean + rule.limit * sigma and value > rule.multiple * mean
    return (value - mean) / max(sigma, 1e-300), beyond


def observe(
    memory: AnomalyMemory, sample: Mapping[str, Any], rules: Sequence[Rule] = RULES
) -> tuple[AnomalyMemory, list[Anomaly]]:
    """Judge a sample.

    Args:
      memory: after the samples before it.
      sample: a round's numbers by name, and the round's own under "round". What is not finite is a gap.
      rules: the table.

    Returns:
      the memory with the sample, and what is out of the ordinary. A rule that asks for several samples in a row tells
      once, when there are so many; one about a sudden value tells every time.
    """
    windows, streaks, found = dict(memory.windows), dict(memory.streaks), []
    for rule in rules:
        for name in rule.series:
            value = sample.get(name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            key = (rule.name, name)
            window = windows.get(key, ())
            score, beyond = judge_sample(rule, window, value)
            streaks[key] = streaks.get(key, 0) + 1 if beyond else 0
            if _tells(rule, streaks[key]):
                found.append(_anomaly(rule, name, float(value), score, int(sample["round"])))
            if not (rule.kind is SPIKE and beyond):  # as the governor: a window of normal values
                windows[key] = (*window, float(value))[-max(rule.window, rule.in_a_row) :]
    return AnomalyMemory(windows, streaks), found


def _tells(rule: Rule, streak: int) -> bool:
    if rule.kind is DEVIATION or rule.kind is SPIKE:  # as the governor: it begins to count anew
        return streak > 0 and streak % rule.in_a_row == 0
    return streak == (rule.window if rule.kind in (ABOVE, BELOW) else 1)


def _anomaly(rule: Rule, name: str, value: float, score: float, number: int) -> Anomaly:
    severe = score < rule.high if rule.kind in (BELOW, STILL) else abs(score) > rule.high
    return Anomaly(number, rule.name, name, value, score, "high" if severe else "medium", rule.says)


def anomalies(
    samples: Iterable[Mapping[str, Any]], rules: Sequence[Rule] = RULES
) -> tuple[AnomalyMemory, list[Anomaly]]:
    """All of a run, in order, and the memory after it; see ``observe``."""
    memory, found = AnomalyMemory(), list[Anomaly]()
    for sample in samples:
        memory, new = observe(memory, sample, rules)
        found += new
    return memory, found


def told_of(found: Sequence[Anomaly]) -> dict[str, Any]:
    """What a round's row says of the anomalies in it: ``anomalies`` is how many, ``anomaly`` which (empty of none)."""
    return {"anomalies": len(found), "anomaly": "; ".join(each.line for each in found)}
