"""The report's part on how policies compare: headline, outcomes with intervals, and value calibration."""

import math
from typing import Any

from esper.nissa import page
from esper.nissa.charts import Interval, identity_chart, interval_chart
from esper.nissa.markup import Markup
from esper.runtime.compare import COLUMNS, columns_of, with_error
from esper.runtime.table import agreement, number, samples, worth

CHARTED = {
    "test_accuracy": ("Test accuracy at the end", "test accuracy, %", "percentage points"),
    "total_reward": ("Return", "undiscounted return", "undiscounted return"),
}
"""Columns that are drawn: title, unit, and unit of a difference."""


def headline(evaluation: dict[str, Any]) -> Markup:
    """What a reader wants to know first, and what to be wary of."""
    policies, others = evaluation["policies"], evaluation["first_minus"]
    first = next(iter(policies))
    entries = [
        (f"test accuracy, {first}", _shown("test_accuracy", policies[first]) + " %", "mean, 95 % interval"),
        (f"validation accuracy, {first}", _shown("val_accuracy", policies[first]) + " %", "mean, 95 % interval"),
    ]
    for name, row in others.items():
        remark = f"percentage points of test accuracy; return {_shown('total_reward', row, '+')}"
        entries.append((f"{first} minus {name}", _shown("test_accuracy", row, "+"), remark))
    flags = policies[first]["red_flags"]
    warned = page.bullets([f"{first}: {flag}" for flag in flags], kind="flags") if flags else Markup("")
    theirs = "; ".join(f"{name}: {flag}" for name in others for flag in policies[name]["red_flags"])
    remark = f"{'' if flags else f'No red flags for {first}. '}Of the baselines: {theirs or 'none'}."
    return Markup(page.tiles(entries) + warned + page.paragraph(remark, kind="remark"))


def _ends(cell: dict[str, Any]) -> tuple[float, float]:
    """Mean and half-width; NaN where there is none."""
    mean, half = cell["mean"], cell["half_width"]
    return math.nan if mean is None else mean, math.nan if half is None else half


def _shown(name: str, row: dict[str, Any], sign: str = "") -> str:
    return with_error(name, row[name], sign)


def evaluation_section(evaluation: dict[str, Any]) -> Markup:
    """Every policy's outcomes, and the paired differences."""
    policies, others = evaluation["policies"], evaluation["first_minus"]
    first, charts = next(iter(policies)), []
    for name, (title, unit, gap) in CHARTED.items():
        means = [Interval(policy, *_ends(row[name]), 0 if policy == first else 7) for policy, row in policies.items()]
        charts.append(page.figure(title, interval_chart(title, unit, means)))
        gaps = [Interval(policy, *_ends(row[name])) for policy, row in others.items()]
        paired = f"{title}, {first} minus the other, paired"
        charts.append(page.figure(paired, interval_chart(paired, f"difference, {gap}", gaps, mark=0.0)))
    columns = columns_of(evaluation)
    heads = ["policy", *(COLUMNS[name].head for name in columns)]
    means_table = [[policy, *(_shown(name, row) for name in columns)] for policy, row in policies.items()]
    gaps_table = [[policy, *(_shown(name, row, "+") for name in columns)] for policy, row in others.items()]
    remark = (
        f"{evaluation['num_envs']} environments from seed {evaluation['seed']}, {evaluation['horizon']} decisions "
        "each. Training never used these seeds, and every policy met the same hosts and the same data, so "
        f"differences are paired. Networks at the end were {samples(evaluation)}. {worth(evaluation)}; "
        f"{agreement(evaluation)}."
    )
    return page.section(
        "Against the baselines",
        page.paragraph(remark, kind="remark"),
        page.figures(*charts),
        page.table(heads, means_table, "Mean ± 95 % half-width"),
        page.table([f"{first} minus", *heads[1:]], gaps_table, "Paired differences ± 95 % half-width"),
    )


def value_section(evaluation: dict[str, Any]) -> Markup:
    """How well the critic foresees returns."""
    parts = []
    for policy, row in evaluation["policies"].items():
        found = row["calibration"]
        if found is not None:
            parts.append(_calibration(policy, found))
    if not parts:
        return Markup("")
    remark = (
        "Each point is a tenth of all decisions, by predicted value. The outcome is the discounted return from the "
        "decision on. Whiskers are 95 % intervals over environments."
    )
    return page.section("Value calibration", page.paragraph(remark, kind="remark"), *parts)


def _calibration(policy: str, found: dict[str, Any]) -> Markup:
    groups = found["bins"]
    points = [(group["predicted"], group["realised"], group["half_width"]) for group in groups]
    title = f"Predicted and realised return-to-go, {policy}"
    chart = identity_chart(title, "predicted value", "realised return-to-go", points)
    cells = [
        [str(place), str(group["count"]), *(number(group[name]) for name in ("predicted", "realised", "half_width"))]
        for place, group in enumerate(groups, start=1)
    ]
    caption = (
        f"Return-to-go on value: slope {number(found['slope'])}, intercept {number(found['intercept'])}; "
        f"explained variance {number(found['explained_variance'])}"
    )
    heads = ("group", "decisions", "predicted", "realised", "± 95 %")
    return page.figures(page.figure(title, chart), page.table(heads, cells, caption))
