"""What was measured, as a table and as numbers."""

import datetime
import json
import re
from pathlib import Path
from typing import Any

import numpy as np


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile."""
    low, middle, high = np.percentile(values, (10, 50, 90))
    return float(middle), float(low), float(high)


def row(case: dict[str, Any], name: str, first: str) -> dict[str, Any]:
    """One contender's figures; times only behind a green gate."""
    begun, verdict = case["starts"][name], case["verdicts"][name]
    figures = {"contender": name, "gate": verdict._asdict(), **begun}
    times = case["seconds"].get(name, [])
    if not times:
        return figures
    median, low, high = spread(times)
    figures |= {"seconds": times, "median": median, "p10": low, "p90": high}
    figures["compile_seconds"] = max(0.0, begun["first_seconds"] - median)
    figures["host_share"] = case["flops"] / median / spread(case["rates"])[0]
    base = case["seconds"].get(first, [])
    if base:
        paired = [mine / theirs for mine, theirs in zip(times, base, strict=False)]
        figures["ratio"] = dict(zip(("median", "p10", "p90"), spread(paired), strict=True))
    return figures


def summarise(case: dict[str, Any]) -> dict[str, Any]:
    """A case with its figures, the first contender being the one to compare with."""
    first = next(iter(case["starts"]))
    rows = [row(case, name, first) for name in case["starts"]]
    kept = {name: case[name] for name in ("flops", "steps", "batch", "validation", "rates", "failures", "left_out")}
    return {"deal": case["deal"]._asdict(), **kept, "rows": rows}


def _line(figures: dict[str, Any], hosts: bool) -> str:
    gate = figures["gate"]
    words = f"{gate['median']:.0e}, {gate['strays']} stray" if gate["green"] else f"RED: worst {gate['worst']:.0e}"
    if "median" not in figures:
        return f"| {figures['contender']} | no time | | | {figures['peak_mb']:.0f} | {words} |" + (
            " |" if hosts else ""
        )
    times = f"{1e3 * figures['median']:.0f} ({1e3 * figures['p10']:.0f} to {1e3 * figures['p90']:.0f})"
    ratio = figures.get("ratio")
    ratios = f"{ratio['median']:.2f} ({ratio['p10']:.2f} to {ratio['p90']:.2f})" if ratio else ""
    cells = [figures["contender"], times, ratios, f"{figures['compile_seconds']:.0f}"]
    cells += [f"{figures['peak_mb']:.0f}", words]
    if hosts:
        cells.append(f"{100 * figures['host_share']:.0f} %")
    return f"| {' | '.join(cells)} |"


def table(case: dict[str, Any]) -> str:
    """One case as markdown."""
    drawn, first = case["deal"], case["rows"][0]
    hosts = drawn["active"] == 0
    who = "hosts alone" if hosts else f"{100 * drawn['active']:.0f} % of the slots active"
    order = "shared" if drawn["shared"] else "independent"
    title = (
        f"## {drawn['shape']}: {drawn['num_envs']} environments, {who}\n\n{case['steps']} SGD steps of {case['batch']} "
        f"samples ({order} order) and {case['validation']} validation samples.\n\n"
    )
    columns = ["contender", "ms per environment step", f"times {first['contender']}", "compilation, s"]
    columns += ["peak MB", "gate: median difference"] + (["of a matrix product's rate"] if hosts else [])
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    lines = [_line(figures, hosts) for figures in case["rows"]]
    lines += [f"\n{name} failed: {reason}" for name, reason in case["failures"].items()]
    lines += [f"\nLeft out, as they do not render it: {', '.join(case['left_out'])}."] * bool(case["left_out"])
    return title + head + "\n".join(lines) + "\n"


def write(folder: Path, machine: dict[str, Any], cases: list[dict[str, Any]]) -> tuple[Path, Path]:
    """Write ``<date>-<machine>.md`` and ``.json``; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.date.today().isoformat()
    name = re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']} {machine['cores']} cores".lower()).strip("-")
    summaries = [summarise(case) for case in cases]
    versions: dict[str, str] = {}
    for summary in summaries:
        for figures in summary["rows"]:
            versions |= figures["versions"]
    lines = [f"# {date}, {machine['processor']}, {machine['cores']} cores\n"]
    lines.append(
        f"{machine['platform']}, Python {machine['python']}, "
        + ", ".join(f"{package} {version}" for package, version in versions.items())
        + f"; load average at the start {machine['load']:.1f}.\n"
        "Median (10th to 90th percentile) of environment steps taken in turn, each contender in a process of its own; "
        "ratios are taken round by round.\n"
    )
    text = "\n".join([*lines, *map(table, summaries)])
    markdown, numbers = folder / f"{date}-{name}.md", folder / f"{date}-{name}.json"
    markdown.write_text(text)
    numbers.write_text(json.dumps({"date": date, "machine": machine, "cases": summaries}, indent=1) + "\n")
    return markdown, numbers
