"""How a run is doing, from the files of its directory: anomalies, trends, blueprints and a summary in words."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esper.nissa import page
from esper.nissa.anomalies import Anomaly, anomalies
from esper.nissa.blueprint_table import BlueprintLine, blueprint_table, costs_from
from esper.nissa.markup import Markup
from esper.nissa.narrative import Sentence, narrate
from esper.nissa.trends import Trend, trends
from esper.runtime.watching import OLDER_SEEDS, SEEDS, lines_of

BLUEPRINT_TABLE = "blueprint_table.json"
"""File of a run directory that holds the table of blueprints."""

TRENDS = ("return", "val_accuracy", "val_loss", "entropy", "seconds", "memory_bytes")
"""Series whose trend is told."""


class RunHealth(NamedTuple):
    """How a run is doing."""

    anomalies: list[Anomaly]
    trends: dict[str, Trend]
    blueprints: list[BlueprintLine]
    sentences: list[Sentence]


def run_health(folder: Path, rows: Sequence[Mapping[str, Any]]) -> RunHealth:
    """All that is told of a run beside its rows; what of its files cannot be read counts as absent.

    Args:
      folder: run directory, for ``resolved.json`` and ``seeds.jsonl``.
      rows: of its metrics.
    """
    found, table = anomalies(rows)[1], blueprint_table(rows, costs_from(_resolved(folder)))
    return RunHealth(found, trends(rows, TRENDS), table, narrate(rows, found, table, seed_reports(folder)))


def _resolved(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "resolved.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def seed_reports(folder: Path) -> list[dict[str, Any]]:
    """Field reports of the watched environments, the oldest first; lines that are none are left out."""
    found = []
    for line in (*lines_of(folder / OLDER_SEEDS), *lines_of(folder / SEEDS)):
        try:
            report = json.loads(line)
        except (ValueError, RecursionError):
            continue
        found += [report] if isinstance(report, dict) else []
    return found


def health_lines(health: RunHealth) -> str:
    """The summary as lines of a terminal, blueprints as a table."""
    lines = [f"{sentence.topic.value}: {sentence.text}" for sentence in health.sentences]
    if health.blueprints:
        width = max(len(line.blueprint) for line in health.blueprints)
        heads = ("blueprint", *HEADS[1:])
        lines.append("  ".join([f"{heads[0]:<{width}}", *(f"{head:>10}" for head in heads[1:])]))
        for row in blueprint_cells(health.blueprints):
            lines.append("  ".join([f"{row[0]:<{width}}", *(f"{cell:>10}" for cell in row[1:])]))
    return "".join(f"{line}\n" for line in lines)


HEADS = ("blueprint", "germinated", "fossilized", "culled", "success", "mean gain", "parameters", "cost")
"""Columns of the table of blueprints."""


def blueprint_cells(table: Sequence[BlueprintLine]) -> list[list[str]]:
    """The table of blueprints in words."""

    def cell(value: float | None, words: str) -> str:
        return "-" if value is None else words.format(value)

    return [
        [
            line.blueprint,
            *(str(count) for count in (line.germinated, line.fossilized, line.culled)),
            cell(line.success, "{:.0%}"),
            cell(line.gain, "{:+.2f}"),
            cell(line.params, "{:,}"),
            cell(line.multiplier, "x{:.2f}"),
        ]
        for line in table
    ]


def health_section(health: RunHealth) -> Markup:
    """The report's part on it."""
    told = page.bullets([f"{sentence.topic.value}: {sentence.text}" for sentence in health.sentences])
    parts = [told]
    if health.anomalies:
        parts.append(page.details("All anomalies", page.bullets([each.line for each in health.anomalies])))
    if health.blueprints:
        caption = (
            "Blueprints over all rounds: success among seeds that ended; mean gain in points of validation accuracy "
            "from germination to the end; cost is multiply-adds of host and seed over the host's"
        )
        parts.append(page.table(HEADS, blueprint_cells(health.blueprints), caption))
    return page.section("Health", *parts)


def blueprints_json(health: RunHealth) -> list[dict[str, Any]]:
    """The table of blueprints for JSON."""
    return [line._asdict() for line in health.blueprints]
