"""The report of a run: one HTML file that works offline, from what the run directory holds and what was played."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from esper.leyline.actions import OPTIONAL_OPS, Op
from esper.nissa import page
from esper.nissa.charts import Series, colour, line_chart, smooth, stacked_chart
from esper.nissa.markup import Markup
from esper.nissa.sinks import METRICS, read_rows, write_text
from esper.runtime.best_rounds import SMOOTHING
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.report_episodes import action_section, episode_section, seed_section
from esper.runtime.report_evaluation import evaluation_section, headline, value_section
from esper.runtime.report_frontier import frontier_section
from esper.runtime.rollout import Outcome
from esper.runtime.run_health import health_section, run_health
from esper.runtime.table import number

ROWS = 200
"""Rounds that a table lists at most; ``metrics.jsonl`` has all."""

CURVES = {
    "return": ("Return of an episode, training", "undiscounted return", ()),
    "val_accuracy": ("Validation accuracy at the end, training", "validation accuracy, %", ()),
    "entropy": ("Entropy of the policy", "nats", (0.0,)),
    "kl": ("Change of the policy by an update", "approximate KL, nats", (0.0,)),
    "explained_variance": ("Explained variance of the critic", "share of the variance", (1.0,)),
    "seed_params": ("Parameters in seeds at the end", "parameters", (0.0,)),
    "surprise": ("Surprise at recorded decisions", "nats", (0.0,)),
    "held_out_surprise": ("Surprise at decisions that are held out", "nats", (0.0,)),
    "policy_loss": ("Loss of the policy", "as the algorithm has it", ()),
    "action_value_loss": ("Error of the action values", "return squared", (0.0,)),
    "bellman_loss": ("Error of the action values", "return squared", (0.0,)),
    "penalty": ("Conservative penalty", "return", (0.0,)),
    "clipped": ("Rows whose weight is cut", "share", (0.0,)),
    "estimated_return": ("Return as recorded episodes tell", "discounted return", ()),
}
"""Curves by their name in ``metrics.jsonl``: title, unit, and what the axis must show."""

LISTED = (*CURVES, "refused", "rolled_back", "seconds")
"""Columns of the table of rounds."""

TIMES = {
    "hosts": "training hosts",
    "validation": "validating them",
    "collecting": "the rest of collecting",
    "learning": "learning",
}

OP_COLOURS = {
    Op.WAIT: 7,
    Op.GERMINATE: 4,
    Op.ADVANCE: 5,
    Op.CULL: 1,
    Op.FOSSILIZE: 2,
    Op.CHANGE_BLUEPRINT: 3,
    Op.RETARGET: 6,
}


class Findings(NamedTuple):
    """What was played at the end of a run; nothing, where it did not come to that.

    Attributes:
      evaluation: report of ``compare``.
      outcomes: of the same policies, the learned one first.
      blueprints: names.
      slots: where they are, such as ``block0`` and ``input:logits``.
    """

    evaluation: dict[str, Any] | None = None
    outcomes: tuple[Outcome, ...] = ()
    blueprints: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()


def write_report(folder: Path, findings: Findings, write: Callable[[Path, str], None] = write_text) -> None:
    """Write ``report.html`` into a run directory.

    Args:
      folder: holds ``config.json``, ``versions.json`` and ``metrics.jsonl``; beside it may lie a frontier.
      findings: what was played.
      write: writes a text to a path.

    Raises:
      SinkError: the metrics cannot be read.
    """
    config, versions = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "versions")
    )
    rows = read_rows(folder / METRICS)
    best = load_run(folder, "best").table["done"]
    frontier = frontier_section(folder, config["task"])
    health = health_section(run_health(folder, rows))
    write(folder / "report.html", report(config, versions, rows, best, findings, health, frontier))


def report(
    config: dict[str, Any],
    versions: dict[str, str],
    rows: list[dict[str, Any]],
    best: int,
    findings: Findings,
    *further: Markup,
) -> str:
    """The document.

    Args:
      config: settings of the run.
      versions: what it ran on.
      rows: of its metrics.
      best: round after which the best policy was stored.
      findings: what was played.
      *further: parts made elsewhere, such as the run's health, and static networks beside grown ones.
    """
    done, total = len(rows), config["rounds"]
    state = f"finished after {done} rounds" if done >= total else f"stopped after {done} of {total} rounds"
    sections = [
        page.header(
            f"Esper: {config['task']}, seed {config['seed']}",
            f"A policy that decides when to grow, {state}: {config['num_envs']} environments per round, reward "
            f"{config['reward']}. The best {SMOOTHING} rounds in a row ended with round {best}.",
        )
    ]
    if findings.evaluation is not None:
        mixes = [(outcome.policy, operation_series(outcome.operations)) for outcome in findings.outcomes]
        sections += [
            headline(findings.evaluation),
            evaluation_section(findings.evaluation),
            episode_section(findings.outcomes[0], findings.blueprints, findings.slots),
            action_section(mixes, operation_legend(max((series for _, series in mixes), key=len))),
            seed_section(findings.outcomes, findings.blueprints),
            value_section(findings.evaluation),
        ]
    else:
        sections.append(page.paragraph("Nothing was played on held-out environments.", kind="remark"))
    sections += [learning_section(rows), time_section(rows), *further, settings_section(config, versions)]
    return page.page(f"Esper: {config['task']}, seed {config['seed']}", *sections)


def operation_series(operations: Any) -> list[Series]:
    """Shares of the operations by decision, from counts [T, N], all of ``Op``."""
    share = operations.double() / operations.sum(1, keepdim=True)
    shown = [op for op in Op if op not in OPTIONAL_OPS or bool(share[:, int(op)].any())]
    return [Series(op.name, (100 * share[:, int(op)]).tolist(), OP_COLOURS[op]) for op in shown]


def operation_legend(series: Sequence[Series]) -> Markup:
    """Colours of the operations."""
    ops = [Op[line.name] for line in series]
    return page.legend([(f"c{OP_COLOURS[op]}", op.name.lower().replace("_", " ")) for op in ops])


def learning_section(rows: list[dict[str, Any]]) -> Markup:
    """Learning curves, their table, and the mix of operations over the rounds."""
    if not rows:
        return page.section("Learning", page.paragraph("No round was finished.", kind="remark"))
    charts = []
    for name, (title, unit, include) in _known(CURVES, rows).items():
        values = [row[name] for row in rows]
        lines, legend = [Series("round", values, 0)], None
        if name in ("return", "val_accuracy") and len(rows) >= 2 * SMOOTHING:
            lines.append(Series(f"mean of {SMOOTHING} rounds", smooth(values, SMOOTHING), 1))
            legend = page.legend([(colour(line, 0), line.name) for line in lines])
        charts.append(page.figure(title, line_chart(title, "round", unit, lines, include), legend))
    known = [op for op in Op if f"share_{op.name.lower()}" in rows[-1]]
    mix = [Series(op.name, [100 * row[f"share_{op.name.lower()}"] for row in rows], OP_COLOURS[op]) for op in known]
    if mix:
        chart = stacked_chart("Operations chosen in training", "round", "% of decisions", mix, 100.0)
        charts.append(page.figure("Operations chosen in training", chart, operation_legend(mix)))
    return page.section("Learning", page.figures(*charts), page.details("Numbers by round", _rounds(rows)))


def _rounds(rows: list[dict[str, Any]]) -> Markup:
    step = -(-len(rows) // ROWS)
    listed = [row for row in rows if row["round"] % step == 0 or row is rows[-1]]
    caption = "Every round" if step == 1 else f"Every {step}th round; metrics.jsonl has all"
    names = list(_known(dict.fromkeys(LISTED), rows))
    cells = [[str(row["round"]), *(number(row[name], ".4g") for name in names)] for row in listed]
    return page.table(["round", *(name.replace("_", " ") for name in names)], cells, caption)


Columns = TypeVar("Columns")


def _known(columns: Mapping[str, Columns], rows: list[dict[str, Any]]) -> dict[str, Columns]:
    """Those columns that every round has a number of: a run that plays has others than one that learns from records."""

    def is_told(name: str) -> bool:
        return all(name in row for row in rows) and any(row[name] == row[name] for row in rows)

    return {name: column for name, column in columns.items() if is_told(name)}


def split(row: dict[str, Any]) -> dict[str, float]:
    """Seconds of a round by what they were spent on; they add up to the round."""
    return {
        "hosts": row["host_seconds"] - row["validation_seconds"],
        "validation": row["validation_seconds"],
        "collecting": max(row["collect_seconds"] - row["host_seconds"], 0.0),
        "learning": row["learn_seconds"],
    }


def time_section(rows: list[dict[str, Any]]) -> Markup:
    """Where a round's time went."""
    if not rows:
        return Markup("")
    parts = [split(row) for row in rows]
    series = [Series(words, [part[name] for part in parts]) for name, words in TIMES.items()]
    legend = page.legend([(colour(row, index), row.name) for index, row in enumerate(series)])
    chart = page.figure("Time of a round", stacked_chart("Time of a round", "round", "seconds", series), legend)
    whole = sum(row["seconds"] for row in rows)
    sums = {name: sum(part[name] for part in parts) for name in TIMES}
    cells = [
        [words, f"{sums[name]:.1f}", f"{sums[name] / len(rows):.2f}", f"{100 * sums[name] / whole:.1f}"]
        for name, words in TIMES.items()
    ]
    heads = ("", "seconds", "per round", "% of all")
    numbers = page.table(heads, cells, "All rounds; the first includes compilation")
    return page.section("Time", page.figures(chart, numbers))


def settings_section(config: dict[str, Any], versions: dict[str, str]) -> Markup:
    """Settings and versions."""
    words = {
        name: json.dumps(value) if isinstance(value, (dict, bool)) else str(value) for name, value in config.items()
    }
    settings = page.table(("setting", "value"), list(words.items()), "config.json; resolved.json has every number")
    ran = page.table(("package", "version"), list(versions.items()), "versions.json")
    return page.section("Settings", page.details("Settings and versions", page.figures(settings, ran)))
