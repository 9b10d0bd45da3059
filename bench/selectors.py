"""Does selecting pay? Bandits against fixed choices: ``python -m bench.selectors``.

Every policy meets the same held-out environments. What is scored is the accuracy gained per adaptation: test accuracy
at the end beyond that of the same host that waited, summed over environments, over the seeds germinated. Fixed arms
obey the bandits' limits; the best of them is chosen on other environments than it is scored on. Bandits are scored as
they start, and after some episodes on training environments, whose statistics they keep.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.engine import Engine
from esper.leyline.actions import Blend
from esper.runtime.compare import confidence, exploring
from esper.runtime.policies import NAMED, bandit_of
from esper.runtime.rollout import Outcome, policy_input, rollout
from esper.runtime.scene import Rules, Scene, build_scene
from esper.tamiyo.arms import ArmStatistics, arm_names
from esper.tamiyo.bandits import Bandit, always, bandit_policy
from esper.tamiyo.policies import Policy
from esper.tamiyo.selection import STRATEGIES
from esper.utils import rng
from esper.utils.documents import to_json

HELD_OUT, TRAINING = 1, 0
"""Seeds of environments; training ones are even."""

DRAWS, KEY = 10_000, 0xBA2D
"""Resamples of environments behind an interval, and their key."""

OFF = {"max_active": 1000, "cool_down": 0, "memory_share": 1.0}
"""Limits that forbid nothing."""

HEADS = (
    "test %",
    "J",
    "adaptations",
    "pp/adaptation",
    "minus first, pp",
    "minus best fixed, pp",
    "over first, %",
    "over best fixed, %",
    "exploring, % by third",
)
"""Columns of the table."""

DECISIONS = 400
"""Decisions that are timed."""


class Played(NamedTuple):
    """One policy on some environments; [E] each."""

    accuracy: Tensor
    utility: Tensor
    adaptations: Tensor
    facts: dict[str, Any]


def played(scene: Scene, policy: Policy, seed: int) -> tuple[Played, Outcome]:
    """Play an episode."""
    outcome = rollout(scene.engine, policy, seed, scene.mode, scene.params)[1]
    judged = confidence(outcome.trace)
    facts = {"exploring": exploring(outcome.trace), "brier": None if judged is None else judged["brier"]}
    columns = (outcome.test_accuracy, outcome.utility, outcome.germinated)
    return Played(*(column.double() for column in columns), facts), outcome


def learned(scene: Scene, name: str, bandit: Bandit, episodes: int) -> ArmStatistics | None:
    """What a bandit learns in some episodes on training environments."""
    statistics = None
    for episode in range(episodes):
        seed = TRAINING + 2 * episode
        outcome = played(scene, bandit_policy(name, bandit, statistics), seed)[1]
        statistics = outcome.memory.statistics
    return statistics


def interval(figure: Callable[[Tensor], Tensor], envs: int) -> dict[str, float]:
    """A figure and its 95 % percentile interval over environments drawn with replacement.

    Args:
      figure: of rows of environments, int64 [n, E] -> [n].
      envs: E.
    """
    drawn = rng.bits(rng.key(KEY), (DRAWS, envs)) % envs
    low, high = torch.quantile(figure(drawn), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": float(figure(torch.arange(envs)[None])), "low": low, "high": high}


def effectiveness(one: Played, wait: Played) -> Callable[[Tensor], Tensor]:
    """Accuracy gained per adaptation, pp, of rows of environments."""
    gain = one.accuracy - wait.accuracy
    return lambda rows: gain[rows].sum(1) / one.adaptations[rows].sum(1).clamp(min=1)


def row(one: Played, wait: Played, rivals: dict[str, Played]) -> dict[str, Any]:
    """A policy's figures, and beside every rival the difference per adaptation and the ratio less 1."""
    envs, mine = one.accuracy.shape[0], effectiveness(one, wait)
    found: dict[str, Any] = {
        "accuracy": interval(lambda rows: one.accuracy[rows].mean(1), envs),
        "utility": interval(lambda rows: one.utility[rows].mean(1), envs),
        "adaptations": float(one.adaptations.mean()),
        "effectiveness": interval(mine, envs),
        **one.facts,
    }
    for name, rival in rivals.items():
        other = effectiveness(rival, wait)
        found[f"minus {name}"] = interval(lambda rows, other=other: mine(rows) - other(rows), envs)
        if float(other(torch.arange(envs)[None])) > 0:
            found[f"over {name}"] = interval(lambda rows, other=other: 100 * (mine(rows) / other(rows) - 1), envs)
    return found


def seconds_of(engine: Engine, policy: Policy) -> dict[str, float]:
    """Processor time of one decision for all environments, ms: median and 99th percentile of DECISIONS."""
    state, envs = engine.init(HELD_OUT), engine.config.num_envs
    memory, times = policy.init(envs), []
    keys = rng.fold_in(rng.key(0), torch.arange(envs))
    seen = policy_input(engine, state, keys)
    for step in range(DECISIONS + 20):
        given = seen._replace(key=rng.fold_in(keys, step))
        began = time.process_time()
        policy.act(memory, given)
        times.append(1000 * (time.process_time() - began))
    median, late = torch.quantile(torch.tensor(times[20:]), torch.tensor([0.5, 0.99])).tolist()
    return {"median": median, "p99": late, "p99_per_env": late / envs}


