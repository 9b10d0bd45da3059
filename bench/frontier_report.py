"""What was found: figures, paired differences, and both as markdown, JSON and a chart."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.frontier_chart import chart, frontier
from bench.frontier_play import Point, Study
from esper.leyline.config import Config
from esper.utils.stats import mean_interval

Row = dict[str, Any]


def interval(values: Tensor) -> dict[str, float]:
    """Mean over initialisations and half-width of its 95 % interval."""
    mean, half = mean_interval(values)
    return {"mean": mean, "half_width": half}


def figures(point: Point) -> Row:
    """A contender, JSON-able."""
    played = point.played
    return {
        "name": point.name,
        "kind": point.kind,
        "rate": point.rate,
        "validation_by_rate": {str(rate): accuracy for rate, accuracy in point.rates.items()},
        "params": float(played.params.mean()),
        "test": interval(played.test),
        "test_loss": interval(played.test_loss),
        "validation": float(played.curve[-1].mean()),
        "late_gain": point.late_gain,
        "gflops": float(played.spent.training.mean()) / 1e9,
        "gflops_by_part": {name: float(part.mean()) / 1e9 for name, part in played.spent._asdict().items()},
        "seconds": point.seconds,
        "test_by_environment": played.test.tolist(),
    }


def compared(rows: Sequence[Row], points: Sequence[Point]) -> list[Row]:
    """Every network that is neither static nor joint minus its partner, and minus the best static one of at most as
    many parameters (by validation), over the same initialisations.
    """
    by_name = {point.name: point for point in points}
    found = list[Row]()
    for point, row in zip(points, rows, strict=True):
        if point.kind == "static":
            continue
        smaller = [r for r in frontier(rows, "params") if r["params"] <= row["params"]]
        others = [point.partner] if point.partner in by_name else []
        for name in [*others, *(r["name"] for r in smaller[-1:])]:
            other = by_name[name]
            paired = interval(point.played.test - other.played.test)
            found.append({"name": point.name, "minus": name, "kind": other.kind, **paired})
    return found


def summarise(points: Sequence[Point], study: Study) -> Row:
    """Everything, JSON-able."""
    rows = [figures(point) for point in points]
    return {
        "task": study.task.name,
        "data": study.task.data.record(),
        "envs": study.envs,
        "epochs": study.epochs,
        "rates": list(study.rates),
        "optimizer": study.task.settings.get("host_optimizer", Config.host_optimizer),
        "final_lr_fraction": study.task.settings.get("final_lr_fraction", 1.0),
        "seed": study.seed,
        "platform": platform.platform(),
        "torch": version("torch"),
        "rows": rows,
        "differences": compared(rows, points),
    }


def _cells(row: Row) -> str:
    parts = row["gflops_by_part"]
    rate = "its own" if row["rate"] is None else f"{row['rate']:g}"
    cells = [
        row["name"],
        row["kind"],
        rate,
        f"{row['params']:,.0f}",
        f"{row['test']['mean']:.2f} ± {row['test']['half_width']:.2f}",
        f"{row['validation']:.2f}",
        "" if row["late_gain"] is None else f"{row['late_gain']:+.2f}",
        f"{row['gflops']:.3g}",
        f"{parts['forward']:.3g} + {parts['backward']:.3g} + {parts['objective']:.3g}",
        f"{parts['validation']:.3g}",
    ]
    return f"| {' | '.join(cells)} |"


HEADS = (
    "network",
    "kind",
    "rate",
    "parameters",
    "test accuracy, %",
    "validation, %",
    "gained in the last fifth, pp",
    "GFLOP of training",
    "forward + backward + objective passes",
    "validation GFLOP",
)


def table(found: Row) -> str:
    """As markdown."""
    counts, split = found["data"]["samples"], found["data"]["split"]
    samples = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    rates = ", ".join(f"{rate:g}" for rate in found["rates"])
    by = f" of {found['optimizer']}"
    if found["final_lr_fraction"] < 1:
        by += f" along a cosine to {found['final_lr_fraction']:g} of it"
    chosen = (
        f"Each at its best of the rates {rates}{by}, chosen by validation"
        if "," in rates
        else f"All at the rate {rates}{by}"
    )
    lines = [
        f"# The frontier: {found['task']}\n",
        f"{found['envs']} initialisations of each, {found['epochs']} epochs; samples: {samples} ({split}). {chosen}; "
        f"test accuracy is a mean over initialisations ± half its 95 % interval. {found['platform']}, "
        f"torch {found['torch']}.\n",
        f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}",
        *map(_cells, found["rows"]),
        "\n| minus, same initialisations | | test accuracy, pp | lower bound |\n|---|---|---|---|",
    ]
    for row in found["differences"]:
        lower = row["mean"] - row["half_width"]
        lines.append(
            f"| {row['name']} | {row['kind']} {row['minus']} | {row['mean']:+.2f} ± {row['half_width']:.2f} "
            f"| {lower:+.2f} |"
        )
    return "\n".join(lines) + "\n"


def write(folder: Path, found: Row, name: str = "frontier") -> str:
    """Write ``<name>.md``, ``.json`` and ``.svg``; returns the markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table(found)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / f"{name}.svg").write_text(chart(found["rows"], f"The frontier: {found['task']}") + "\n")
    return text
