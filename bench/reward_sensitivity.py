"""What the numbers of the rewards do to J: ``python -m bench.reward_sensitivity --out bench/results/DATE-rewards``.

Policies of all kinds play the same environments. From their episodes come the returns of every mode, with its numbers
as they are and with each of them at 0, at half and at twice its value, within its bounds. Three figures say how far
such a return is from what growing is for: its rank correlation with J (test part) over all episodes and over policies'
means, and the J of the policy with the highest mean return: what maximising it over these policies would bring.
Nothing is trained, so that a number is judged by what it prefers, not by how easily a learner finds that. ``gamma`` and
``price`` are left out: the one is the learner's, the other defines J.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.bandits import HELD_OUT
from esper.leyline.hypers import numbers
from esper.runtime.policies import NAMED
from esper.runtime.rollout import Outcome, rollout
from esper.runtime.scene import Rules, Scene, build_scene
from esper.runtime.scripts import every_script, play
from esper.simic.reward_terms import EnvStep, RewardParams
from esper.simic.rewards import TERMS, RewardMode, build_reward_params
from esper.tamiyo.policies import Policy
from esper.utils import stats
from esper.utils.documents import to_json

FACTORS = (0.0, 0.5, 2.0)
"""Of a number's own value."""

LEFT_OUT = ("gamma", "price")
"""Numbers that are not varied."""

STARTS = (0, 12)
"""Epochs from which scripts grow."""


class Variant(NamedTuple):
    """A term of the rewards, with one number at another value; as it is, where no number is named."""

    term: str
    number: str = ""
    factor: float = 1.0

    @property
    def name(self) -> str:
        """One word."""
        return f"{self.term} {self.number} {self.factor:g}"


class Noted:
    """Rewards' numbers that note which of them are asked for."""

    def __init__(self, params: RewardParams) -> None:
        self._params, self.asked = params, set[str]()

    def __getattr__(self, name: str) -> Tensor:
        self.asked.add(name)
        return self._params.get(name)


def numbers_of(step: EnvStep) -> dict[str, list[str]]:
    """The numbers that every term reads."""
    found = {}
    for name, term in TERMS.items():
        noted = Noted(step.params)
        term.value(step._replace(params=noted))  # type: ignore[arg-type]  # asked for numbers, which it has
        found[name] = sorted(noted.asked - set(LEFT_OUT))
    return found


class Varied:
    """A reward whose terms are all variants of all terms, each by its name."""

    def __init__(self, params: RewardParams) -> None:
        self.params, self.variants = params, dict[Variant, RewardParams]()

    def __call__(self, step: EnvStep) -> dict[str, Tensor]:
        """Their values in a step."""
        if not self.variants:
            self.variants = dict(self._made(numbers_of(step)))
        return {v.name: TERMS[v.term].value(step._replace(params=p)) for v, p in self.variants.items()}

    def _made(self, read: Mapping[str, list[str]]) -> Iterator[tuple[Variant, RewardParams]]:
        for term, names in read.items():
            yield Variant(term), self.params
            for name, factor in ((name, factor) for name in names for factor in FACTORS):
                allowed = numbers(RewardParams)[name]
                yield (
                    Variant(term, name, factor),
                    self.params.replace(**{name: (self.params.get(name) * factor).clamp(allowed.low, allowed.high)}),
                )


def policies_of(scene: Scene) -> list[Policy]:
    """Policies that need no run, and scripts of every seed from early and from late on."""
    scripts = [play(scene.engine, script) for script in every_script(scene.engine.structure, STARTS)]
    return [*(make(scene, None) for make in NAMED.values()), *scripts]


class Returns(NamedTuple):
    """J and the variants' returns of all policies, [P, E] each."""

    utility: Tensor
    sums: dict[Variant, Tensor]


