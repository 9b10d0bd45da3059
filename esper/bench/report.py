"""Results as text for a terminal of 120 columns."""

from collections.abc import Iterable
from textwrap import fill
from typing import Any

from esper.bench.case import Case
from esper.bench.measure import percentile
from esper.bench.ratios import Finding, findings
from esper.bench.record import Result, summary

COLUMNS = 120
NAME = 20
"""Columns of a case's name."""


def number(value: float | None, digits: int = 3) -> str:
    """A number in as few columns as its digits need, with k, M, G or T; - where there is none."""
    if value is None:
        return "-"
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{_significant(value / factor, digits)}{letter}"
    return _significant(value, digits)


def _significant(value: float, digits: int) -> str:
    whole = len(str(int(abs(value))))
    return f"{value:.{max(digits - whole, 0)}f}" if value == 0 or abs(value) >= 0.1 else f"{value:.{digits - 1}g}"


def line(cells: Iterable[tuple[str, int]]) -> str:
    """Cells with their widths; a negative width aligns left."""
    texts = [f"{text:<{-width}}" if width < 0 else f"{text:>{width}}" for text, width in cells]
    return " ".join(texts).rstrip() + "\n"


def header(facts: dict[str, Any], settings: dict[str, Any]) -> str:
    """What was measured, and on what."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "tensordict", "torchrl", "python"))
    sizes = f"batch {settings['batch_size']}, {settings['steps_per_epoch']} SGD steps, {settings['slots']} slots"
    how = f"backend {settings['backend']}" + (", --quick" if settings["quick"] else "")
    return (
        f"esper {facts['esper']} at {facts['commit'] or 'no commit'}, {versions}\n"
        f"{facts['processor']}, device {facts['device']}, {facts['threads']} threads on {facts['cores']} cores\n"
        f"{settings['task']}: {settings['host']}, {sizes}, {settings['dtype']}, {how}\n"
        + "".join(f"{fill(each, COLUMNS, subsequent_indent='  ')}\n" for each in settings["runs"])
    )


HEADS = ("case", "E", "ms", "p10", "p90", "env/s", "first s", "recomp.", "waits", "launches", "peak MB", "kB/env")
WIDTHS = (-NAME, 5, 9, 9, 9, 8, 8, 8, 7, 8, 9, 9)
NOTES = """\
env/s: repeats of one environment; first: what a fresh process's first repeat takes more; waits, launches: per repeat,
launches are kernels and copies of a GPU, and operators on a CPU; peak: of a fresh process beyond its imports
"""


def times(results: list[Result]) -> str:
    """A line per result; a red gate shows what it found, and no time."""
    lines = [line(zip(HEADS, WIDTHS, strict=True))]
    for result in results:
        name = [(result.case, -NAME), (str(result.envs), 5)]
        if result.wrong is not None:
            lines.append(line([*name, (f"WRONG: {result.wrong}", -1)]))
            continue
        row = summary(result)
        cells = [f"{1e3 * (row[key] or 0):.2f}" for key in ("median", "p10", "p90")]
        cells += [number(row["envs_per_second"]), number(row["first_seconds"])]
        cells += [str(result.recompiles), f"{result.waits / result.counted:.4g}"] if result.counted else ["-", "-"]
        cells.append("-" if result.launches is None else number(result.launches / result.counted))
        cells += [_scaled(row["peak_bytes"], 1e6), _scaled(row["bytes_per_env"], 1e3)]
        lines.append(line([*name, *zip(cells, WIDTHS[2:], strict=True)]))
    return "".join(lines) + NOTES


def _scaled(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.1f}"


def rates(results: list[Result]) -> str:
    """Units a second of cases with parts: each part alone and beside all others, medians."""
    widths, rows = (-NAME, -NAME, 5, 12, 12), list[str]()
    for result in results:
        for part, pairs in result.rates.items():
            columns = [number(percentile(column, 0.5)) for column in zip(*pairs, strict=True)]
            rows.append(line(zip((result.case, part, str(result.envs), *columns), widths, strict=True)))
    heads = line(zip(("units a second", "of", "E", "alone", "with others"), widths, strict=True))
    return heads + "".join(rows) if rows else ""


def claims(found: list[Finding]) -> str:
    """Ratios and counts with their limits."""
    if not found:
        return ""
    widths = (-58, 4, 7, 7, 7, 7, 7, 7, -8)
    heads = ("ratio, or count", "E", "median", "p10", "p25", "p75", "p90", "limit", "")
    lines = [line(zip(heads, widths, strict=True))]
    for each in found:
        values = (each.median, each.p10, each.p25, each.p75, each.p90, each.limit)
        cells = [*map(number, values), each.verdict]
        lines.append(line(zip([each.name, each.envs, *cells], widths, strict=True)))
    return "".join(lines)


def report(table: dict[str, Any], results: list[Result]) -> str:
    """Everything, for people."""
    blocks = (header(table["machine"], table["settings"]), times(results), rates(results), claims(findings(results)))
    return "\n".join(block for block in blocks if block)


def listing(cases: dict[str, Case]) -> str:
    """Names and units of work."""
    return "".join(f"{case.name:<{NAME}} {case.unit}\n" for case in cases.values())
