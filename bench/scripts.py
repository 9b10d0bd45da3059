"""Does deciding pay on a task? Every script in the same environments: which is best where, and what that is worth.

    python -m bench.scripts --task digits_varied --groups price,label_noise --out bench/results/DATE-scripts-digits
    python -m bench.scripts --task chars_varied --envs 32 --kinds transformer16x1,transformer32x1 --groups price

Scripts grow one kind of seed, in one slot or in all that offer it, from an epoch on. Half of the environments choose,
by J on the validation samples: the best script of all, and the best one of every group of contexts. The other half
score the choices, by J on the test samples: each group's script less the best of all, paired; and every environment's
best script in hindsight, chosen by its own validation, which is above what any fixed script can reach. A group is where
each of the named numbers lies below or above the middle of its distribution. Nothing is learned.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.runtime.compare import cell
from esper.runtime.rollout import Outcome, rollout
from esper.runtime.scene import Rules, Scene, build_scene
from esper.runtime.scripts import WAIT, every_script, play, waiting
from esper.runtime.yardsticks import Scored, hindsight, score, seen_utility
from esper.tamiyo.policies import Policy

SHOWN = 3
"""Scripts of a group that are named."""


def policies_of(scene: Scene, starts: Sequence[int], kinds: Sequence[str]) -> Iterator[Policy]:
    """Waiting, and every script; of all kinds of seed if none is named."""
    yield waiting(scene.engine)
    for script in every_script(scene.engine.structure, starts):
        if not kinds or script.kind in kinds:
            yield play(scene.engine, script)


def play_all(scene: Scene, policies: Sequence[Policy], seed: int) -> list[Outcome]:
    """Play every script in the same environments; a line each to standard error."""
    outcomes = []
    for policy in policies:
        began = time.process_time()
        outcomes.append(rollout(scene.engine, policy, seed, scene.mode, scene.params)[1])
        spent, mean = time.process_time() - began, float(outcomes[-1].utility.nanmean())
        print(f"{len(outcomes):3d}/{len(policies)} {policy.name:32s} J {mean:6.2f} {spent:4.0f} s", file=sys.stderr)
    return outcomes


def groups_of(scene: Scene, seed: int, names: Sequence[str]) -> dict[str, Tensor]:
    """Groups of environments, bool [E], by name."""
    context, variation = scene.engine.init(seed).context, scene.engine.data.variation
    halves = []
    for name in names:
        high = context.get(name) >= variation.distributions[name].quantile(torch.tensor(0.5))
        halves.append(((f"{name} low", ~high), (f"{name} high", high)))
    return {
        ", ".join(name for name, _ in each): torch.stack([on for _, on in each]).all(0) for each in product(*halves)
    }


def odd(count: int) -> Tensor:
    """Every other environment, bool [count]: those that score, where all were played together."""
    return torch.arange(count) % 2 == 1


def assess(outcomes: Sequence[Scored], groups: dict[str, Tensor], scores: Tensor) -> dict[str, Any]:
    """What some environments choose, scored in the others.

    Args:
      outcomes: of every script, waiting among them.
      groups: of environments, bool [E], by name.
      scores: bool [E]; which environments score; the others choose.
    """
    names = [each.policy for each in outcomes]
    seen = torch.stack([seen_utility(each) for each in outcomes])
    tested = torch.stack([each.utility for each in outcomes])
    best = int(seen[:, ~scores].nanmean(1).argmax())
    ceiling, waited, fixed = hindsight(outcomes, names), tested[names.index(WAIT)], tested[best]
    rows = {}
    for name, group in groups.items():
        means = seen[:, group & ~scores].nanmean(1)
        own, on = int(means.argmax()), group & scores
        rows[name] = {
            "best": names[own],
            "by_validation": {names[i]: float(means[i]) for i in means.argsort(descending=True).tolist()[:SHOWN]},
            "J": cell(tested[own, on]),
            "less_best_of_all": cell((tested[own] - fixed)[on]),
            "waiting": cell(waited[on]),
        }
    return {
        "best_of_all": names[best],
        "J": {"waiting": cell(waited[scores]), "best_of_all": cell(fixed[scores]), "hindsight": cell(ceiling[scores])},
        "hindsight_less_best_of_all": cell((ceiling - fixed)[scores]),
        "score_of_best_of_all": score(fixed[scores], waited[scores], ceiling[scores]),
        "groups_won_by_another": sum(wins(row["less_best_of_all"]) for row in rows.values()),
        "groups": rows,
        "scripts": {each.policy: {"J": cell(each.utility[scores])} for each in outcomes},
    }


def wins(found: dict[str, Any]) -> bool:
    """Whether a difference is above 0 by its interval."""
    return found["mean"] is not None and found["mean"] > found["half_width"]


def shown(found: dict[str, Any], sign: str = "") -> str:
    """A mean with its half-width; - where nothing was measured."""
    return "-" if found["mean"] is None else f"{found['mean']:{sign}.2f} ± {found['half_width']:.2f}"


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"`{report['command']}`",
        "",
        f"{report['task']}: {report['environments']} environments from seed {report['seed']}, {report['horizon']} "
        "epochs; the even ones chose by J on validation samples, the odd ones score by J on test samples; mean ± 95 %.",
        "",
        *findings(report["found"]),
    ]
    return "\n".join(lines) + "\n"


def findings(found: dict[str, Any]) -> list[str]:
    """What ``assess`` found, as lines of Markdown."""
    best, reached = found["best_of_all"], found["score_of_best_of_all"]
    share = "undefined" if reached is None else f"{reached:.3f}"
    lines = [
        f"Best of all: {best}, J {shown(found['J']['best_of_all'])}; waiting {shown(found['J']['waiting'])}; every "
        f"environment's best in hindsight {shown(found['J']['hindsight'])}, "
        f"{shown(found['hindsight_less_best_of_all'], '+')} above it; score of the best of all "
        f"{share}. In {found['groups_won_by_another']} of {len(found['groups'])} groups "
        "another script is better, its interval above 0.",
        "",
        "| group | best script | J | less the best of all | waiting | environments |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["groups"].items():
        cells = (shown(row["J"]), shown(row["less_best_of_all"], "+"), shown(row["waiting"]))
        lines.append(f"| {name} | {row['best']} | {' | '.join(cells)} | {row['J']['measured']} |")
    lines += ["", "| script | J |", "|---|---|"]
    return lines + [f"| {name} | {shown(row['J'])} |" for name, row in found["scripts"].items()]


def main() -> None:
    """Play, assess, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits_varied")
    parser.add_argument("--envs", type=int, default=128)
    parser.add_argument("--seed", type=int, default=2, help="of the environments")
    parser.add_argument("--starts", default="0,12", help="epochs, with commas between")
    parser.add_argument("--kinds", default="", help="kinds of seed, with commas between; empty = all")
    parser.add_argument("--groups", default="price,label_noise", help="numbers of the context")
    parser.add_argument("--backend", default="auto", help="how networks are run")
    parser.add_argument("--out", default="", help="where OUT.json and OUT.md go; empty = the table is printed")
    given = parser.parse_args()
    scene = build_scene(Rules(task=given.task), given.envs, given.backend)
    kinds, starts = given.kinds.split(",") if given.kinds else [], [int(start) for start in given.starts.split(",")]
    outcomes = play_all(scene, list(policies_of(scene, starts, kinds)), given.seed)
    context = scene.engine.init(given.seed).context
    report = {
        "command": f"python -m bench.scripts {' '.join(sys.argv[1:])}",
        "task": given.task,
        "data": scene.engine.data.record(),
        "environments": given.envs,
        "seed": given.seed,
        "horizon": scene.engine.config.horizon,
        "found": assess(outcomes, groups_of(scene, given.seed, given.groups.split(",")), odd(given.envs)),
        "context": {name: values.tolist() for name, values in context.items()},
        "scripts": {
            each.policy: {name: getattr(each, name).tolist() for name in ("test_accuracy", "val_accuracy", "added")}
            for each in outcomes
        },
    }
    if given.out:
        Path(f"{given.out}.json").write_text(json.dumps(report) + "\n")
        Path(f"{given.out}.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
