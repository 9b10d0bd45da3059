"""The table of ``bench.isolation``, and what its rule says."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.leyline.config import Isolation
from esper.utils.stats import mean_interval

Row = dict[str, Any]
"""A cell at one isolation, as its file has it, or a line of the table."""

THROUGH, OWN, NONE = (member.value for member in (Isolation.STRAIGHT_THROUGH, Isolation.OBJECTIVE, Isolation.NONE))

MARGIN = 1.0
"""Points of the rule."""


def chosen(row: Row) -> int:
    """The rate, by its place, whose mean validation accuracy is highest at the end."""
    return int(torch.tensor(row["validation"]).mean(1).argmax())


def tested(row: Row) -> Tensor:
    """Test accuracy [N] at the best rate, pp."""
    return torch.tensor(row["test"][chosen(row)], dtype=torch.float64)


def cost_of_training(row: Row, waiting: Row) -> Tensor:
    """Validation accuracy that a host lacks, beside one that never grows, while its first seed is in TRAINING.

    Args:
      row: of a grown cell.
      waiting: of the host that never grows.

    Returns:
      [N]; mean over those epochs, pp.
    """
    best = chosen(row)
    own, other, during = (torch.tensor(part)[:, best] for part in (row["curve"], waiting["curve"], row["training"]))
    lost = torch.where(during, other - own, 0.0).double()
    return lost.sum(0) / during.sum(0).clamp(min=1)


def figures(row: Row, through: Row, waiting: Row) -> Row:
    """A line of the table."""
    best, gates = chosen(row), torch.tensor(row["gate"][chosen(row)], dtype=torch.float64)
    passed = ~gates.isnan()
    return {
        **{name: row[name] for name in ("task", "form", "optimizer", "isolation", "envs", "seconds", "backend")},
        "rate": row["rates"][best],
        "test": mean_interval(tested(row)),
        "minus": None if row["isolation"] == THROUGH else mean_interval(tested(row) - tested(through)),
        "by_rate": torch.tensor(row["test"]).mean(1).tolist(),
        "host_alone": float(tested(waiting).mean()),
        "gate": float(gates[passed].mean()) if passed.any() else None,
        "passed": 100 * float(passed.double().mean()),
        "permanent": 100 * float(torch.tensor(row["permanent"][best]).mean()),
        "lost": mean_interval(cost_of_training(row, waiting)),
    }


def combined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of independent means, each with its half-width, and its half-width."""
    return sum(mean for mean, _ in parts) / len(parts), math.sqrt(sum(half**2 for _, half in parts)) / len(parts)


def gains(rows: Sequence[Row], isolation: str, against: str) -> dict[str, tuple[float, float]]:
    """Test accuracy of an isolation minus another's, by task, over its cells; pp with half-widths."""
    found: dict[str, list[Tensor]] = {}
    for row in rows:
        if row["isolation"] == isolation:
            (other,) = (r for r in rows if r["isolation"] == against and same_cell(r, row))
            found.setdefault(row["task"], []).append(tested(row) - tested(other))
    return {task: mean_interval(torch.stack(cells).mean(0)) for task, cells in found.items()}


def same_cell(one: Row, other: Row) -> bool:
    """Whether two rows differ by their isolation at most."""
    return all(one[name] == other[name] for name in ("task", "form", "optimizer"))


def by_rule(rows: Sequence[Row]) -> str:
    """The isolation that the rule of ``bench.isolation`` makes the default."""
    own = gains(rows, OWN, THROUGH)
    mean, half = combined(list(own.values()))
    first = OWN if mean - half > 0 and all(m + h >= -MARGIN for m, h in own.values()) else THROUGH
    mean, half = combined(list(gains(rows, NONE, first).values()))
    return NONE if mean - half > MARGIN else first


def _interval(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:+.2f} ± {pair[1]:.2f}"


HEADS = (
    "task, form, optimizer",
    "isolation",
    "rate",
    "test, %",
    "minus straight-through, pp",
    "test at each rate, %",
    "epochs until the gate",
    "passed, %",
    "permanent at the end, %",
    "host's loss meanwhile, pp",
)


def _cells(line: Row) -> str:
    mean, half = line["test"]
    parts = [
        f"{line['task']}, {line['form']}, {line['optimizer']}",
        line["isolation"],
        f"{line['rate']:g}",
        f"{mean:.2f} ± {half:.2f}",
        _interval(line["minus"]),
        " / ".join(f"{value:.1f}" for value in line["by_rate"]),
        "" if line["gate"] is None else f"{line['gate']:.1f}",
        f"{line['passed']:.0f}",
        f"{line['permanent']:.0f}",
        _interval(line["lost"]),
    ]
    return f"| {' | '.join(parts)} |"


def table(rows: Sequence[Row]) -> tuple[str, Row]:
    """As markdown, and as numbers."""
    grown = [row for row in rows if row["form"] != "wait"]
    lines = list[Row]()
    for row in grown:
        (through,) = (r for r in grown if r["isolation"] == THROUGH and same_cell(r, row))
        (waiting,) = (
            r for r in rows if r["form"] == "wait" and all(r[n] == row[n] for n in ("task", "optimizer", "envs"))
        )
        lines.append(figures(row, through, waiting))
    sizes = {row["task"]: f"{row['envs']} initialisations, {row['epochs'] * row['steps']} steps" for row in rows}
    words = [
        "# What a seed in TRAINING learns by\n",
        f"{'; '.join(f'{task}: {size}' for task, size in sizes.items())}. Each at its best of three rates by "
        f"validation; ± is half a 95 % interval. torch {rows[0]['torch']}.\n",
        f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}",
        *map(_cells, lines),
        "\n| minus, over a task's cells, pp | "
        + " | ".join(sizes)
        + " | all tasks |\n|---|"
        + "---|" * (len(sizes) + 1),
    ]
    pairs = ((OWN, THROUGH), (NONE, THROUGH), (NONE, OWN))
    found = {f"{one} minus {other}": gains(grown, one, other) for one, other in pairs}
    for name, by_task in found.items():
        whole = combined(list(by_task.values()))
        words.append(f"| {name} | {' | '.join(_interval(by_task[task]) for task in sizes)} | {_interval(whole)} |")
    verdict = by_rule(grown)
    words.append(f"\nBy the rule written down before the run the default is `{verdict}`.")
    return "\n".join(words) + "\n", {"lines": lines, "gains": found, "default": verdict}


def write(folder: Path) -> str:
    """Write ``isolation.md`` and ``isolation.json`` beside the files of the cells; returns the markdown."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*-*-*-*.json"))]
    text, found = table(rows)
    (folder / "isolation.md").write_text(text)
    (folder / "isolation.json").write_text(json.dumps(found, indent=1) + "\n")
    return text
