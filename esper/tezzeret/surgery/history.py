"""What a log of operations says of each kind: how often it was asked for and done, and what came of it."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from esper.tezzeret.surgery.reports import Log, Report

ALL = "all"
"""The row of all kinds together."""


class KindRecord(NamedTuple):
    """What became of the operations of a kind.

    Attributes:
      asked: how many there were.
      done: how many of these were done; the others were refused.
      success: done / asked.
      loss, accuracy: mean change on the samples that were tried, of those done, in nats and percentage points; None: of
        none.
      parameters: mean change of a network's numbers; likewise.
      milliseconds: mean time, refused ones too.
    """

    asked: int
    done: int
    success: float
    loss: float | None
    accuracy: float | None
    parameters: float | None
    milliseconds: float


def history(log: Log) -> dict[str, KindRecord]:
    """A record of every kind that was asked for, by name, and of ``ALL``; empty for an empty log."""
    names = sorted({report.name for report in log.reports})
    found = {name: _record([report for report in log.reports if report.name == name]) for name in names}
    return found | ({ALL: _record(log.reports)} if names else {})


def _record(reports: Sequence[Report]) -> KindRecord:
    done = [report for report in reports if report.done]
    pairs = [(r.before, r.after) for r in done if r.before is not None and r.after is not None]
    return KindRecord(
        asked=len(reports),
        done=len(done),
        success=len(done) / len(reports),
        loss=fmean(after.loss - before.loss for before, after in pairs) if pairs else None,
        accuracy=fmean(after.accuracy - before.accuracy for before, after in pairs) if pairs else None,
        parameters=fmean(report.params[1] - report.params[0] for report in done) if done else None,
        milliseconds=1000 * fmean(report.seconds for report in reports),
    )
