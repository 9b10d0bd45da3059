"""The comparison as text for a terminal."""

import math
from typing import Any

from esper.leyline.actions import OPTIONAL_OPS, Op
from esper.nissa.actions import PHASES
from esper.nissa.calibration import AHEAD
from esper.nissa.seeds import COURSE, REMOVED
from esper.runtime.compare import COLUMNS, columns_of, with_error

OPS = {op: op.name.lower().split("_")[0] for op in Op}
"""Headings of the operations."""


def table(report: dict[str, Any]) -> str:
    """All of a report of ``compare``, for people."""
    blocks = (_outcomes, _runs, _actions, _survival, _deciding, _calibration, _flags)
    return "\n".join(text for block in blocks if (text := block(report)))


def recorded_table(report: dict[str, Any]) -> str:
    """What of it can be said of recorded episodes, in which each policy played its own; for people."""
    blocks = (lambda given: _aligned(_means(given)), _actions, _survival, _flags)
    return "\n".join(text for block in blocks if (text := block(report)))


def percent(share: float | None) -> str:
    """A share as a whole percentage; - where undefined."""
    return "-" if share is None else f"{100 * share:.0f}"


def number(value: float | None, form: str = ".2f") -> str:
    """A number; - where undefined, or not measured (NaN)."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def _aligned(rows: list[list[str]]) -> str:
    """Rows of cells as lines: the first column to the left, the others to the right, as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        lines.append(
            f"{name:<{widths[0]}}"
            + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)).rstrip()
        )
    return "\n".join(lines) + "\n"


def _outcomes(report: dict[str, Any]) -> str:
    """Means and paired differences in one table, so that they stand below each other."""
    first, *_ = report["policies"]
    columns, rows = columns_of(report), _means(report)
    count = len(rows)
    for name, row in report["first_minus"].items():
        rows.append([f"  {name}", *(with_error(key, row[key], "+") for key in columns)])
    lines = _aligned(rows).splitlines(keepends=True)
    heading = (
        f"{report['task']}, {report['num_envs']} environments from seed {report['seed']}, {report['horizon']} decisions"
        f", reward {report['reward']}; mean ± 95 % half-width\n"
    )
    heading += f"{samples(report)}; {worth(report)}\n"
    return "".join(
        [
            heading,
            *lines[:count],
            f"\npaired differences, {first} minus\n",
            *lines[count:],
            *_unmeasured(report),
            f"{agreement(report)}\n",
            *_hindsight(report),
        ]
    )


def _means(report: dict[str, Any]) -> list[list[str]]:
    """Every policy's means, under their headings."""
    columns = columns_of(report)
    rows = [["policy", *(COLUMNS[key].head for key in columns)]]
    for name, row in report["policies"].items():
        rows.append([name, *(with_error(key, row[key]) for key in columns)])
    return rows


def _runs(report: dict[str, Any]) -> str:
    """Learned policies of several runs as one."""
    found = report["runs"]
    if found is None:
        return ""
    rows = [
        [COLUMNS[key].head, *(f"{found[key][end]:.{COLUMNS[key].decimals}f}" for end in ("iqm", "low", "high"))]
        for key in columns_of(report)
    ]
    heading = f"{found['count']} runs: interquartile mean of their means, 95 % interval by resampling runs\n"
    return heading + _aligned([["", "mean", "from", "to"], *rows])


def worth(report: dict[str, Any]) -> str:
    """What J is, with the report's own numbers."""
    price = f"{report['price']:g}" if isinstance(report["price"], float) else "price"
    return f"J = test % - {price} ln(1 + added / {report['host_params']:,})"


def agreement(report: dict[str, Any]) -> str:
    """How well the return ranks as J does."""
    found = report["rank_correlation"]
    episodes, policies = (number(found[over]) for over in ("episodes", "policies"))
    return f"rank correlation of return and J: {episodes} over episodes, {policies} over policies"


def _hindsight(report: dict[str, Any]) -> list[str]:
    """What share of the best scripts' gain each policy has, where environments differ."""
    found = report["hindsight"]
    if found is None:
        return []
    shares = ", ".join(f"{name} {number(share)}" for name, share in found["score"].items())
    best = with_error("utility", found["utility"])
    return [
        f"each environment's best of {len(found['scripts'])} scripts in hindsight, by its own validation: J {best}\n"
        f"score, the share of its gain over waiting: {shares}\n"
    ]


