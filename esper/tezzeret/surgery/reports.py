"""What became of operations: a report of each, and the log of all, with its counters."""

from typing import NamedTuple

from esper.tezzeret.surgery.anatomy import Impossible
from esper.tezzeret.surgery.measure import Effect
from esper.tezzeret.surgery.orders import Operation
from esper.utils.documents import cause


class Report(NamedTuple):
    """What became of an operation.

    Attributes:
      op: what was asked for.
      name: of the operation, such as ``insert_layer``.
      epoch: when.
      networks: how many it was asked for.
      reason: why it was not done, one line; None: it was.
      stage: where it ended: "rules", "before", "operation", "structure", "fake", "outputs", "gradients", "effect" or
        "done".
      added, removed: layers.
      params: numbers of a network, before and after.
      before, after: loss and accuracy on the samples; None: not measured.
      moved: largest change of an output, as a share of the largest output; None: not measured.
      seconds: it took, wall clock.
    """

    op: Operation
    name: str
    epoch: int
    networks: int
    reason: str | None
    stage: str
    added: int
    removed: int
    params: tuple[int, int]
    before: Effect | None
    after: Effect | None
    moved: float | None
    seconds: float

    @property
    def done(self) -> bool:
        """Whether it was."""
        return self.reason is None

    def __str__(self) -> str:
        """One line."""
        if not self.done:
            return f"epoch {self.epoch}: {self.op}: refused ({self.stage}): {self.reason}"
        assert self.before is not None and self.after is not None
        sizes, (old, new) = self.params, (self.before, self.after)
        return (
            f"epoch {self.epoch}: {self.op}: {sizes[0]} to {sizes[1]} parameters, "
            f"loss {old.loss:.4f} to {new.loss:.4f}, accuracy {old.accuracy:.1f} to {new.accuracy:.1f} %"
        )


def reason_of(error: Exception) -> str:
    """Why an operation was not done, one line: what was impossible, or what went wrong."""
    if isinstance(error, Impossible):
        return str(error)
    return cause(error, 300) if str(error) else f"{type(error).__name__}: no message"


class Log(NamedTuple):
    """All reports, oldest first; constraints and counters read nothing else."""

    reports: tuple[Report, ...] = ()

    def with_report(self, report: Report) -> "Log":
        """The log with one more."""
        return Log((*self.reports, report))

    @property
    def epochs(self) -> list[int]:
        """When operations were done."""
        return [report.epoch for report in self.reports if report.done]

    def done_in(self, epoch: int) -> list[Report]:
        """What was done in an epoch."""
        return [report for report in self.reports if report.done and report.epoch == epoch]

    def total(self, what: str, epoch: int) -> int:
        """Layers "added" or "removed" in an epoch."""
        return sum(getattr(report, what) for report in self.done_in(epoch))

    def count(self, name: str) -> int:
        """How often an operation was done."""
        return sum(report.done and report.name == name for report in self.reports)

    @property
    def counters(self) -> dict[str, int]:
        """Operations asked for, done and refused, and each done by name."""
        done = sum(report.done for report in self.reports)
        found = {"asked": len(self.reports), "done": done, "refused": len(self.reports) - done}
        return found | {name: self.count(name) for name in sorted({report.name for report in self.reports})}
