"""The evaluation command: policies side by side on the same environments."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from esper.engine import Engine
from esper.leyline.actions import Op
from esper.runtime.build import make
from esper.runtime.play import Outcome, play
from esper.runtime.policies import load_policy
from esper.runtime.tasks import TASKS
from esper.simic.rewards import RewardMode
from esper.tamiyo import scripted
from esper.tamiyo.players import Player, from_mask, heuristic_player, learned_player, random_player
from esper.utils.settings import SettingsError, setting
from esper.utils.stats import mean_interval

COLUMNS = ("accuracy", "best", "total_reward", "added", "germinated", "fossilized", "culled", "rollbacks")
"""Columns of the table: pp, pp, undiscounted return, parameters, seeds, seeds, seeds, count."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Compare policies on the same environment seeds."""

    run: str = setting("", "run directory of a learned policy; empty = baselines only")
    task: str = setting("digits", "task preset", choices=tuple(TASKS))
    num_envs: int = setting(128, "environments", low=6, high=65536)
    seed: int = setting(1, "seed of the environments; odd numbers are never trained on", low=0, high=2**40)
    reward: str = setting("shaped", "reward that is summed up", choices=tuple(mode.value for mode in RewardMode))
    greedy: bool = setting(False, "the learned policy takes its likeliest action instead of drawing one")
    grow: str = setting("", "also evaluate growing this blueprint wherever there is room")
    compile: bool = setting(True, "compile where a compiler is at hand")
    json: bool = setting(False, "print one JSON object instead of a table")


def players_of(settings: EvaluateSettings, engine: Engine) -> list[Player]:
    """The players to compare; the one the others are compared with comes first.

    Raises:
      SettingsError, CheckpointError: the run cannot be read.
    """
    players = [] if not settings.run else [learned_player(*load_policy(Path(settings.run), engine), settings.greedy)]
    players += [heuristic_player(engine.codec), random_player(engine.codec)]
    players.append(from_mask("wait", scripted.wait(engine.codec)))
    if settings.grow:
        try:
            players.append(from_mask(f"grow {settings.grow}", scripted.grow(engine.codec, settings.grow)))
        except ValueError as error:
            raise SettingsError(f"--grow: {error}") from None
    return players


def evaluate(settings: EvaluateSettings, out: TextIO = sys.stdout) -> dict[str, Any]:
    """Play every policy on the same environments and report.

    Args:
      settings: everything.
      out: where the table or the JSON object goes.

    Returns:
      the report: per player the mean and 95 % half-width of every column, its share of each operation and red flags;
      per other player the paired differences of the first player to it.
    """
    engine = make(settings.task, settings.num_envs, compile="auto" if settings.compile else False)
    mode = RewardMode(settings.reward)
    outcomes = [play(engine, player, settings.seed, mode)[1] for player in players_of(settings, engine)]
    report = {
        "task": settings.task,
        "num_envs": settings.num_envs,
        "seed": settings.seed,
        "reward": settings.reward,
        "players": {outcome.player: _summary(outcome) for outcome in outcomes},
        "first_minus": {other.player: _differences(outcomes[0], other) for other in outcomes[1:]},
    }
    out.write(json.dumps(report) + "\n" if settings.json else _table(report, outcomes[0].player))
    return report


def _summary(outcome: Outcome) -> dict[str, Any]:
    columns = {name: mean_interval(getattr(outcome, name)) for name in COLUMNS}
    shares = outcome.operations.sum(0).double() / outcome.operations.sum()
    return {
        **{name: {"mean": mean, "half_width": half} for name, (mean, half) in columns.items()},
        "operations": {op.name: float(shares[int(op)]) for op in Op},
        "entropy_by_third": [_entropy(part) for part in outcome.operations.tensor_split(3)],
        "seconds": outcome.seconds,
        "red_flags": red_flags(outcome),
    }


def _entropy(operations: torch.Tensor) -> float:
    """Entropy of the mix of operations, nats."""
    share = operations.sum(0).double() / operations.sum().clamp(min=1)
    return float(-(share * share.clamp(min=1e-12).log()).sum())


def red_flags(outcome: Outcome) -> list[str]:
    """What a reader should be warned of: one operation for nearly everything, no variety left, no seeds at all."""
    counts = outcome.operations.sum(0)
    flags = [f"{op.name} is over 90 % of all actions" for op in Op if int(counts[int(op)]) > 0.9 * int(counts.sum())]
    if _entropy(outcome.operations) < 0.05:
        flags.append("the mix of operations has collapsed (entropy below 0.05 nats)")
    if int(outcome.germinated.sum()) == 0:
        flags.append("no seed was ever germinated")
    return flags


def _differences(first: Outcome, other: Outcome) -> dict[str, dict[str, float]]:
    rows = {}
    for name in ("accuracy", "best", "total_reward", "added"):
        mean, half = mean_interval(getattr(first, name).double() - getattr(other, name).double())
        rows[name] = {"mean": mean, "half_width": half}
    return rows


def _table(report: dict[str, Any], first: str) -> str:
    heads = ("accuracy %", "best %", "return", "added", "germinated", "fossilized", "culled", "rollbacks")
    lines = [
        f"{report['task']}, {report['num_envs']} environments from seed {report['seed']}, reward {report['reward']}; "
        "mean ± 95 % half-width",
        f"{'policy':<18}" + "".join(f"{head:>16}" for head in heads),
    ]
    for player, row in report["players"].items():
        cells = (f"{row[name]['mean']:.2f} ± {row[name]['half_width']:.2f}" for name in COLUMNS)
        lines.append(f"{player:<18}" + "".join(f"{cell:>16}" for cell in cells))
    lines.append(f"\npaired differences, {first} minus")
    for other, row in report["first_minus"].items():
        cells = (f"{name} {cell['mean']:+.2f} ± {cell['half_width']:.2f}" for name, cell in row.items())
        lines.append(f"  {other:<16}" + "   ".join(cells))
    flags = [f"  {player}: {flag}" for player, row in report["players"].items() for flag in row["red_flags"]]
    return "\n".join([*lines, *(["\nred flags", *flags] if flags else [])]) + "\n"
