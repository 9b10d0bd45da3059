"""What tuned schedules bring on environments and samples that nothing was tuned by: intervals, tables, a chart."""

import datetime
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.hyper_life import Bench, Outcome, Space, live, spread
from bench.hyper_tune import Costs
from esper.nissa import charts
from esper.nissa.charts import Series
from esper.nissa.markup import Markup, element
from esper.utils.stats import mean_interval, t_quantile

UNSEEN_SEED = 0
"""Seed of the first batch of environments in which everyone is measured; those of tuning and search are elsewhere."""

STYLE = Path(charts.__file__).with_name("style.css")


class Contender(NamedTuple):
    """A schedule and what it took to find it.

    Attributes:
      name: for people.
      point: [H].
      tuning: tuning losses of the steps or trials, in nats.
      lives: computation spent, as lives of the population without a derivative in the eager backend.
      seconds: processor seconds spent.
    """

    name: str
    point: Tensor
    tuning: list[float]
    lives: float
    seconds: float


class Mean(NamedTuple):
    """A mean with the half-widths of its 95 % intervals: over environments, and over environments and samples."""

    mean: float
    environments: float
    both: float


def crossed_mean(values: Tensor) -> Mean:
    """The mean of a table whose rows and columns are both samples of something larger.

    The variance of the mean of ``x_ev = m + a_e + b_v + c_ev`` is ``A / E + B / V + C / (E V)``. Variances of row means
    over E plus that of column means over V estimate it with ``C / (E V)`` counted twice: a little too wide (Owen 2007,
    "The pigeonhole bootstrap", has the same bound). Student's t with min(E, V) - 1 degrees of freedom.

    Args:
      values: [E, V], E and V >= 6.
    """
    rows, columns = values.double().mean(1), values.double().mean(0)
    variance = float(rows.var()) / rows.shape[0] + float(columns.var()) / columns.shape[0]
    mean, alone = mean_interval(rows)
    return Mean(mean, alone, t_quantile(0.975, min(values.shape) - 1) * math.sqrt(variance))


