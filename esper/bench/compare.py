"""Two runs side by side: counts exactly, ratios within each run, and times for people to look at.

A time says as much of the machine as of the program, so none is judged. A count is judged where the machine and the
settings are the same: any difference is red, a smaller one as well, since whoever wanted it records it anew. A ratio of
two times of one run is judged on any machine: it is red where it moved by more than ``BEYOND``, either way, since what
it is divided by may have become slower.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esper.bench.measure import percentile
from esper.bench.ratios import START_LIMITS, Finding, beside_first, ratios_of
from esper.bench.record import COUNTS, Result, read_table, results_of
from esper.bench.report import NAME, line
from esper.utils.settings import SettingsError

BEYOND = 0.05
"""By which share a ratio may move."""

MACHINE = ("processor", "device", "threads")
"""Facts of a machine that counts depend on."""

SETTINGS = (
    *("task", "host", "slots", "batch_size", "steps_per_epoch", "horizon", "dtype", "backend", "quick"),
    "device",
)
"""Settings without which two runs did not do the same."""

ASKED = ("cases", "envs", "repeat", "probe")
"""Settings that say what was measured, not how it behaves."""

Key = tuple[str, int]
"""A case and its number of environments."""


class Comparison(NamedTuple):
    """What came of two runs.

    Attributes:
      text: for people.
      judged: how many counts, ratios and gates were compared.
      red: how many of them are red.
    """

    text: str
    judged: int
    red: int


class _Row(NamedTuple):
    """Something that was judged, or could not be.

    Attributes:
      cells: of its line.
      red: whether it is; None where it could not be judged.
    """

    cells: tuple[str, ...]
    red: bool | None


def mark(before: list[float], after: list[float]) -> str:
    """``faster`` or ``slower`` if the ranges from p10 to p90 do not touch, else nothing."""
    low, high = ((percentile(column, 0.1), percentile(column, 0.9)) for column in (before, after))
    return "slower" if high[0] > low[1] else "faster" if high[1] < low[0] else ""


def compare(first: Path, second: Path) -> Comparison:
    """Compare two runs.

    Args:
      first, second: files of ``run --json``, A and B.

    Raises:
      SettingsError: a file cannot be read, or the two have no case in common.
    """
    tables = [read_table(path) for path in (first, second)]
    before, after = (
        {(r.case, r.envs): r for r in _results(p, t)} for p, t in zip((first, second), tables, strict=True)
    )
    both = [key for key in before if key in after]
    if not both:
        raise SettingsError(f"{first}, {second}: no case was timed in both")
    pairs = [(before[key], after[key]) for key in both]
    other = _differ(tables, "settings", SETTINGS)
    elsewhere = _differ(tables, "machine", MACHINE)
    missing = [f"{name} only: {case}, E = {envs}" for name, case, envs in _alone(before, after)]
    if other:
        missing.append(f"counts and ratios: {'; '.join(other)}")
    elif elsewhere:
        missing.append(f"counts: another machine: {'; '.join(elsewhere)}")
    gates = [] if other else list(_gates(pairs))
    counts = [] if other or elsewhere else list(_counts(pairs))
    ratios = [] if other else list(_ratios(pairs))
    judged = [row for row in (*gates, *counts, *ratios) if row.red is not None]
    red = sum(row.red is True for row in judged)
    blocks = [
        f"A = {first}\nB = {second}\n" + "".join(_differences(tables)),
        _times(pairs),
        _table(COUNT_HEADS, COUNT_WIDTHS, counts),
        _table(RATIO_HEADS, RATIO_WIDTHS, ratios),
        "".join(f"{' '.join(row.cells)}\n" for row in gates),
        "".join(f"not compared: {words}\n" for words in missing),
        f"{'RED' if red else 'green' if judged else 'nothing compared'}: {red} of {len(judged)} are red\n",
    ]
    return Comparison("\n".join(block for block in blocks if block), len(judged), red)


def _results(path: Path, table: dict[str, Any]) -> list[Result]:
    try:
        return results_of(table)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _alone(before: dict[Key, Result], after: dict[Key, Result]) -> list[tuple[str, str, int]]:
    only = [("A", *key) for key in before if key not in after]
    return only + [("B", *key) for key in after if key not in before]


def _differ(tables: Sequence[dict[str, Any]], part: str, names: Sequence[str]) -> list[str]:
    """What of some facts is not the same."""
    pairs = [(name, *(table[part].get(name) for table in tables)) for name in names]
    return [f"{name}: A {a}, B {b}" for name, a, b in pairs if a != b]


def _differences(tables: Sequence[dict[str, Any]]) -> list[str]:
    """What of machine and settings is not the same, a line each."""
    names = dict.fromkeys(name for table in tables for name in table["settings"] if name not in ASKED)
    found = _differ(tables, "machine", (*MACHINE, "torch", "commit")) + _differ(tables, "settings", list(names))
    return [f"{words}\n" for words in found]


TIME_HEADS = ("case", "E", "A ms", "p10", "p90", "B ms", "p10", "p90", "B/A", "")
TIME_WIDTHS = (-NAME, 5, 9, 9, 9, 9, 9, 9, 7, -6)
COUNT_HEADS = ("counts", "E", *COUNTS, "")
COUNT_WIDTHS = (-NAME, 5, 12, 14, 20, 28, -14)
RATIO_HEADS = ("ratio within a run", "E", "A", "B", "B/A", "")
RATIO_WIDTHS = (-58, 9, 9, 9, 7, -22)


def _table(heads: Sequence[str], widths: Sequence[int], rows: Sequence[_Row]) -> str:
    cells = [heads, *(row.cells for row in rows)] if rows else []
    return "".join(line(zip(each, widths, strict=True)) for each in cells)


def _times(pairs: Sequence[tuple[Result, Result]]) -> str:
    """A line per case that was timed in both."""
    rows = []
    for before, after in pairs:
        if before.seconds and after.seconds:
            columns = [[percentile(one.seconds, share) for share in (0.5, 0.1, 0.9)] for one in (before, after)]
            cells = [f"{1e3 * value:.2f}" for column in columns for value in column]
            ratio = f"{columns[1][0] / columns[0][0]:.3f}"
            verdict = mark(before.seconds, after.seconds)
            rows.append(_Row((before.case, str(before.envs), *cells, ratio, verdict), None))
    return _table(TIME_HEADS, TIME_WIDTHS, rows)


def _gates(pairs: Sequence[tuple[Result, Result]]) -> Iterator[_Row]:
    """Cases whose gate was red in either run."""
    for before, after in pairs:
        if before.wrong is not None or after.wrong is not None:
            name = f"{before.case}, E = {before.envs}:"
            if after.wrong is None:
                yield _Row((name, "not compared: A's gate was red"), None)
            else:
                yield _Row((name, f"RED: B's gate: {after.wrong}"), True)


def _counts(pairs: Sequence[tuple[Result, Result]]) -> Iterator[_Row]:
    """The counts of cases that have some in both."""
    for before, after in pairs:
        if not before.counts or not after.counts:
            continue
        name = (before.case, str(before.envs))
        if before.counted != after.counted:
            what = f"A of {before.counted}, B of {after.counted}"
            yield _Row((*name, *[""] * (len(COUNTS) - 1), what, "not compared"), None)
            continue
        values = [(before.counts[each], after.counts[each]) for each in COUNTS]
        known = [(a, b) for a, b in values if a is not None and b is not None]
        red = any(a != b for a, b in known)
        words = "RED" if red else "" if len(known) == len(values) else "partly compared"
        yield _Row((*name, *(_count(a, b) for a, b in values), words), red)


def _count(before: int | None, after: int | None) -> str:
    first, second = ("-" if count is None else str(count) for count in (before, after))
    return first if first == second else f"{first} > {second}"


def _ratios(pairs: Sequence[tuple[Result, Result]]) -> Iterator[_Row]:
    """The ratios that both runs have, of cases that were timed in both."""
    timed = [(a, b) for a, b in pairs if a.seconds and b.seconds]
    apart = {a.case for a, b in timed if a.case in START_LIMITS or a.rates or b.rates}
    first: dict[int, str] = {}
    for before, _ in timed:
        if before.case not in apart:
            first.setdefault(before.envs, before.case)
    columns = []
    for place in range(2):
        run = [pair[place] for pair in timed]
        plain = [result for result in run if result.case not in apart]
        found = [*ratios_of(run), *beside_first(plain, first)]
        columns.append({(each.name, each.envs): each for each in found})
    for key, ratio in columns[0].items():
        if key in columns[1]:
            yield _ratio(ratio, columns[1][key])


def _ratio(before: Finding, after: Finding) -> _Row:
    name = (before.name, before.envs, f"{before.median:.3f}", f"{after.median:.3f}")
    if not (before.median > 0 and after.median > 0):
        return _Row((*name, "-", "not compared"), None)
    moved = after.median / before.median
    red = not 1 - BEYOND <= moved <= 1 + BEYOND
    touch = before.p10 <= after.p90 and after.p10 <= before.p90
    return _Row((*name, f"{moved:.3f}", ("RED, ranges overlap" if touch else "RED") if red else ""), red)
