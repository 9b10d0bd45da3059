"""What was measured, as a table and as numbers."""

import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

MATRIX = 2048


def describe_machine(cores: list[int]) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    info = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*: (.*)", info)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": found.group(1) if found else platform.processor(),
        "processors": os.cpu_count(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


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
    product = spread(case["products"][name])[0]
    figures["matrix_gflops"] = 2e-9 * MATRIX**3 / product
    figures["host_gflops"] = 1e-9 * case["flops"] / median
    base = case["seconds"].get(first, [])
    if base:
        paired = [mine / theirs for mine, theirs in zip(times, base, strict=False)]
        figures["ratio"] = dict(zip(("median", "p10", "p90"), spread(paired), strict=True))
    return figures


def summarise(case: dict[str, Any]) -> dict[str, Any]:
    """A case with its figures, the first contender being the one to compare with."""
    first = next(iter(case["starts"]))
    rows = [row(case, name, first) for name in case["starts"]]
    kept = {name: case[name] for name in ("flops", "steps", "batch", "validation", "idle_share", "failures")}
    return {"deal": case["deal"]._asdict(), **kept, "rows": rows}


def _line(figures: dict[str, Any], first: dict[str, Any], hosts: bool) -> str:
    gate = figures["gate"]
    words = f"{gate['median']:.0e}, {gate['strays']} stray" if gate["green"] else f"RED: worst {gate['worst']:.0e}"
    if "median" not in figures:
        return f"| {figures['contender']} | no time | | | {figures['peak_mb']:.0f} | {words} |" + (
            " |" if hosts else ""
        )
    times = f"{1e3 * figures['median']:.0f} ({1e3 * figures['p10']:.0f} to {1e3 * figures['p90']:.0f})"
    ratio = figures.get("ratio")
    ratios = f"{ratio['median']:.2f} ({ratio['p10']:.2f} to {ratio['p90']:.2f})" if ratio else ""
    cells = [figures["contender"], times, ratios, f"{figures['compile_seconds']:.0f}{_break_even(figures, first)}"]
    cells += [f"{figures['peak_mb']:.0f}", words]
    if hosts:
        share = figures["host_gflops"] / figures["matrix_gflops"]
        cells.append(f"{figures['host_gflops']:.0f} of {figures['matrix_gflops']:.0f}: {100 * share:.0f} %")
    return f"| {' | '.join(cells)} |"


def _break_even(figures: dict[str, Any], first: dict[str, Any]) -> str:
    """After how many steps the first contender has made up for its longer compilation."""
    if "median" not in first or figures is first:
        return ""
    later = first["compile_seconds"] - figures["compile_seconds"]
    gain = figures["median"] - first["median"]
    return f", after {later / gain:.0f} steps" if later > 0 and gain > 0 else ""


def table(case: dict[str, Any]) -> str:
    """One case as markdown."""
    deal, first = case["deal"], case["rows"][0]
    hosts = deal["active"] == 0
    who = "hosts alone" if hosts else f"{100 * deal['active']:.0f} % of the slots active"
    order = "shared" if deal["shared"] else "independent"
    title = (
        f"## {deal['shape']}: {deal['num_envs']} environments, {who}\n\n{case['steps']} SGD steps of {case['batch']} "
        f"samples ({order} order) and {case['validation']} validation samples; "
        f"idle contenders used {100 * case['idle_share']:.1f} % of a processor.\n\n"
    )
    columns = ["contender", "ms per environment step", f"times {first['contender']}", "compilation, s"]
    columns += ["peak MB", "gate: median difference"] + (["GFLOP/s of the matrix product's"] if hosts else [])
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    lines = [_line(figures, first, hosts) for figures in case["rows"]]
    lines += [f"\n{name} failed: {reason}" for name, reason in case["failures"].items()]
    return title + head + "\n".join(lines) + "\n"


def write(folder: Path, machine: dict[str, Any], cases: list[dict[str, Any]]) -> tuple[Path, Path]:
    """Write ``<date>-<machine>.md`` and ``.json``; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.date.today().isoformat()
    name = re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']} {len(machine['cores'])} cores".lower()).strip("-")
    summaries = [summarise(case) for case in cases]
    versions: dict[str, str] = {}
    for summary in summaries:
        for figures in summary["rows"]:
            versions |= figures["versions"]
    lines = [f"# {date}, {machine['processor']}, {len(machine['cores'])} cores\n"]
    lines.append(
        f"{machine['system']}, Python {machine['python']}, "
        + ", ".join(f"{package} {version}" for package, version in versions.items())
        + f"; {machine['memory_gib']} GiB; load average at the start {machine['load']}.\n"
        "Median (10th to 90th percentile) of environment steps taken in turn, each contender in a process of its own; "
        "ratios are taken round by round.\n"
    )
    text = "\n".join([*lines, *map(table, summaries)])
    markdown, numbers = folder / f"{date}-{name}.md", folder / f"{date}-{name}.json"
    markdown.write_text(text)
    numbers.write_text(json.dumps({"date": date, "machine": machine, "cases": summaries}, indent=1) + "\n")
    return markdown, numbers