def measure(bench: Bench, space: Space, point: Tensor, environments: int) -> Outcome:
    """Live a schedule in environments that nothing was tuned by, and validate with held-out samples; [E, V]."""
    size, parts = bench.fast.config.num_envs, []
    for number in range(environments // size):
        state = bench.fast.init(UNSEEN_SEED + number)
        schedule = spread(space, point.expand(size, -1))
        parts.append(live(bench.fast, space.script, schedule, state, bench.held_out))
    return Outcome(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def compare(one: Outcome, other: Outcome) -> dict[str, Any]:
    """One minus the other, paired by environment and sample: loss in nats, accuracy in percentage points."""
    pairs = {"loss": one.losses - other.losses, "accuracy": 100 * (one.hits - other.hits)}
    return {name: crossed_mean(values)._asdict() for name, values in pairs.items()}


def summarise(contenders: Sequence[Contender], outcomes: Sequence[Outcome], main: int) -> list[dict[str, Any]]:
    """A row for each contender; the first is what the others are compared with, ``main`` what is compared with them."""
    rows = []
    for each, outcome in zip(contenders, outcomes, strict=True):
        rows.append(
            {
                "name": each.name,
                "lives": each.lives,
                "seconds": each.seconds,
                "loss": crossed_mean(outcome.losses)._asdict(),
                "accuracy": crossed_mean(100 * outcome.hits)._asdict(),
                "to defaults": compare(outcome, outcomes[0]),
                "hypergradient to it": compare(outcomes[main], outcome),
                "losses of environments": outcome.losses.mean(1).tolist(),
                "accuracies of environments": (100 * outcome.hits.mean(1)).tolist(),
                "tuning losses": each.tuning,
            }
        )
    return rows


def _signed(found: dict[str, float], digits: int) -> str:
    return f"{found['mean']:+.{digits}f} ± {found['both']:.{digits}f}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; differences are paired, half-widths over environments and samples."""
    heads = ["contender", "lives spent", "s", "loss, nats", "accuracy, %"]
    heads += ["loss - defaults", "accuracy - defaults, pp", "hypergradient's loss - its", "accuracy - its, pp"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        to, it = row["to defaults"], row["hypergradient to it"]
        cells = [row["name"], f"{row['lives']:.0f}", f"{row['seconds']:.0f}"]
        cells += [f"{row['loss']['mean']:.4f}", f"{row['accuracy']['mean']:.2f}"]
        cells += ["", ""] if row is rows[0] else [_signed(to["loss"], 4), _signed(to["accuracy"], 2)]
        same = row["name"] == "hypergradient"
        cells += ["", ""] if same else [_signed(it["loss"], 4), _signed(it["accuracy"], 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def schedule_table(space: Space, contenders: Sequence[Contender]) -> str:
    """Markdown: rates and alpha of every epoch, by contender."""
    names = [stage.name.lower() for stage in space.script.stages]
    lines = [f"| | {' | '.join(names)} |", f"|{'---|' * (1 + len(names))}"]
    for each in contenders:
        schedule = spread(space, each.point.unsqueeze(0))
        for what, values in zip(("host's rate", "seed's rate", "alpha"), schedule, strict=True):
            told = [f"{value:.3f}" for value in values[:, 0].tolist()]
            if what == "seed's rate":
                told = [text if epoch in space.script.learns else "" for epoch, text in enumerate(told)]
            lines.append(f"| {each.name}: {what} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def progress(each: Contender, steps: int) -> list[float]:
    """Tuning loss after each of ``steps`` equal parts of the computation; of a search, the best until then."""
    if len(each.tuning) == steps:
        return each.tuning
    kept = [value if math.isfinite(value) else math.inf for value in each.tuning]
    return [min(kept[: max(1, round(len(kept) * (step + 1) / steps))]) for step in range(steps)]


def draw(space: Space, contenders: Sequence[Contender], rows: Sequence[dict[str, Any]], equal: Sequence[int]) -> str:
    """The chart as one SVG file: differences to the defaults, schedules, and progress of those of ``equal`` budget."""
    first, tuned = (spread(space, each.point.unsqueeze(0)) for each in contenders[:2])
    bars = [
        charts.Interval(row["name"], row["to defaults"]["loss"]["mean"], row["to defaults"]["loss"]["both"], number)
        for number, row in enumerate(rows)
        if number
    ]
    rates = [Series("host, default", first.host_lr[:, 0].tolist(), 7), Series("host", tuned.host_lr[:, 0].tolist(), 1)]
    rates.append(Series("seed", tuned.seed_lr[:, 0].tolist(), 2))
    ramps = [Series("default", first.alpha[:, 0].tolist(), 7), Series("tuned", tuned.alpha[:, 0].tolist(), 1)]
    steps = len(contenders[1].tuning)
    lines = [Series(contenders[number].name, progress(contenders[number], steps), number) for number in equal]
    unit = "learning rate, 1 per SGD step"
    panels = [
        ("Held-out loss, less than with the defaults, nats", charts.interval_chart("", "nats", bars, 0.0), []),
        ("Learning rates by epoch", charts.line_chart("", "epoch", unit, rates, (0.0,)), rates),
        ("Alpha by epoch", charts.line_chart("", "epoch", "alpha", ramps, (0.0, 1.0)), ramps),
        ("Tuning loss by computation", charts.line_chart("", "outer steps", "nats", lines), lines),
    ]
    return stack(panels)


def stack(panels: Sequence[tuple[str, Markup, Sequence[Series]]]) -> str:
    """Charts one below the other, each under its title and the names of its lines, as a file of its own."""
    top, parts = 0.0, [element("style", Markup(STYLE.read_text(encoding="utf-8") + "svg { background: var(--paper) }"))]
    for title, chart, series in panels:
        size = re.match(r'<svg viewBox="0 0 (\S+) (\S+)"', chart)
        inside = re.fullmatch(r"<svg[^>]*>(.*)</svg>", chart, re.DOTALL)
        assert size and inside
        parts.append(element("text", title, x=14.0, y=top + 20, class_="row", font_weight="bold"))
        for number, each in enumerate(series):
            left, kind = 14.0 + 125 * number, each.colour
            parts.append(
                element("line", x1=left, x2=left + 26, y1=top + 38, y2=top + 38, class_=f"line c{kind} d{number}")
            )
            parts.append(element("text", each.name, x=left + 32, y=top + 42, class_="tick"))
        top += 50 if series else 28
        parts.append(element("g", Markup(inside[1]), transform=f"translate(0 {top:g})"))
        top += float(size[2])
    head = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {charts.WIDTH:g} {top + 10:g}"}
    return element("svg", *parts, **head) + "\n"


def write(folder: Path, name: str, text: str, numbers: dict[str, Any], chart: str) -> list[Path]:
    """Write ``<date>-<name>`` as .md, .json and .svg; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "-", f"{datetime.date.today().isoformat()} {name}".lower()).strip("-")
    contents = {"md": text, "json": json.dumps(numbers, indent=1) + "\n", "svg": chart}
    paths = [folder / f"{stem}.{kind}" for kind in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_text(content, encoding="utf-8")
    return paths


def costs_line(costs: Costs) -> str:
    """What a life of the population takes."""
    return (
        f"One life of the population, in processor seconds: {costs.tangent:.2f} with a tangent, {costs.plain:.2f} "
        f"without (ratio {costs.tangent / costs.plain:.2f}), {costs.fast:.2f} in the fastest backend."
    )
