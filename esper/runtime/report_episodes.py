"""The report's part on episodes: swimlanes, what is done when, and what becomes of seeds."""

from collections.abc import Sequence
from typing import Any

import torch

from esper.leyline.stages import STAGES
from esper.nissa import page
from esper.nissa.actions import germinations
from esper.nissa.charts import Series, colour, stacked_chart
from esper.nissa.markup import Markup
from esper.nissa.seeds import COURSE, Lives, survival
from esper.nissa.swimlanes import INITIAL, SHOWN, swimlanes
from esper.runtime.rollout import Outcome
from esper.runtime.table import culled_share, number, percent

SAMPLES = {"worst": 0.0, "lower third": 1 / 3, "upper third": 2 / 3, "best": 1.0}
"""Episodes that are shown: their rank by return, as a share."""


def sample(outcome: Outcome) -> list[tuple[str, int]]:
    """Names and environments of the episodes shown; no environment twice."""
    order = outcome.total_reward.argsort(stable=True).tolist()
    chosen = {order[round(share * (len(order) - 1))]: name for name, share in SAMPLES.items()}
    return [(name, env) for env, name in chosen.items()]


def episode_section(outcome: Outcome, blueprints: tuple[str, ...], slots: tuple[str, ...]) -> Markup:
    """Sample episodes as swimlanes; ``slots`` says where they are."""
    stages = [(f"s-{stage.name.lower()}", f"{INITIAL[stage]} {stage.name.lower()}") for stage in SHOWN]
    meanings = [f"{stage.name.lower()}: {STAGES[stage].says}" for stage in SHOWN]
    parts = [page.legend(stages), page.details("What the stages mean", page.bullets(meanings))]
    for name, env in sample(outcome):
        earned, test, validation = (
            float(column[env]) for column in (outcome.total_reward, outcome.test_accuracy, outcome.val_accuracy)
        )
        title = (
            f"Environment {env} ({name} by return): return {earned:.2f}, test accuracy {test:.1f} %, "
            f"validation {validation:.1f} %"
        )
        parts.append(page.figure(title, swimlanes(outcome.trace, outcome.seeds, env, blueprints, title)))
    remark = (
        f"Episodes of {outcome.policy}, ranked by return. A lane is a slot; a block is a stage, from the decision that "
        "began it. The name is the blueprint of the seed. " + " ".join(_place(*slot) for slot in enumerate(slots))
    )
    return page.section("Episodes", page.paragraph(remark, kind="remark"), *parts)


def _place(slot: int, name: str) -> str:
    source, colon, target = name.partition(":")
    return f"Slot {slot} is a bypass from {source} to {target}." if colon else f"Slot {slot} is at {source}."


def action_section(mixes: Sequence[tuple[str, list[Series]]], legend: Markup) -> Markup:
    """The mix of operations over an episode, one chart per policy."""
    charts = []
    for policy, series in mixes:
        title = f"Operations over the episode: {policy}"
        charts.append(page.figure(title, stacked_chart(title, "decision", "% of environments", series, 100.0)))
    return page.section("Actions", legend, page.figures(*charts))


def seed_section(outcomes: Sequence[Outcome], blueprints: tuple[str, ...]) -> Markup:
    """When which blueprints are germinated, and how far seeds come."""
    first = outcomes[0]
    counts = germinations(first.trace, len(blueprints))
    series = [Series(name, counts[:, kind].tolist()) for kind, name in enumerate(blueprints)]
    title = f"Seeds germinated: {first.policy}"
    legend = page.legend([(colour(row, place), row.name) for place, row in enumerate(series)])
    chart = page.figure(title, stacked_chart(title, "decision", "seeds in all environments", series), legend)
    kinds = {name: _of_kind(first.seeds, kind) for kind, name in enumerate(blueprints)}
    by_kind = _survival_table({name: survival(seeds) for name, seeds in kinds.items()}, f"{first.policy}, by blueprint")
    by_policy = _survival_table({outcome.policy: survival(outcome.seeds) for outcome in outcomes}, "By policy")
    return page.section("Seeds", page.figures(chart), by_policy, by_kind)


def _of_kind(seeds: Lives, kind: int) -> Lives:
    chosen: torch.Tensor = seeds.kind == kind
    return Lives(*(column[chosen] for column in seeds))


def _survival_table(rows: dict[str, dict[str, Any]], caption: str) -> Markup:
    heads = ["", "seeds", *(f"{stage.name.lower()}, %" for stage in COURSE[2:]), "culled, %", "cull age"]
    cells = []
    for name, row in rows.items():
        reached = [percent(row["reached"][stage.name]) for stage in COURSE[2:]]
        ends = [percent(culled_share(row)), number(row["median_cull_age"], "d")]
        cells.append([name, str(row["count"]), *reached, *ends])
    note = f"{caption}: share of the seeds that reached a stage; median age at a cull, epochs"
    return page.table(heads, cells, note)
