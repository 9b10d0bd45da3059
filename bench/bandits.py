"""Does selecting pay? Bandits against fixed choices: ``python -m bench.bandits``.

Every policy meets the same held-out environments. What is scored is the accuracy gained per adaptation: test accuracy
at the end beyond that of the same host that waited, summed over environments, over the seeds germinated. Fixed arms
obey the bandits' limits; the best of them is chosen on other environments than it is scored on. Bandits are scored as
they start, and after some episodes on training environments, whose statistics they keep. A study that was cut off goes
on where it was.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.book import Book, Page, page_of
from esper.engine import Engine
from esper.leyline.actions import Codec, Op
from esper.nissa.trace import Trace
from esper.runtime.policies import NAMED, bandit_of
from esper.runtime.rollout import Outcome, policy_input, rollout
from esper.runtime.scene import Rules, Scene, build_scene
from esper.tamiyo.arms import arm_names
from esper.tamiyo.bandits import always, bandit_policy
from esper.tamiyo.policies import Policy
from esper.tamiyo.selection import STRATEGIES
from esper.utils import rng
from esper.utils.documents import to_json

HELD_OUT, TRAINING = 1, 0
"""Seeds of environments; training ones are even."""

DRAWS, KEY = 10_000, 0xBA2D
"""Resamples of environments behind an interval, and their key."""

OFF = {"max_active": 1000, "cool_down": 0, "memory_share": 1.0}
"""Viability that forbids nothing."""

UNLIMITED, AFTER = " no limits", " after {}"
"""Behind a bandit's name: without viability, and after so many episodes."""

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
    "arms tried, %",
    "best fixed arm first, %",
)
"""Columns of the table."""

DECISIONS, WARM_UP = 1000, 25
"""Decisions that are timed, and that are made before."""


def outcome_of(scene: Scene, policy: Policy, seed: int) -> Outcome:
    """Play an episode."""
    return rollout(scene.engine, policy, seed, scene.mode, scene.params)[1]


def after(scene: Scene, name: str, episodes: int) -> Page:
    """A bandit on the held-out environments, with what it learned in some episodes on training environments."""
    bandit, statistics = bandit_of(scene, name), None
    for episode in range(episodes):
        seed = TRAINING + 2 * episode
        statistics = outcome_of(scene, bandit_policy(name, bandit, statistics), seed).memory.statistics
    played = outcome_of(scene, bandit_policy(name, bandit, statistics), HELD_OUT)
    tried = float((played.memory.statistics.chosen > 0).double().mean())
    return page_of(
        scene.engine, played, tried=tried, first_arms=first_arms(scene.engine.codec, bandit.arms, played.trace)
    )


def first_arms(codec: Codec, arms: Tensor, trace: Trace) -> list[float]:
    """How often each arm [N] was what an episode planted first; later on, its slot may be taken."""
    planted = trace.op == int(Op.GERMINATE)
    (envs,) = planted.any(0).nonzero(as_tuple=True)
    first = planted.to(torch.int8).argmax(0)[envs]
    place = torch.stack((trace.slot[first, envs], trace.kind[first, envs]), 1).long()
    found = (place[:, None] == torch.stack((codec.slot[arms], codec.blueprint[arms]), 1)).all(2)
    return (found.double().sum(0) / max(len(envs), 1)).tolist()


