"""Reports of the stages a blueprint goes through: what each found, how long it took, and where it failed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from esper.leyline.config import ConfigError
from esper.utils.documents import cause, json_ready, one_line

STAGES = (
    "parse and validate",
    "graph: shapes and costs",
    "lower and compile",
    "device code",
    "profile",
    "package",
    "store",
)
"""In order; a stage's number is its place here, from 1."""

VALIDATION = "validation of the compiled form"
"""Between device code and profile: what was compiled is held against the eager form."""

NAMES = (*STAGES[:4], VALIDATION, *STAGES[4:])
"""Everything that reports, in order."""


class StageReport(NamedTuple):
    """What a stage found.

    Attributes:
      stage: of ``NAMES``.
      passed: whether the next one may begin.
      seconds: how long it took.
      facts: what there is to say; words and numbers.
      node: of the document, where it failed; empty where it concerns the whole.
      found: what was wrong; empty if nothing was.
      expected: what was expected instead.
      reason: in one word or two, for programs.
    """

    stage: str
    passed: bool
    seconds: float
    facts: dict[str, Any]
    node: str = ""
    found: str = ""
    expected: str = ""
    reason: str = ""

    @property
    def line(self) -> str:
        """For people."""
        number = f"({STAGES.index(self.stage) + 1}) " if self.stage in STAGES else "    "
        head = f"{number}{self.stage:<32}{1e3 * self.seconds:9.1f} ms  "
        if self.passed:
            return one_line(head + ", ".join(f"{name} {_said(value)}" for name, value in self.facts.items()))
        where = f"node {self.node!r}: " if self.node else ""
        expected = "" if "expected " in self.found or not self.expected else f"; expected {self.expected}"
        return one_line(f"{head}FAILED: {where}{self.found}{expected}")


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class StageFailed(ConfigError):
    """A stage that did not pass; one line. ``report`` is what it said."""

    def __init__(self, report: StageReport) -> None:
        super().__init__(f"stage {report.stage!r}: {report.line.partition('FAILED: ')[2]}")
        self.report = report


class ReportLog:
    """Reports in the order in which stages ran.

    Attributes:
      reports: so far.
    """

    def __init__(self, told: Callable[[str], None] = lambda name: None) -> None:
        """Nothing has run; ``told``: hears the name of every stage that begins."""
        self.reports: list[StageReport] = []
        self.told = told

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """A stage; what the block puts into the dict are its facts.

        Raises:
          StageFailed: the block raised anything: what a stranger's document makes torch do is told like what it says.
        """
        facts: dict[str, Any] = {}
        begun = time.perf_counter()
        self.told(name)
        try:
            yield facts
        except StageFailed:
            raise
        except Exception as error:
            report = failed(name, error, time.perf_counter() - begun)
            self.add(report)
            raise StageFailed(report) from error
        self.add(StageReport(name, True, time.perf_counter() - begun, facts))

    def add(self, report: StageReport) -> None:
        """Note a report."""
        self.reports.append(report)


def failed(stage: str, error: BaseException, seconds: float) -> StageReport:
    """The report of a stage that an error ended; its attributes ``node``, ``expected``, ``reason`` are taken over."""
    own = {name: str(getattr(error, name, "") or "") for name in ("node", "expected", "reason")}
    return StageReport(stage, False, seconds, {}, found=str(getattr(error, "found", "") or _words(error)), **own)


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, ConfigError) else cause(error)


def as_table(reports: tuple[StageReport, ...]) -> list[dict[str, Any]]:
    """Reports as JSON has them."""
    return [{name: json_ready(value) for name, value in report._asdict().items()} for report in reports]


def from_table(rows: list[dict[str, Any]]) -> tuple[StageReport, ...]:
    """What ``as_table`` wrote.

    Raises:
      ValueError: it did not write this.
    """
    try:
        found = tuple(StageReport(**row) for row in rows)
    except TypeError as error:
        raise ValueError(f"no reports: {error}") from None
    if any(report.stage not in NAMES or not isinstance(report.facts, dict) for report in found):
        raise ValueError("no reports: an unknown stage")
    return found
