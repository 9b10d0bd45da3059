"""Who is told what a worker does: a request as a span, its stages as spans within it, and both as events."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from esper.nissa.anomalies import Anomaly, AnomalyMemory, observe, told_of
from esper.nissa.event_record import event
from esper.nissa.operations import NO_OPERATIONS, OperationLog
from esper.tezzeret.stages.reports import NAMES, StageReport

SPANS = dict(
    zip(NAMES, ("parse", "graph", "lower", "device_code", "validate", "profile", "package", "store"), strict=True)
)
"""Stage -> what its span and its series are called."""


RECENT = 100
"""Compilations of which shares and means are taken."""


class CompileObserver:
    """Hears of the stages of one request after the other, in whatever process they run."""

    def __init__(self, operations: OperationLog = NO_OPERATIONS) -> None:
        self._operations, self._begun = operations, dict[str, int]()
        self._recent, self._count, self._memory = deque[tuple[bool, float]](maxlen=RECENT), 0, AnomalyMemory()

    @contextmanager
    def request(self, id: str, parent: str) -> Iterator[None]:
        """A request that is being worked on.

        Args:
          id: of it.
          parent: traceparent of the span that asked for it; empty = none.
        """
        self._begun.clear()
        with self._operations.spans.span("blueprint.compile", parent, request=id):
            yield

    def begun(self, stage: str) -> None:
        """A stage begins; of a child's, this is heard when its word arrives."""
        self._begun[stage] = time.time_ns()

    def reported(self, report: StageReport) -> None:
        """A stage has ended; its time is the one that it measured itself."""
        lasted, name = int(1e9 * report.seconds), SPANS[report.stage]
        start = self._begun.get(report.stage, time.time_ns() - lasted)
        said: dict[str, Any] = {"passed": report.passed, "cached": "cached" in report.facts, "reason": report.reason}
        self._operations.spans.lasted(f"blueprint.{name}", start, start + lasted, **said)
        self._operations.sinks.event(event("stage", report.passed, stage=name, took=report.seconds, **said))

    def ended(self, outcome: str, seconds: float, predicted: float, reason: str) -> list[Anomaly]:
        """A request has ended; what is out of the ordinary since then, by its number."""
        fine, self._count = outcome in ("published", "found"), self._count + 1
        found = self._judged(outcome == "failed", seconds) if outcome in ("published", "failed") else []
        said: dict[str, Any] = {"outcome": outcome, "predicted": predicted, **({} if fine else {"error": reason})}
        self._operations.sinks.event(event("compile", fine, took=seconds, **said, **(told_of(found) if found else {})))
        return found

    def _judged(self, failed: bool, seconds: float) -> list[Anomaly]:
        """What the last compilations are, by the table of anomalies: share of failures, mean seconds."""
        self._recent.append((failed, seconds))
        shares, times = zip(*self._recent, strict=True)
        sample = {"round": self._count, "compile_failed": sum(shares) / len(shares)}
        self._memory, found = observe(self._memory, sample | {"compile_seconds": math.fsum(times) / len(times)})
        return found