def play_all(scene: Scene) -> Returns:
    """One episode of every policy in every environment."""
    varied = Varied(build_reward_params({}, scene.engine.config))
    played: list[Outcome] = []
    for policy in policies_of(scene):
        played.append(rollout(scene.engine, policy, HELD_OUT, varied)[1])
        print(f"{policy.name}: J {float(played[-1].utility.mean()):.2f}", flush=True)
    terms = torch.stack([each.trace.terms.double().sum(0) for each in played])
    columns = {variant: terms[..., place] for place, variant in enumerate(varied.variants)}
    return Returns(torch.stack([each.utility for each in played]).double(), columns)


def figures(returns: Tensor, utility: Tensor) -> dict[str, float | None]:
    """How a return [P, E] agrees with J [P, E]: over episodes, over policies, and J of the policy that it prefers."""
    favourite = int(returns.mean(1).argmax())
    return {
        "episodes": stats.rank_correlation(returns.flatten(), utility.flatten()),
        "policies": stats.rank_correlation(returns.mean(1), utility.mean(1)),
        "J": float(utility[favourite].mean()),
    }


def returns_of(played: Returns, mode: RewardMode, number: str = "", factor: float = 1.0) -> Tensor:
    """A mode's return of every policy, with a number at a factor of its value, [P, E]."""
    total = torch.zeros_like(played.utility)
    for term in (name for name, term in TERMS.items() if mode in term.modes):
        total = total + played.sums.get(Variant(term, number, factor), played.sums[Variant(term)])
    return total


def assess(played: Returns) -> dict[str, Any]:
    """Figures of every mode as it is, and of every number in it by factor."""
    found = {}
    for mode in RewardMode:
        own = {v.number for v in played.sums if v.number and mode in TERMS[v.term].modes}
        numbers_in = {
            name: {f"{f:g}": figures(returns_of(played, mode, name, f), played.utility) for f in FACTORS}
            for name in sorted(own)
        }
        found[mode.value] = {"as it is": figures(returns_of(played, mode), played.utility), "numbers": numbers_in}
    return found


def shown(each: Mapping[str, float | None]) -> str:
    """Figures in a cell."""
    over = [each["episodes"], each["policies"]]
    return ", ".join("-" if value is None else f"{value:.2f}" for value in over) + f"; {each['J']:.1f}"


def text(found: Mapping[str, Any]) -> str:
    """The figures as Markdown; numbers that change none of them are named at the end of their mode."""
    lines = [
        f"# J's sensitivity to the rewards' numbers, {found['task']}, {found['envs']} environments",
        "",
        f"`{found['command']}`: {found['policies']} policies, the best of which has J {found['best']:.1f}. Rank "
        "correlation of return and J over episodes, over policies' means; J of the policy of the highest mean return.",
        "",
        "| mode | number | as it is | at 0 | at half | at twice |",
        "|---|---|---|---|---|---|",
    ]
    for mode, row in found["modes"].items():
        plain, changes, none = shown(row["as it is"]), dict[str, list[str]](), list[str]()
        for name, each in row["numbers"].items():
            cells = [shown(each[f"{factor:g}"]) for factor in FACTORS]
            if set(cells) == {plain}:
                none.append(f"`{name}`")
            else:
                changes[name] = cells
        lines += [f"| {mode} | `{name}` | {plain} | {' | '.join(cells)} |" for name, cells in changes.items()]
        lines += (
            [f"| {mode} | {', '.join(none)} | {plain} | {' | '.join(['the same'] * len(FACTORS))} |"] if none else []
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Play, assess, and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.reward_sensitivity", description=__doc__)
    parser.add_argument("--task", default="digits_varied")
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--out", default="bench/results/reward-sensitivity", help="path without suffix")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    scene, path = build_scene(Rules(task=asked.task), asked.envs, "auto"), Path(asked.out)
    played = play_all(scene)
    best = float(played.utility.mean(1).max())
    command = f"python -m bench.reward_sensitivity --task {asked.task} --envs {asked.envs}"
    found = {"task": asked.task, "envs": asked.envs, "command": command, "policies": len(played.utility), "best": best}
    found |= {"modes": assess(played)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(to_json(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text(json.loads(to_json(found))), encoding="utf-8")
    print(text(json.loads(to_json(found))))


if __name__ == "__main__":
    main()
