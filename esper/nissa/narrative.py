"""A run in words: what it learned, what grew, what failed and why, and what to look at; from the numbers of its rounds.

Every sentence names the numbers that it is made of.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from esper.nissa.anomalies import Anomaly
from esper.nissa.blueprint_table import BlueprintLine

Row = Mapping[str, Any]

ENDS = 6
"""Rounds of the beginning and of the end that are compared, at most."""

FLAT, PLATEAU = 0.005, 3
"""A plateau: validation losses in a row within this of the last one, and how many there must be."""

ONE_SIDED = 0.9
"""Share of one operation above which decisions are called one-sided."""

SETTLED = 0.1
"""Entropy, nats, below which a policy is called settled."""

FEW = 10
"""Seeds that a blueprint must have lost or kept before it is praised or blamed."""

NAMED = 3
"""Anomalies that are named one by one."""


class Topic(Enum):
    """What a sentence is about."""

    LEARNED = "learned"
    GREW = "grew"
    FAILED = "failed"
    LOOK = "look at"


class Sentence(NamedTuple):
    """A sentence and its topic."""

    topic: Topic
    text: str


def narrate(
    rows: Sequence[Row], found: Sequence[Anomaly], table: Sequence[BlueprintLine], reports: Sequence[Row] = ()
) -> list[Sentence]:
    """A run's health in words.

    Args:
      rows: its rounds, in order.
      found: anomalies in them.
      table: of its blueprints.
      reports: on seeds that were watched (``FieldReport`` as a table).

    Returns:
      sentences by topic, in the order of ``Topic``; of a run without a round, one.
    """
    if not rows:
        return [Sentence(Topic.LEARNED, "No round was finished.")]
    parts: list[tuple[Topic, list[str]]] = [
        (Topic.LEARNED, [*_course(rows, "return", "return", ""), *_course(rows, "val_accuracy", "accuracy", " %")]),
        (Topic.GREW, _grew(table)),
        (Topic.FAILED, [*_seeds_failed(table, reports), *_steps_failed(rows)]),
        (Topic.LOOK, [*_anomalies(found), *_decisions(rows), *_plateau(rows)]),
    ]
    told = [Sentence(topic, text) for topic, texts in parts for text in texts]
    if not any(sentence.topic in (Topic.FAILED, Topic.LOOK) for sentence in told):
        told.append(Sentence(Topic.LOOK, "Nothing is out of the ordinary."))
    return told


def _numbers(rows: Sequence[Row], name: str) -> list[float]:
    values = [row.get(name) for row in rows]
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _spread(values: Sequence[float]) -> float:
    """Squared standard error of the mean."""
    middle = _mean(values)
    return math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values)


def _course(rows: Sequence[Row], name: str, word: str, unit: str) -> list[str]:
    """How a series went from the first rounds to the last ones."""
    values = _numbers(rows, name)
    count = min(ENDS, len(values) // 2)
    if count < 2:
        return [f"{word.capitalize()} {values[-1]:.2f}{unit} in the last round."] if values else []
    first, last = values[:count], values[-count:]
    change, error = _mean(last) - _mean(first), math.sqrt(_spread(first) + _spread(last))
    verb = "rose" if change > 2 * error else "fell" if change < -2 * error else "did not change clearly"
    ends = f"from {_mean(first):.2f}{unit} to {_mean(last):.2f}{unit}"
    return [f"Mean {word} {verb}: {ends} (first and last {count} of {len(values)} rounds, error {error:.2f})."]


def _grew(table: Sequence[BlueprintLine]) -> list[str]:
    placed, good, bad = (
        (sum(counts) for counts in zip(*((line[1], line[2], line[3]) for line in table), strict=True))
        if table
        else (0, 0, 0)
    )
    if not placed:
        return ["No seed was germinated."] if table else []
    ended = f", {good / (good + bad):.0%} of those that ended" if good + bad else ""
    told = [f"{placed:,} seeds germinated; {good:,} became permanent{ended}; {bad:,} were removed."]
    known = [line for line in table if line.success is not None and line.fossilized + line.culled >= FEW]
    best = max(known, key=lambda line: (line.success or 0.0, line.gain or 0.0), default=None)
    if best is not None and best.fossilized:
        gain = "" if best.gain is None else f" and {best.gain:+.2f} points from germination to the end"
        told.append(
            f"{best.blueprint} does best: {best.success:.0%} become permanent{gain} ({best.germinated:,} seeds)."
        )
    return told


def _seeds_failed(table: Sequence[BlueprintLine], reports: Sequence[Row]) -> list[str]:
    hopeless = [line for line in table if not line.fossilized and line.culled >= FEW]
    told = [f"No seed of {line.blueprint} became permanent; {line.culled:,} were removed." for line in hopeless]
    reasons = Counter(str(report["reason"]) for report in reports if report.get("reason"))
    if reasons:
        words = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        told.append(f"Why watched seeds were lost: {words}.")
    return told


STEPS = {
    "rolled_back": ("{sum:.2f} rollbacks per environment in all rounds together, in {rounds} of them", 0.0),
    "kernel_failures": ("{sum:.0f} kernels raised and were replaced by the definition, in {rounds} rounds", 0.0),
    "skipped": ("In {rounds} rounds minibatches were skipped: their gradient was not finite", 0.0),
    "left_out": ("In {rounds} rounds episodes taught nothing: not all of their numbers were finite", 0.0),
    "refused": ("{sum:.2f} decisions per environment were refused in all rounds together", 0.0),
}
"""Numbers of a round that tell of failure: words, and the value beyond which they do."""


def _steps_failed(rows: Sequence[Row]) -> list[str]:
    told = []
    for name, (words, limit) in STEPS.items():
        hits = [value for value in _numbers(rows, name) if value > limit]
        if hits:
            told.append(words.format(sum=math.fsum(hits), rounds=len(hits)) + ".")
    lost = [value for value in _numbers(rows, "measured") if value < 1]
    if lost:
        told.append(f"In {len(lost)} rounds not every environment could be validated; at worst {min(lost):.0%}.")
    return told


def _anomalies(found: Sequence[Anomaly]) -> list[str]:
    if not found:
        return []
    severe = [each for each in found if each.severity == "high"]
    shown = (severe or list(found))[-NAMED:]
    rounds = "; ".join(f"round {each.round}: {each.series} {each.value:.4g}, {each.says}" for each in shown)
    count = "1 anomaly" if len(found) == 1 else f"{len(found)} anomalies"
    return [f"{count}, {len(severe)} of them severe; the last: {rounds}."]


def _decisions(rows: Sequence[Row]) -> list[str]:
    """Whether the policy's decisions have come down to one."""
    last, told = rows[-1], list[str]()
    shares = {name: value for name, value in last.items() if name.startswith("share_") and "/" not in name}
    for name, value in shares.items():
        if isinstance(value, int | float) and value > ONE_SIDED:
            told.append(f"{value:.0%} of the last round's decisions are {name.removeprefix('share_').upper()}.")
    entropy, variance = _numbers([last], "entropy"), _numbers([last], "explained_variance")
    if entropy and entropy[0] < SETTLED:
        told.append(f"The policy is settled: entropy {entropy[0]:.3f} nats.")
    if variance and variance[0] < 0:
        told.append(f"The critic predicts worse than a constant: explained variance {variance[0]:.2f}.")
    return told


def _plateau(rows: Sequence[Row]) -> list[str]:
    losses = _numbers(rows, "val_loss")
    same = 0
    for loss in reversed(losses[:-1]):
        if abs(loss - losses[-1]) > FLAT:
            break
        same += 1
    return (
        [f"Validation loss stays within {FLAT} of {losses[-1]:.3f} for {same + 1} rounds."] if same >= PLATEAU else []
    )