def _unmeasured(report: dict[str, Any]) -> list[str]:
    """A line for every mean that is not of all environments."""
    total = report["num_envs"]
    return [
        f"{name}, {COLUMNS[key].head}: of {row[key]['measured']} of {total} environments; the others were never "
        "validated: their networks were not finite from the first epoch on\n"
        for name, row in report["policies"].items()
        for key in columns_of(report)
        if key != "total_reward" and row[key]["measured"] < total
    ]


def samples(report: dict[str, Any]) -> str:
    """Which samples the accuracies are of."""
    sizes = report["data"]["samples"]
    return f"tested on {sizes['test']:,} samples that nothing else reads; decisions saw {sizes['validation']:,} others"


def _actions(report: dict[str, Any]) -> str:
    every = [third for policy in report["policies"].values() for third in policy["operations_by_third"]]
    ops = [op for op in Op if op not in OPTIONAL_OPS or any(third.get(op.name) for third in every)]
    rows = [["", *(OPS[op] for op in ops), "entropy of the mix", "of the policy"]]
    for name, policy in report["policies"].items():
        thirds = policy["operations_by_third"]
        cells = [" ".join(f"{percent(third[op.name]):>3}" for third in thirds) for op in ops]
        mix, own = (policy[f"{key}entropy_by_third"] for key in ("", "policy_"))
        rows.append([name, *cells, *(" ".join(f"{value:.2f}" for value in values or []) for values in (mix, own))])
    return f"operations carried out, % of the {', '.join(PHASES)} third of the episode; entropy, nats\n" + _aligned(
        rows
    )


def _survival(report: dict[str, Any]) -> str:
    rows = [["", "seeds", *(stage.name.lower() for stage in COURSE[1:]), "culled", "alive", "age at cull"]]
    for name, policy in report["policies"].items():
        row = policy["survival"]
        reached = [percent(row["reached"][stage.name]) for stage in COURSE[1:]]
        ends = [percent(culled_share(row)), percent(row["fate"]["ALIVE"]), number(row["median_cull_age"], "d")]
        rows.append([name, str(row["count"]), *reached, *ends])
    heading = "seeds germinated: % that reached each stage, were culled, were alive at the end; median age at a cull\n"
    return heading + _aligned(rows)


def culled_share(survival: dict[str, Any]) -> float | None:
    """Share of the seeds that were culled, by whomever; None without seeds."""
    shares = [survival["fate"][fate.name] for fate in REMOVED]
    return None if None in shares else sum(shares)


def _deciding(report: dict[str, Any]) -> str:
    """How sure policies were, and how much they tried out; policies that never did anything are left out."""
    rows = [["", "decisions", "confidence", "came better", "Brier", "slope", "exploring"]]
    for name, policy in report["policies"].items():
        found, explored = policy["confidence"], policy["exploring_by_third"]
        if found is not None:
            cells = [number(found[key]) for key in ("mean", "better", "brier", "slope")]
            rows.append([name, str(found["count"]), *cells, " ".join(map(percent, explored or []))])
    heading = (
        f"decisions that did something: mean confidence, share after which accuracy was higher {AHEAD} decisions on, "
        "Brier score\nand slope of the latter on the former; exploring choices, % by third of the episode\n"
    )
    return heading + _aligned(rows) if len(rows) > 1 else ""


def _calibration(report: dict[str, Any]) -> str:
    lines = []
    for name, policy in report["policies"].items():
        found = policy["calibration"]
        if found is None:
            continue
        lines.append(
            f"value calibration, {name}: return-to-go on value has slope {number(found['slope'])} and intercept "
            f"{number(found['intercept'])}; explained variance {number(found['explained_variance'])}\n"
        )
        rows = {"predicted": "predicted", "realised": "realised", "half_width": "± 95 %"}
        groups = [[f"  {head}", *(number(group[key]) for group in found["bins"])] for key, head in rows.items()]
        lines.append(_aligned(groups))
    return "".join(lines)


def _flags(report: dict[str, Any]) -> str:
    flags = [f"  {name}: {flag}\n" for name, row in report["policies"].items() for flag in row["red_flags"]]
    return "".join(["red flags\n", *flags]) if flags else ""
