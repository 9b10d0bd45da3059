"""The table of a sweep: what came of each choice of settings, over its seeds."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.nissa.sinks import METRICS, SinkError, read_rows
from esper.runtime.best_rounds import SMOOTHING
from esper.tamiyo.policies import LEARNED
from esper.utils.stats import measured_interval

COLUMNS = {
    "return": "return of the last rounds",
    "val_accuracy": "validation, last rounds, %",
    "test_accuracy": "test, %",
    "utility": "J",
}
"""What is told of a run, and its head in the table; the last two of the learned policy's evaluation, if there was one.
"""


class Member(NamedTuple):
    """A run of a sweep."""

    varied: dict[str, Any]
    seed: int
    folder: Path
    failure: str


def sweep_table(members: Sequence[Member]) -> tuple[str, dict[str, Any]]:
    """The table in Markdown, best return first, and the same as data.

    Means are over seeds, with their 95 % interval (Student's t) of six seeds or more, and least and greatest of fewer.
    """
    choices = dict[str, list[Member]]()
    for member in members:
        choices.setdefault(_named(member.varied), []).append(member)
    rows = [_row(name, own) for name, own in choices.items()]
    rows.sort(key=lambda row: -_order(row["return"]["mean"]))
    told = [name for name in COLUMNS if any(row[name]["count"] for row in rows)]
    lines = [f"| settings | runs | {' | '.join(COLUMNS[name] for name in told)} |", "|---" * (len(told) + 2) + "|"]
    lines += [f"| {row['settings']} | {row['runs']} | {' | '.join(_cell(row[n]) for n in told)} |" for row in rows]
    failures = [f"failed: {member.folder.name}: {member.failure}" for member in members if member.failure]
    return "\n".join([*lines, *failures]) + "\n", {"rows": rows, "failures": failures}


def _named(varied: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in varied.items()) or "as given"


def _order(mean: float | None) -> float:
    return -math.inf if mean is None or math.isnan(mean) else mean


def _row(name: str, members: Sequence[Member]) -> dict[str, Any]:
    found = [_of_run(member.folder) for member in members]
    columns = {column: _over([run.get(column) for run in found]) for column in COLUMNS}
    return {"settings": name, "runs": sum(bool(run) for run in found), **columns}


def _of_run(folder: Path) -> dict[str, float]:
    """What came of a run; nothing, if it has no round."""
    try:
        rows = read_rows(folder / METRICS)[-SMOOTHING:]
    except (OSError, SinkError):
        return {}
    if not rows:
        return {}
    told = {name: sum(row[name] for row in rows) / len(rows) for name in ("return", "val_accuracy")}
    try:
        policies = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["policies"]
        learned = next(found for name, found in policies.items() if name.startswith(LEARNED))
        return told | {name: learned[name]["mean"] for name in ("test_accuracy", "utility")}
    except (OSError, ValueError, KeyError, StopIteration):
        return told


def _over(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and spread over seeds of what was measured."""
    known: Tensor = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if not len(known):
        return {"count": 0, "mean": None, "half": None, "least": None, "greatest": None}
    _, half, _ = measured_interval(known)
    mean, least, greatest = float(known.mean()), float(known.min()), float(known.max())
    return {"count": len(known), "mean": mean, "half": half, "least": least, "greatest": greatest}


def _cell(told: dict[str, Any]) -> str:
    if told["mean"] is None:
        return "-"
    if told["half"] is not None:
        return f"{told['mean']:.2f} ± {told['half']:.2f}"
    return (
        f"{told['mean']:.2f} ({told['least']:.2f} to {told['greatest']:.2f})"
        if told["count"] > 1
        else f"{told['mean']:.2f}"
    )
