"""Studies of scores as a page of markdown, JSON, and a chart each."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esper.nissa import charts
from esper.nissa.markup import Markup, element

STYLE = """svg { background: #ffffff; } text { font: 12px sans-serif; fill: #1b1f24; } .grid { stroke: #d8dee4; }
.axis, .mark { stroke: #57606a; } .mark { stroke-dasharray: 5 4; } .whisker { stroke-width: 2; }
.whisker.c0 { stroke: #0072b2; } .dot.c0 { fill: #0072b2; }
.whisker.c7 { stroke: #6e7781; } .dot.c7 { fill: #6e7781; }"""
"""The page's style, without variables, which few programs but browsers know."""
COLUMNS = {
    "rank": ("Spearman, accuracy", 2),
    "rank_loss": ("Spearman, loss", 2),
    "own": ("this environment's own", 2),
    "gain": ("choice brings, pp", 1),
    "random": ("minus random, pp", 1),
    "constant": ("minus constant, pp", 1),
    "regret": ("best minus choice, pp", 1),
}
"""Of ``ranking.assess``: heading and decimals."""
SAME_EVERYWHERE = ("parameters", "elsewhere")
"""Scores that know nothing of the environment."""


def cell(mean: dict[str, float], decimals: int) -> str:
    """A mean and its interval."""
    return f"{mean['mean']:.{decimals}f} ({mean['low']:.{decimals}f} to {mean['high']:.{decimals}f})"


def table(study: dict[str, Any]) -> str:
    """One study as markdown."""
    epochs = study["epochs"]
    lines = [
        f"## {study['task']}: {study['envs']} environments, {len(study['candidates'])} candidates\n",
        f"{epochs['warmup']} epochs of {epochs['steps']} SGD steps, then grown until epoch {epochs['horizon']}; "
        f"backend {study['backend']}, {study['seconds']:.0f} s. Waiting ends at {cell(study['waited'], 1)} %; a random "
        f"candidate adds {cell(study['random'], 1)} pp, the best in hindsight {cell(study['best'], 1)}.\n",
        f"| score | {' | '.join(head for head, _ in COLUMNS.values())} |\n|{'---|' * (1 + len(COLUMNS))}",
    ]
    for name, row in study["scores"].items():
        cells = [
            "" if key == "own" and name in SAME_EVERYWHERE else cell(row[key], decimals)
            for key, (_, decimals) in COLUMNS.items()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("\n| candidate | accuracy gained, pp | loss lowered, nats | made permanent |\n|---|---|---|---|")
    for name, row in study["candidates"].items():
        lines.append(f"| {name} | {row['accuracy']:.1f} | {row['loss']:.3f} | {100 * row['fossilized']:.0f} % |")
    return "\n".join(lines) + "\n"


def chart(study: dict[str, Any]) -> str:
    """Rank correlations of one study, as an SVG file that stands alone. An interval is drawn as wide as its wider
    side on both.
    """
    rows = []
    for name, row in study["scores"].items():
        mean, low, high = row["rank"].values()
        rows.append(charts.Interval(name, mean, max(mean - low, high - mean), 7 if name in SAME_EVERYWHERE else 0))
    title = f"{study['task']}: ranks of candidates by score and by accuracy gained, {study['envs']} environments"
    drawn = charts.interval_chart(title, "Spearman's rank correlation, mean and 95 % interval", rows, 0.0)
    style = element("style", Markup(STYLE))
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    return str(drawn).replace("<svg ", head, 1).replace("</svg>", f"{style}</svg>")


def write(folder: Path, name: str, studies: list[dict[str, Any]]) -> list[Path]:
    """Write ``<name>.md``, ``.json`` and a chart for each study; ``<name>`` gets their warm-up. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    warmup = studies[0]["epochs"]["warmup"]
    stem, made = f"{name}-warmup-{warmup}", {"platform": platform.platform(), "torch": version("torch")}
    text = (
        f"# {stem}\n\n{made['platform']}, torch {made['torch']}. Means over environments, 95 % bootstrap intervals; "
        "scores are taken on validation samples, gains on test samples. `constant` is the candidate that is "
        "best on average in the other environments; `this environment's own` is Spearman when every candidate's mean "
        "is taken away from score and gain.\n\n"
    ) + "\n".join(map(table, studies))
    files = {f"{stem}.md": text, f"{stem}.json": json.dumps({**made, "studies": studies}, indent=1) + "\n"}
    files |= {f"{stem}-{study['task']}.svg": chart(study) for study in studies}
    for file, content in files.items():
        (folder / file).write_text(content)
    return [folder / file for file in files]
