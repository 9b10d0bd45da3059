"""Offline learning on ``digits``: what is learned from a mix of records, against the mix, its best script and PPO.

    python -m bench.offline --quick            a few minutes; the same parts at a size that shows nothing
    python -m bench.offline --out runs/offline the study; a part that is there already is not made again

One PPO run gives the mix its learned policy. ``esper generate`` records 2,000 episodes of wait, random, three scripts
and that policy. From all of it: BC, BC by the small network without memory, IQL and CQL; from all but the episodes of
the best script: BC and IQL; and BC of the best recorded policy alone, by mean return. Every policy plays the same
held-out environments, whose seed no record has; each is compared with the others by paired differences and their 95 %
intervals (Student's t). PPO from the start and PPO that starts from IQL's policy go on side by side.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.nissa.sinks import METRICS, read_rows
from esper.runtime.generate import GenerateSettings, generate
from esper.runtime.learn import learn
from esper.runtime.policies import NAMED
from esper.runtime.policy_checkpoint import load_policy, load_run
from esper.runtime.rollout import rollout
from esper.runtime.scene import Rules, Scene, build_scene
from esper.runtime.scripts import play
from esper.runtime.task import Script
from esper.runtime.train_settings import TrainSettings
from esper.simic.episodes.dataset import Episodes
from esper.tamiyo.policies import Policy
from esper.utils.documents import to_json
from esper.utils.files import replace_file
from esper.utils.stats import mean_interval

TASK, SEED = "digits", 1
"""What is played; odd, as records and rounds have even seeds."""

SCRIPTS = ("conv8x2", "conv4x2", "bottleneck")
"""Blueprints that the scripts of the mix grow, and where; the first is the task's best."""

LEARNERS = {
    "bc": ("bc", "recurrent"),
    "bc mlp": ("bc", "mlp"),
    "iql": ("iql", "recurrent"),
    "cql": ("cql", "recurrent"),
}
"""By name in the table: algorithm and network."""

NUMBERS = {"iql": {"beta": 1.0, "horizon": "end", "target_rate": 0.05, "fitted": 0}}
"""Numbers of an algorithm that are not the defaults. A row of beta 3 weighs e^3 times one whose advantage is a point
less, and returns differ by tens of points: nearly all weights are cut. Targets of rate 0.005 would follow in 200 of the
study's 1,000 updates; and what lies behind the last decision is worth nothing here (``esper.simic.ppo``).
"""

TUNING = {"lr": 3e-4, "entropy_start": 0.002, "entropy_end": 0.001}
"""How PPO goes on from IQL's policy: as from demonstrations (``bench.study``), in small steps. By the defaults, which
are for a policy that knows nothing, returns fall first and did not come back within seven rounds.
"""


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
      episodes: recorded; envs: held out; rounds: of PPO; offline: rounds of an offline learner; updates: in each;
      fitted: regressions of the values at its end; tuned: rounds of PPO that starts from IQL's policy.
    """

    episodes: int = 2000
    envs: int = 128
    rounds: int = 24
    offline: int = 5
    updates: int = 200
    fitted: int = 200
    tuned: int = 12


QUICK = Sizes(episodes=48, envs=8, rounds=1, offline=1, updates=5, fitted=10, tuned=1)


def shares(folder: Path) -> str:
    """The mix: a quarter each wait, random and learned, the scripts between them the rest."""
    scripts = ",".join(f"script:{name}:{0.25 / len(SCRIPTS)!r}" for name in SCRIPTS)
    rest = 1 - 0.5 - sum(0.25 / len(SCRIPTS) for _ in SCRIPTS)
    return f"wait:0.25,random:0.25,{scripts},{folder}:{rest!r}"


def run(out: Path, name: str, **settings: Any) -> Path:
    """A training run under a name, made or gone on with; its directory."""
    folder = out / name.replace(" ", "-")
    print(f"{folder}", flush=True)
    learn(TrainSettings(task=TASK, eval_envs=0, progress="lines", out=str(folder), resume="auto", **settings))
    return folder


def record(out: Path, sizes: Sizes, mix: str, name: str = "mix") -> Path:
    """Records under a name, made or gone on with."""
    folder = out / name
    generate(GenerateSettings(task=TASK, out=str(folder), policies=mix, episodes=sizes.episodes, progress="lines"))
    return folder


def returns_by_policy(episodes: Episodes) -> dict[str, Tensor]:
    """Returns of recorded episodes, undiscounted, by who played."""
    reward, place = episodes.read("reward").double(), torch.arange(len(episodes)).repeat_interleave(episodes.lengths)
    whole = torch.zeros(len(episodes), dtype=torch.float64).index_add(0, place, reward)
    who = episodes.read("policy")[episodes.starts]
    names = [str(policy["name"]) for policy in episodes.manifest.policies]
    return {name: whole[who == number] for number, name in enumerate(names)}


def learners(
    out: Path, dataset: Path, sizes: Sizes, suffix: str, only: Sequence[str] = tuple(LEARNERS)
) -> dict[str, Path]:
    """Offline runs on a dataset, by name in the table."""
    made = {}
    for name in only:
        algorithm, network = LEARNERS[name]
        numbers = {"updates": sizes.updates, "fitted": sizes.fitted} | NUMBERS.get(algorithm, {})
        settings: dict[str, Any] = {"policy_network": network, "rounds": sizes.offline, "offline": numbers}
        made[f"{name}{suffix}"] = run(out, f"{name}{suffix}", algorithm=algorithm, dataset=str(dataset), **settings)
    return made


def players(scene: Scene, runs: dict[str, Path]) -> dict[str, Policy]:
    """Everybody who plays, by name: those of the mix, and those that were learned."""
    own = {name: NAMED[name](scene, None) for name in ("wait", "random")}
    for words in SCRIPTS:
        kind, _, slots = words.partition(" in ")
        script = Script(kind, int(slots or 0))
        own[script.name] = play(scene.engine, script)
    learned = {
        name: load_policy(load_run(folder), scene.engine.interface, greedy=False) for name, folder in runs.items()
    }
    return own | learned


def played(out: Path, sizes: Sizes, runs: dict[str, Path]) -> dict[str, dict[str, list[float]]]:
    """Return and J of everybody in every held-out environment; what was played before is read."""
    file = out / "played.json"
    found: dict[str, dict[str, list[float]]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    scene = build_scene(Rules(task=TASK), sizes.envs, "auto")
    for name, policy in players(scene, runs).items():
        if name not in found:
            print(f"playing {name}", flush=True)
            _, outcome = rollout(scene.engine, policy, SEED, scene.mode, scene.params)
            found[name] = {"return": outcome.total_reward.tolist(), "J": outcome.utility.double().tolist()}
            replace_file(file, to_json(found).encode())
    return found


def told(values: Tensor) -> str:
    """Mean and half-width."""
    mean, half = mean_interval(values)
    return f"{mean:+8.3f} ± {half:.3f}"


def table(found: dict[str, dict[str, list[float]]], recorded: dict[str, Tensor]) -> str:
    """Everybody's return and J, and the paired differences that the study is about."""
    numbers = {name: {key: torch.tensor(row[key]) for key in row} for name, row in found.items()}
    lines = ["recorded returns, by policy"]
    lines += [f"  {name:<34}{len(values):6d}  {float(values.mean()):8.3f}" for name, values in recorded.items()]
    whole = torch.cat(list(recorded.values()))
    lines += [f"  {'all of the mix':<34}{len(whole):6d}  {told(whole)}", "", "held-out environments: return, J"]
    for name, row in numbers.items():
        lines.append(f"  {name:<34}{told(row['return'])}   {told(row['J'])}")
    lines += ["", "paired differences of the return"]
    pairs = [("iql", "bc"), ("iql", "bc best recorded"), ("cql", "bc"), ("iql", "ppo"), ("bc", "bc mlp")]
    pairs += [(f"{name} without best", f"grow {SCRIPTS[0]}") for name in LEARNERS] + [("iql tuned", "ppo")]
    for first, second in pairs:
        if first in numbers and second in numbers:
            lines.append(f"  {f'{first} - {second}':<34}{told(numbers[first]['return'] - numbers[second]['return'])}")
    return "\n".join(lines) + "\n"