def interval(figure: Callable[[Tensor], Tensor], envs: int) -> dict[str, float]:
    """A figure and its 95 % percentile interval over environments drawn with replacement.

    Args:
      figure: of rows of environments, int64 [n, E] -> [n].
      envs: E.
    """
    drawn = rng.bits(rng.key(KEY), (DRAWS, envs)) % envs
    low, high = torch.quantile(figure(drawn), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": float(figure(torch.arange(envs)[None])), "low": low, "high": high}


def effectiveness(one: Page, wait: Page) -> Callable[[Tensor], Tensor]:
    """Accuracy gained per adaptation, pp, of rows of environments."""
    gain = one.test_accuracy - wait.test_accuracy
    return lambda rows: gain[rows].sum(1) / one.germinated[rows].sum(1).clamp(min=1)


def row(one: Page, wait: Page, rivals: dict[str, Page]) -> dict[str, Any]:
    """A policy's figures, and beside every rival the difference per adaptation and the ratio less 1."""
    envs, mine = one.test_accuracy.shape[0], effectiveness(one, wait)
    found: dict[str, Any] = {
        "accuracy": interval(lambda rows: one.test_accuracy[rows].mean(1), envs),
        "utility": interval(lambda rows: one.utility[rows].mean(1), envs),
        "adaptations": float(one.germinated.mean()),
        "effectiveness": interval(mine, envs),
        **one.facts,
    }
    for name, rival in rivals.items():
        other = effectiveness(rival, wait)
        found[f"minus {name}"] = interval(lambda rows, other=other: mine(rows) - other(rows), envs)
        if float(other(torch.arange(envs)[None])) > 0:
            found[f"over {name}"] = interval(lambda rows, other=other: 100 * (mine(rows) / other(rows) - 1), envs)
    return found


@torch.no_grad()
def milliseconds_of(engine: Engine, policy: Policy) -> dict[str, float]:
    """Processor time of one decision for all environments, ms: median and 99th percentile of DECISIONS.

    They are those of an episode, one after the other and again, each time with other keys.
    """
    state, envs, episode, times = engine.init(HELD_OUT), engine.config.num_envs, [], []
    memory, keys = policy.init(envs), rng.fold_in(rng.key(0), torch.arange(envs))
    for epoch in range(engine.config.horizon):
        episode.append((memory, policy_input(engine, state, rng.fold_in(keys, epoch))))
        memory, decision = policy.act(*episode[-1])
        state, _ = engine.step(state, decision.action)
    for number in range(DECISIONS + WARM_UP):
        memory, seen = episode[number % len(episode)]
        seen = seen._replace(key=rng.fold_in(keys, number))
        began = time.process_time()
        policy.act(memory, seen)
        times.append(1000 * (time.process_time() - began))
    median, late = torch.quantile(torch.tensor(times[WARM_UP:]), torch.tensor([0.5, 0.99])).tolist()
    return {"median": median, "p99": late, "p99_per_env": late / envs}


def study(book: Book, task: str, envs: int, episodes: int, backend: str) -> dict[str, Any]:
    """Play everything that the book does not have, and make the figures."""
    scene = build_scene(Rules(task=task), envs, backend)
    loose = scene._replace(rules=Rules(task=task, bandit=OFF))
    base = bandit_of(scene, "ucb")
    names = arm_names(scene.engine.codec, base.rule.blend)

    def fixed(arm: int, seed: int) -> Page:
        policy = bandit_policy(names[arm], always(base, arm))
        return book.page(f"{names[arm]}, seed {seed}", lambda: page_of(scene.engine, outcome_of(scene, policy, seed)))

    def waited(seed: int) -> Page:
        policy = NAMED["wait"](scene, None)
        return book.page(f"wait, seed {seed}", lambda: page_of(scene.engine, outcome_of(scene, policy, seed)))

    everyone, before = torch.arange(envs)[None], waited(TRAINING)
    trial = [float(effectiveness(fixed(arm, TRAINING), before)(everyone)) for arm in range(len(names))]
    best, wait = trial.index(max(trial)), waited(HELD_OUT)
    rivals = {"first": fixed(0, HELD_OUT), "best fixed": fixed(best, HELD_OUT)}
    rows = {place: row(one, wait, {}) for place, one in rivals.items()}
    kinds = [("", scene, 0), (UNLIMITED, loose, 0)]
    kinds += [(AFTER.format(episodes), scene, episodes)] if episodes else []
    for label, where, number in kinds:
        for name in STRATEGIES:
            found = book.page(name + label, partial(after, where, name, number))
            rows[name + label] = row(found, wait, rivals)
            if "first_arms" in found.facts:  # a book of before has none
                rows[name + label]["best_first"] = found.facts["first_arms"][best]
    return {
        "task": task,
        "envs": envs,
        "episodes": episodes,
        "arms": names,
        "best_fixed": names[best],
        "fixed_on_training": dict(zip(names, trial, strict=True)),
        "wait": interval(lambda rows: wait.test_accuracy[rows].mean(1), envs),
        "rows": rows,
    }


def timings(task: str, sizes: tuple[int, ...], backend: str) -> dict[str, dict[str, dict[str, float]]]:
    """How long decisions take, by number of environments and strategy."""
    scenes = {size: build_scene(Rules(task=task), size, backend) for size in sizes}
    return {
        str(size): {name: milliseconds_of(scene.engine, NAMED[name](scene, None)) for name in STRATEGIES}
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
        cells += [f"{100 * each[key]:.0f}" if key in each else "" for key in ("tried", "best_first")]
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
    parser = argparse.ArgumentParser(prog="python -m bench.bandits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", default="digits")
    parser.add_argument("--envs", type=int, default=128)
    parser.add_argument(
        "--episodes", type=int, default=3, help="on training environments, before bandits are scored once more; 0 = not"
    )
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", default="bench/results/bandits", help="path without suffix")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path, setup = Path(asked.out), {"task": asked.task, "envs": asked.envs}
    book = Book(path.with_suffix(".played.json"), setup)
    found = study(book, asked.task, asked.envs, asked.episodes, asked.backend)
    found["timings"] = timings(asked.task, (1, asked.envs), asked.backend)
    path.with_suffix(".json").write_text(to_json(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text(json.loads(to_json(found))), encoding="utf-8")
    print(text(json.loads(to_json(found))))


if __name__ == "__main__":
    main()
