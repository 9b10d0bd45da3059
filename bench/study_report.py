"""What a study found: figures, paired differences by training seed, and both as Markdown, JSON and pictures."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import bandits
from bench.book import Page
from bench.hyper_report import stack
from bench.scripts import findings
from bench.study_play import Trial
from esper.nissa.charts import Interval, interval_chart
from esper.nissa.sinks import write_text
from esper.runtime.compare import agreement, cell
from esper.runtime.scripts import WAIT
from esper.runtime.yardsticks import hindsight, score
from esper.utils import rng
from esper.utils.documents import to_json
from esper.utils.stats import stratified_interval

RUNS_KEY = 0x57D1
"""Of the resamples of training seeds."""

NAMES = 240.0
"""Pixels for the names of rows in pictures."""


def summarise(trial: Trial, rows: dict[str, Page], scripts: Sequence[str]) -> dict[str, Any]:
    """Everything, JSON-able.

    Args:
      trial: what was played.
      rows: everybody in the held-out environments, by name.
      scripts: names of waiting and the task's scripts, of which the best in hindsight is the ceiling.
    """
    ceiling, waited = hindsight(list(rows.values()), scripts), rows[WAIT].utility
    learned = {name: page for name, page in rows.items() if "learner" in page.facts}
    others = {name: page for name, page in rows.items() if name not in learned}
    best = max(others, key=lambda name: float(others[name].utility.nanmean()))
    return {
        "task": trial.task,
        "data": trial.held.engine.data.record(),
        "envs": trial.held.engine.config.num_envs,
        "choosing": trial.choosing.engine.config.num_envs,
        "horizon": trial.held.engine.config.horizon,
        "host_params": trial.held.engine.structure.host.num_params,
        "price": float(trial.held.params.price),
        "budget": trial.budget,
        "rows": {name: figures(page, waited, ceiling) for name, page in rows.items()},
        "hindsight": {"J": cell(ceiling), "scripts": list(scripts)},
        "best_other": best,
        "minus": {name: less(page, others) for name, page in learned.items()},
        "learners_over_seeds": over_seeds(list(learned.values()), others[best], waited, ceiling),
        "rank_correlation": agreement(list(rows.values())),
    }


def less(page: Page, others: dict[str, Page]) -> dict[str, Any]:
    """J of a policy minus that of every other, paired."""
    return {name: cell(page.utility - other.utility) for name, other in others.items()}


def figures(page: Page, waited: Tensor, ceiling: Tensor) -> dict[str, Any]:
    """A row."""
    return {
        "J": cell(page.utility),
        "test_accuracy": cell(page.test_accuracy),
        "return": cell(page.total_reward),
        "added": cell(page.added),
        "germinated": cell(page.germinated),
        "gflops": cell(page.gflops),
        "score": score(page.utility, waited, ceiling),
        "facts": page.facts,
        "J_by_environment": page.utility.tolist(),
    }


def over_seeds(learned: Sequence[Page], best: Page, waited: Tensor, ceiling: Tensor) -> dict[str, Any]:
    """Of every learner the interquartile mean over its training seeds, with a 95 % interval from resampling seeds: of
    J, of the score, and of J beyond that of the best of the others.
    """
    by_name = defaultdict[str, list[Page]](list)
    for page in learned:
        by_name[page.facts["learner"]].append(page)
    found = dict[str, Any]()
    for name, pages in by_name.items():
        seeds: dict[str, list[float]] = {
            "J": [float(page.utility.nanmean()) for page in pages],
            "score": [score(page.utility, waited, ceiling) or 0.0 for page in pages],
            "J beyond the best other": [float((page.utility - best.utility).nanmean()) for page in pages],
        }
        found[name] = {"seeds": len(pages)}
        for measure, values in seeds.items():
            middle, low, high = stratified_interval(torch.tensor(values).unsqueeze(1), rng.key(RUNS_KEY))
            found[name][measure] = {"iqm": middle, "low": low, "high": high, "by_seed": values}
    return found


def shown(found: dict[str, Any], form: str = ".1f") -> str:
    """A mean with its half-width; - where nothing was measured."""
    if found["mean"] is None:
        return "-"
    return f"{found['mean']:{form}} ± {found['half_width']:{form.lstrip('+')}}"


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        f"# Does a policy pay? {found['task']}",
        "",
        f"`{found['command']}`",
        "",
        f"{found['envs']} held-out environments, {found['horizon']} decisions each; J = test % - price of the "
        f"environment ({found['price']:g} times its own factor) x ln(1 + added / {found['host_params']:,}). What was "
        f"chosen was chosen by J on validation samples of {found['choosing']} other environments; searches played "
        f"about {found['budget']} episodes, as many as one training run. Mean ± half a 95 % interval over "
        "environments; GFLOP: of training the networks of one environment, not of training or searching a policy.",
        "",
        "| | J | score | test % | added | GFLOP |",
        "|---|---|---|---|---|---|",
    ]
    ranked = sorted(found["rows"].items(), key=lambda pair: -(pair[1]["J"]["mean"] or 0.0))
    ceiling = f"| each environment's best script in hindsight | {shown(found['hindsight']['J'])} | 1 | | | |"
    lines.append(ceiling)
    for name, row in ranked:
        share = "-" if row["score"] is None else f"{row['score']:.2f}"
        cells = (shown(row["J"]), share, shown(row["test_accuracy"]), f"{row['added']['mean']:,.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {row['gflops']['mean']:.3g} |")
    agrees = found["rank_correlation"]
    lines += ["", *_minus(found), *_seeds(found), ""]
    both = [f"{agrees[over]:.2f} over {over}" for over in agrees if agrees[over] is not None]
    lines.append(f"Rank correlation of return and J: {', '.join(both)}.")
    if "by_group" in found:
        chosen = f"The task's scripts, chosen by J on validation samples of {found['choosing']} environments for each "
        lines += ["", f"{chosen}group, scored in the {found['envs']} held-out ones:", "", *findings(found["by_group"])]
    return "\n".join([*lines, "", *_settings(found)]) + "\n"


def _minus(found: dict[str, Any]) -> list[str]:
    """Differences of every learned policy to all others, the best of them first."""
    learned = found["minus"]
    if not learned:
        return []
    others = sorted(next(iter(learned.values())), key=lambda name: -(found["rows"][name]["J"]["mean"] or 0.0))
    lines = [
        "J of the learned policies minus the others', paired. The best of the others is the one with the highest J in "
        "these environments, which favours it.",
        "",
        f"| minus | {' | '.join(learned)} |",
        "|---" * (1 + len(learned)) + "|",
    ]
    lines += [f"| {other} | {' | '.join(shown(row[other], '+.1f') for row in learned.values())} |" for other in others]
    return [*lines, ""]


def _seeds(found: dict[str, Any]) -> list[str]:
    """Interquartile means."""
    lines = []
    for name, row in found["learners_over_seeds"].items():
        parts = [
            f"{measure} {each['iqm']:.2f} ({each['low']:.2f} to {each['high']:.2f})"
            for measure, each in row.items()
            if measure != "seeds"
        ]
        lines.append(f"- {name}, interquartile mean over {row['seeds']} training seeds: {', '.join(parts)}")
    return lines


def _settings(found: dict[str, Any]) -> list[str]:
    """What was chosen, and how learners were trained."""
    learners = found["learners"].items()
    lines = [f"- learner {name}: {json.dumps(numbers) if numbers else 'as shipped'}" for name, numbers in learners]
    for name, row in found["rows"].items():
        facts = {key: value for key, value in row["facts"].items() if key not in ("exploring", "brier") and value != {}}
        lines += [f"- {name}: {json.dumps(facts)}"] if facts else []
    return lines


def pictures(found: dict[str, Any]) -> str:
    """J of everybody, and of the learned policies less the others', as a file that stands alone."""
    ranked = sorted(found["rows"].items(), key=lambda pair: -(pair[1]["J"]["mean"] or 0.0))
    rows = [_interval(name, row["J"], int(name not in found["minus"])) for name, row in ranked]
    charts = [("J, mean and 95 % interval over environments", interval_chart("", "pp", rows, left=NAMES), ())]
    for name, row in found["minus"].items():
        gaps = [_interval(other, row[other], 1) for other, _ in ranked if other in row]
        charts.append((f"J of {name}, minus the others'", interval_chart("", "pp", gaps, 0.0, NAMES), ()))
    return str(stack(charts))


def _interval(name: str, found: dict[str, Any], colour: int) -> Interval:
    mean, half = (math.nan if found[key] is None else found[key] for key in ("mean", "half_width"))
    return Interval(name, mean, half, colour)


def write(path: Path, found: dict[str, Any]) -> str:
    """Write the tables, the figures and the pictures; returns the Markdown."""
    said = table(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = "\n" + bandits.text(found["selectors"]) if "selectors" in found else ""
    write_text(path.with_suffix(".md"), said + beside)
    write_text(path.with_suffix(".json"), to_json(found, indent=1) + "\n")
    write_text(path.with_suffix(".svg"), pictures(found) + "\n")
    return said