def curve(folder: Path) -> list[float]:
    """Mean return of every round of a run."""
    return [row["return"] for row in read_rows(folder / METRICS)]


def catching_up(tuned: Path, fresh: Path) -> str:
    """In which round either run first reaches the mean return of the last fifth of PPO's rounds."""
    theirs, ours = curve(fresh), curve(tuned)
    last = theirs[-max(1, len(theirs) // 5) :]
    level = sum(last) / len(last)
    when = {
        name: next((n for n, value in enumerate(row, 1) if value >= level), None)
        for name, row in (("ppo", theirs), ("tuned", ours))
    }
    return (
        f"PPO's level {level:.3f}: reached by PPO in round {when['ppo']}, from IQL's policy in round {when['tuned']}\n"
    )


def study(out: Path, sizes: Sizes) -> str:
    """All parts; those that are there already are read."""
    ppo = run(out, "ppo", rounds=sizes.rounds)
    mix = record(out, sizes, shares(ppo))
    recorded = returns_by_policy(Episodes.open(mix))
    best = max(recorded, key=lambda name: float(recorded[name].mean()))
    count = len(recorded[best])
    asked = str(ppo) if best.endswith("ppo") else best
    alone = record(out, Sizes(**vars(sizes) | {"episodes": count}), f"{asked}:1", "best")
    parts = [part for part in shares(ppo).split(",") if not part.startswith(f"script:{SCRIPTS[0]}:")]
    total = sum(float(part.rpartition(":")[2]) for part in parts)
    rest = ",".join(f"{name}:{float(share) / total!r}" for name, _, share in (part.rpartition(":") for part in parts))
    poorer = record(out, sizes, rest, "without-best")
    runs = {"ppo": ppo} | learners(out, mix, sizes, "")
    runs |= learners(out, alone, sizes, " best recorded", ("bc",)) | learners(
        out, poorer, sizes, " without best", ("bc", "iql")
    )
    runs["iql tuned"] = run(out, "iql tuned", rounds=sizes.tuned, start_from=str(runs["iql"]), **TUNING)
    whole = f"best recorded policy: {best}\n" + table(played(out, sizes, runs), recorded)
    whole += catching_up(runs["iql tuned"], ppo)
    replace_file(out / "offline.txt", whole.encode())
    return whole


def main(words: Sequence[str]) -> None:
    """Run the study, and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/offline"))
    parser.add_argument("--quick", action="store_true", help="small numbers, which show nothing but that all runs")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    print(study(given.out, QUICK if given.quick else Sizes()))


if __name__ == "__main__":
    main(sys.argv[1:])
