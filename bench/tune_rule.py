"""The rule of thumb with numbers that were searched for: ``python -m bench.tune_rule``.

Candidates are drawn from declared ranges, the shipped numbers among them, and play training environments (even seeds).
After every round the better half stays and plays the next seed (successive halving: Jamieson and Talwalkar 2016). A
candidate's score is its mean J on validation samples over all episodes so far. The winner and the shipped numbers then
meet on held-out environments, scored on the test part. The winner is written as settings: ``esper evaluate --config``.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from esper.nissa.sinks import write_text
from esper.runtime.policies import heuristic_of
from esper.runtime.rollout import Outcome, rollout
from esper.runtime.scene import Rules, Scene, build_scene
from esper.simic.utility import utility
from esper.tamiyo.policies import heuristic_policy
from esper.utils import rng
from esper.utils.documents import to_json
from esper.utils.stats import mean_interval

HELD_OUT, TRAINING = 1, 0
"""Seeds of environments; training ones are even."""

KEY = 0x7C4E
"""Of the candidates."""

RANGES: dict[str, tuple[float, ...]] = {
    "max_live": (1, 2, 3),
    "plateau_epochs": (0, 1, 2, 3, 5),
    "min_epochs": (0, 1, 2, 3, 5, 8),
    "cull_after": (3, 5, 8, 25),
    "max_drop": (1.0, 2.0, 5.0, 20.0),
    "least_contribution": (0.0, 0.5, 1.0, 2.0, 5.0),
    "embargo": (0, 2, 5),
    "penalty": (0.0, 2.0, 10.0),
}
"""What a number may be; beside them the rotation, any ordered choice of blueprints."""


def draw(number: int, blueprints: tuple[str, ...]) -> dict[str, Any]:
    """Candidate ``number`` as settings of ``--heuristic``; the shipped numbers are candidate 0."""
    if number == 0:
        return {}
    key = rng.fold_in(rng.key(KEY), number)
    words = rng.bits(key, (len(RANGES) + 1,)).tolist()
    chosen = {name: values[word % len(values)] for (name, values), word in zip(RANGES.items(), words, strict=False)}
    order = rng.permutation(rng.fold_in(key, 1), len(blueprints)).tolist()
    kept = order[: 1 + words[-1] % len(blueprints)]
    return chosen | {"rotation": tuple(blueprints[index] for index in kept)}


def play(scene: Scene, candidate: dict[str, Any], seed: int) -> Outcome:
    """An episode under the rule of thumb with some numbers."""
    policy = heuristic_policy(scene.engine.codec, heuristic_of(candidate, scene.engine.config.blends))
    return rollout(scene.engine, policy, seed, scene.mode, scene.params)[1]


def score(scene: Scene, outcome: Outcome) -> float:
    """Mean J on validation; of networks that were never validated the least there is, 0 %."""
    accuracy, host = outcome.val_accuracy.nan_to_num(0.0), scene.engine.structure.host.num_params
    return float(utility(accuracy, outcome.added, host, outcome.price).double().mean())


Candidate = TypeVar("Candidate")


def plays(candidates: int) -> int:
    """Episodes of each environment that ``search`` plays, over all rounds."""
    return candidates + (plays(math.ceil(candidates / 2)) if candidates > 2 else 0)


def search(
    scene: Scene, candidates: Sequence[Candidate], play: Callable[[Scene, Candidate, int], Outcome]
) -> list[dict[str, Any]]:
    """Successive halving.

    Args:
      scene: what is played.
      candidates: among whom.
      play: an episode of a candidate in the environments of a seed.

    Returns:
      a row a round: seed, and the mean score so far by candidate, the best first.
    """
    totals, rounds = dict.fromkeys(range(len(candidates)), 0.0), []
    left = list(totals)
    for number in range(1 + math.ceil(math.log2(len(candidates)))):
        seed = TRAINING + 2 * number
        for index in left:
            totals[index] += score(scene, play(scene, candidates[index], seed))
        left.sort(key=lambda index: -totals[index])
        rounds.append({"seed": seed, "scores": {str(index): totals[index] / (number + 1) for index in left}})
        best = totals[left[0]] / (number + 1)
        print(f"round {number + 1}: {len(left)} candidates, the best {left[0]} with J {best:.2f}", flush=True)
        left = left[: math.ceil(len(left) / 2)]
        if len(left) == 1:
            break
    return rounds


def cell(values: Tensor) -> dict[str, float]:
    """Mean and 95 % half-width over environments."""
    mean, half = mean_interval(values.double())
    return {"mean": mean, "half_width": half}


def verdict(scene: Scene, winner: dict[str, Any]) -> dict[str, Any]:
    """The winner and the shipped numbers on held-out environments, and their paired differences."""
    tuned, shipped = (play(scene, numbers, HELD_OUT) for numbers in (winner, {}))
    names = ("test_accuracy", "utility", "germinated", "fossilized", "added")
    rows = {
        name: {key: cell(getattr(outcome, key)) for key in names}
        for name, outcome in (("tuned", tuned), ("shipped", shipped))
    }
    gaps = {key: cell(getattr(tuned, key).double() - getattr(shipped, key).double()) for key in names}
    return rows | {"tuned minus shipped": gaps}


def toml(winner: dict[str, Any]) -> str:
    """The winner as a file of settings."""
    return "\n".join(["[heuristic]", *(f"{name} = {json.dumps(value)}" for name, value in winner.items())]) + "\n"


def text(found: dict[str, Any]) -> str:
    """What was found, as Markdown."""
    lines = [
        f"# The rule of thumb on {found['task']}, searched",
        "",
        f"{found['candidates']} candidates, {found['envs']} training environments a round, {len(found['rounds'])} "
        f"rounds; the winner is candidate {found['winner']}:",
        "",
        "```toml",
        toml(found["numbers"]).rstrip(),
        "```",
        "",
        f"On {found['held_out']} held-out environments, mean ± 95 % half-width:",
        "",
        "| numbers | test % | J | germinated | fossilized | added |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["verdict"].items():
        sign = "+" if "minus" in name else ""
        cells = [f"{each['mean']:{sign}.1f} ± {each['half_width']:.1f}" for each in row.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Search, compare, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune_rule", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", default="digits")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--envs", type=int, default=16, help="training environments a round")
    parser.add_argument("--held-out", type=int, default=128)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", default="bench/results/rule", help="path without suffix")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    scene = build_scene(Rules(task=asked.task), asked.envs, asked.backend)
    candidates = [draw(number, scene.engine.codec.blueprint_names) for number in range(asked.candidates)]
    rounds = search(scene, candidates, play)
    winner = int(next(iter(rounds[-1]["scores"])))
    found = {"task": asked.task, "candidates": asked.candidates, "envs": asked.envs, "held_out": asked.held_out}
    found |= {"rounds": rounds, "winner": winner, "numbers": candidates[winner]}
    path = Path(asked.out)
    write_text(path.with_suffix(".toml"), toml(candidates[winner]))
    fresh = build_scene(Rules(task=asked.task), asked.held_out, asked.backend)
    found["verdict"] = verdict(fresh, candidates[winner])
    write_text(path.with_suffix(".json"), to_json(found, indent=1) + "\n")
    write_text(path.with_suffix(".md"), text(found))
    print(text(found))


if __name__ == "__main__":
    main()