def study(task: str, envs: int, episodes: int, backend: str) -> dict[str, Any]:
    """Play everything."""
    scene = build_scene(Rules(task=task), envs, backend)
    loose = scene._replace(rules=Rules(task=task, bandit=OFF))
    base = bandit_of(scene, "ucb")
    names = arm_names(scene.engine.codec, base.rule.blend)
    trial = {name: played(scene, bandit_policy(name, always(base, arm)), TRAINING)[0] for arm, name in enumerate(names)}
    waited = played(scene, NAMED["wait"](scene, None), TRAINING)[0]
    everyone = torch.arange(envs)[None]
    chosen = {name: float(effectiveness(one, waited)(everyone)) for name, one in trial.items()}
    best = max(chosen, key=lambda name: chosen[name])
    wait = played(scene, NAMED["wait"](scene, None), HELD_OUT)[0]
    fixed = {place: always(base, names.index(name)) for place, name in (("first", names[0]), ("best fixed", best))}
    rivals = {place: played(scene, bandit_policy(place, one), HELD_OUT)[0] for place, one in fixed.items()}
    rows = {place: row(one, wait, {}) for place, one in rivals.items()}
    for label, where, after in (("", scene, 0), (f" after {episodes}", scene, episodes), (" no limits", loose, 0)):
        for name in STRATEGIES:
            bandit = bandit_of(where, name)
            start = learned(where, name, bandit, after)
            rows[name + label] = row(played(where, bandit_policy(name, bandit, start), HELD_OUT)[0], wait, rivals)
            print(f"{name}{label}: {rows[name + label]['effectiveness']}", flush=True)
    return {
        "task": task,
        "envs": envs,
        "episodes": episodes,
        "arms": names,
        "blend": Blend(base.rule.blend).name.lower(),
        "best_fixed": best,
        "fixed_on_training": chosen,
        "wait": interval(lambda rows: wait.accuracy[rows].mean(1), envs),
        "rows": rows,
    }


def timings(task: str, sizes: tuple[int, ...], backend: str) -> dict[str, dict[str, dict[str, float]]]:
    """How long decisions take, by number of environments and strategy."""
    scenes = {size: build_scene(Rules(task=task), size, backend) for size in sizes}
    return {
        str(size): {name: seconds_of(scene.engine, NAMED[name](scene, None)) for name in STRATEGIES}
        for size, scene in scenes.items()
    }


def text(found: dict[str, Any]) -> str:
    """The study as Markdown."""

    def shown(cell: dict[str, float] | None, form: str = ".1f") -> str:
        return "" if cell is None else f"{cell['mean']:{form}} ({cell['low']:{form}} to {cell['high']:{form}})"

    lines = [
        f"# Selectors on {found['task']}: {found['envs']} held-out environments",
        "",
        f"`wait` ends at {shown(found['wait'])} % of the test part. pp/adaptation: accuracy gained beyond it per seed "
        f"germinated. The best fixed arm on training environments: {found['best_fixed']}; `first`: {found['arms'][0]}. "
        "Intervals: 95 %, bootstrap over environments, paired.",
        "",
        f"| policy | {' | '.join(HEADS)} |",
        "|---" * (1 + len(HEADS)) + "|",
    ]
    for name, each in found["rows"].items():
        explored = " ".join("-" if share is None else f"{100 * share:.0f}" for share in each["exploring"] or [])
        cells = [shown(each[key]) for key in ("accuracy", "utility")] + [f"{each['adaptations']:.1f}"]
        cells += [shown(each["effectiveness"])]
        cells += [shown(each.get(key), "+.1f") for key in ("minus first", "minus best fixed")]
        cells += [shown(each.get(key), "+.0f") for key in ("over first", "over best fixed")] + [explored]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Fixed arms on training environments, pp/adaptation:", ""]
    lines += [f"- {name}: {value:.1f}" for name, value in found["fixed_on_training"].items()]
    heading = "Processor time of a decision, ms (one thread): median, 99th percentile, the latter per environment:"
    lines += ["", heading, ""]
    for size, strategies in found["timings"].items():
        for name, each in strategies.items():
            times = ", ".join(f"{each[key]:.3f}" for key in ("median", "p99", "p99_per_env"))
            lines.append(f"- {name}, {size} environments: {times}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the study and write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.selectors", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", default="digits")
    parser.add_argument("--envs", type=int, default=128)
    parser.add_argument("--episodes", type=int, default=3, help="on training environments, before bandits are scored")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", default="bench/results/selectors", help="path without suffix")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {"timings": timings(asked.task, (1, asked.envs), asked.backend)}
    found |= study(asked.task, asked.envs, asked.episodes, asked.backend)
    path = Path(asked.out)
    path.with_suffix(".json").write_text(to_json(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text(json.loads(to_json(found))), encoding="utf-8")
    print(text(json.loads(to_json(found))))


if __name__ == "__main__":
    main()
