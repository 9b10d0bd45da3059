"""Failure analysis: what failed, in a run's log or among its dead letters, grouped by cause, with a remedy for each."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from esper.utils.documents import LONGEST
from esper.utils.resilience.causes import UNKNOWN, FailureCause, by_name, cause_of_text

EXCEPTION = re.compile(r"^(?:[\w.]*\.)?\w*(?:Error|Exception)(?::|$)")
"""How the last line of a traceback begins."""

PLACES = 3
"""Places that a group names."""


class FailureRecord(NamedTuple):
    """Something that failed.

    Attributes:
      cause: name of its cause.
      reason: in its own words.
      place: what failed, such as a file or a line of a log.
      times: how often.
    """

    cause: str
    reason: str
    place: str
    times: int = 1


class FailureGroup(NamedTuple):
    """All failures of one cause.

    Attributes:
      cause: with its remedy.
      times: how many there were.
      places: where, each once, in order.
      reason: of the last, in its own words.
    """

    cause: FailureCause
    times: int
    places: tuple[str, ...]
    reason: str


def group(records: Iterable[FailureRecord]) -> list[FailureGroup]:
    """Failures by cause, the commonest first."""
    found: dict[str, list[FailureRecord]] = {}
    for record in records:
        found.setdefault(by_name(record.cause).name, []).append(record)
    groups = [
        FailureGroup(
            by_name(name),
            sum(record.times for record in members),
            tuple(dict.fromkeys(record.place for record in members)),
            members[-1].reason,
        )
        for name, members in found.items()
    ]
    return sorted(groups, key=lambda each: -each.times)


def read_failures(lines: Iterable[str]) -> Iterator[FailureRecord]:
    """Failures that a log tells: lines of a known cause, and the last lines of tracebacks."""
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        cause = cause_of_text(text)
        if cause is not UNKNOWN or EXCEPTION.match(text):
            yield FailureRecord(cause.name, text, f"line {number}")


def describe(groups: Iterable[FailureGroup]) -> list[str]:
    """Two lines a group: what happened, and what helps."""
    lines = []
    for each in groups:
        places = ", ".join(each.places[:PLACES]) + (", ..." if len(each.places) > PLACES else "")
        often = "once" if each.times == 1 else f"{each.times} times"
        reason = each.reason if len(each.reason) <= 2 * LONGEST else f"{each.reason[: 2 * LONGEST]}..."
        lines += [f"{each.cause.name}, {often}: {places}: {reason}", f"  remedy: {each.cause.remedy}"]
    return lines
