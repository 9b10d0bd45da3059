"""Two runs side by side: ratios of medians, and which differences lie beyond the spread."""

from pathlib import Path
from typing import Any

from esper.bench.measure import percentile
from esper.bench.record import Result, read_table, results_of
from esper.bench.report import NAME
from esper.utils.settings import SettingsError

SAME = ("processor", "device", "threads", "torch")
"""Facts of the machine that should be equal."""


def mark(before: list[float], after: list[float]) -> str:
    """``faster`` or ``slower`` if the ranges from p10 to p90 do not touch, else nothing."""
    low, high = ((percentile(column, 0.1), percentile(column, 0.9)) for column in (before, after))
    return "slower" if high[0] > low[1] else "faster" if high[1] < low[0] else ""


def compare(first: Path, second: Path) -> str:
    """A line per case that both runs timed.

    Args:
      first, second: files of ``run --json``.

    Raises:
      SettingsError: a file cannot be read, or the two have no case in common.
    """
    tables = [read_table(path) for path in (first, second)]
    before, after = ({(r.case, r.envs): r for r in results_of(table) if r.seconds} for table in tables)
    both = [key for key in before if key in after]
    if not both:
        raise SettingsError(f"{first}, {second}: no case was timed in both")
    lines = [f"A = {first}\nB = {second}\n", *_differences(tables)]
    lines.append(
        f"{'case':<{NAME}} {'E':>5} {'A ms':>9} {'p10':>9} {'p90':>9} {'B ms':>9} {'p10':>9} {'p90':>9} {'B/A':>7}\n"
    )
    lines += [_row(before[key], after[key]) for key in both]
    alone = [f"{name} only: {case}, E = {envs}\n" for name, case, envs in _alone(before, after)]
    return "".join([*lines, *alone])


def _alone(before: dict[tuple[str, int], Result], after: dict[tuple[str, int], Result]) -> list[tuple[str, str, int]]:
    only = [("A", *key) for key in before if key not in after]
    return only + [("B", *key) for key in after if key not in before]


def _differences(tables: list[dict[str, Any]]) -> list[str]:
    """What of machine and settings is not the same."""
    pairs = [(name, *(table["machine"].get(name) for table in tables)) for name in (*SAME, "commit")]
    names = dict.fromkeys(name for table in tables for name in table["settings"])
    pairs += [(name, *(table["settings"].get(name) for table in tables)) for name in names if name not in _ASKED]
    return [f"{name}: A {a}, B {b}\n" for name, a, b in pairs if a != b]


_ASKED = ("cases", "envs", "repeat", "probe")
"""Settings that say what was measured, not how it behaves."""


def _row(before: Result, after: Result) -> str:
    cells = []
    for result in (before, after):
        cells += [f"{1e3 * percentile(result.seconds, share):9.2f}" for share in (0.5, 0.1, 0.9)]
    ratio = percentile(after.seconds, 0.5) / percentile(before.seconds, 0.5)
    verdict = mark(before.seconds, after.seconds)
    return f"{before.case:<{NAME}} {before.envs:>5} {' '.join(cells)} {ratio:7.3f} {verdict}".rstrip() + "\n"
