"""What became of the seeds of each blueprint: a round's part of it, and the table over a whole run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from esper.nissa.field_reports import accuracies
from esper.nissa.seeds import REMOVED, Fate, Lives
from esper.nissa.trace import Trace

GERMINATED, FOSSILIZED, CULLED, GAINED, GAIN = "germinated", "fossilized", "culled", "gained", "gain"
COUNTED = (GERMINATED, FOSSILIZED, CULLED, GAINED)
"""Names in a round's row, each followed by ``/`` and the blueprint; ``gain/`` is the mean of the ``gained/`` seeds that
ended and whose accuracy was known at both ends.
"""


class BlueprintCost(NamedTuple):
    """What a seed of a blueprint costs in a host; of several slots the dearest.

    Attributes:
      params: parameters that it adds.
      multiplier: multiply-adds of host and seed together, over the host's alone.
    """

    params: int
    multiplier: float


class BlueprintLine(NamedTuple):
    """A blueprint over a whole run.

    Attributes:
      blueprint: its name.
      germinated, fossilized, culled: seeds.
      success: fossilized among those that ended, in [0, 1]; None where none ended.
      gain: mean change of validation accuracy from germination to the end, over those that ended; points.
      params, multiplier: see ``BlueprintCost``; None where unknown.
    """

    blueprint: str
    germinated: int
    fossilized: int
    culled: int
    success: float | None
    gain: float | None
    params: int | None
    multiplier: float | None


def tally(trace: Trace, seeds: Lives, names: Sequence[str]) -> dict[str, float]:
    """What of a round goes into its row.

    Args:
      trace, seeds: of all environments, whole episodes.
      names: of the blueprints.

    Returns:
      see ``COUNTED``; NaN is the mean of nothing.
    """
    before, after = accuracies(trace, seeds)
    fossil, culled = seeds.fate == int(Fate.FOSSILIZED), torch.isin(seeds.fate, torch.tensor(list(map(int, REMOVED))))
    change = torch.where(fossil | culled, after - before, torch.nan)
    found: dict[str, float] = {}
    for kind, name in enumerate(names):
        mine = seeds.kind == kind
        counts = (mine, mine & fossil, mine & culled, mine & change.isfinite())
        found |= {f"{what}/{name}": int(which.sum()) for what, which in zip(COUNTED, counts, strict=True)}
        found[f"{GAIN}/{name}"] = float(change[mine].nanmean()) if int(counts[3].sum()) else math.nan
    return found


def joined(tallies: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The tallies of several tasks as one, and ``seed_success``: fossilized ones among those that ended, a share."""
    names = list(dict.fromkeys(key.partition("/")[2] for one in tallies for key in one))
    found: dict[str, float] = {}
    for name in names:
        for what in COUNTED:
            found[f"{what}/{name}"] = sum(one.get(f"{what}/{name}", 0) for one in tallies)
        found[f"{GAIN}/{name}"] = _mean([(one, one.get(f"{GAIN}/{name}", math.nan)) for one in tallies], name)
    good, bad = (sum(found[f"{what}/{name}"] for name in names) for what in (FOSSILIZED, CULLED))
    return found | {"seed_success": good / (good + bad) if good + bad else math.nan}


def _mean(parts: Sequence[tuple[Mapping[str, Any], float]], name: str) -> float:
    """Mean gain of seeds of a blueprint, each part weighted by how many it has."""
    known = [(row[f"{GAINED}/{name}"], gain) for row, gain in parts if _is_number(gain)]
    weight = sum(count for count, _ in known)
    return sum(count * gain for count, gain in known) / weight if weight else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def blueprint_table(rows: Sequence[Mapping[str, Any]], costs: Mapping[str, BlueprintCost]) -> list[BlueprintLine]:
    """The table over a run's rounds, from their rows alone; rounds that were not counted are left out."""
    prefix = f"{GERMINATED}/"
    names = list(dict.fromkeys(key.removeprefix(prefix) for row in rows for key in row if key.startswith(prefix)))
    lines = []
    for name in names:
        told = [row for row in rows if all(_is_number(row.get(f"{what}/{name}")) for what in COUNTED)]
        placed, good, bad, _ = (int(sum(row[f"{what}/{name}"] for row in told)) for what in COUNTED)
        gain, cost = _mean([(row, row.get(f"{GAIN}/{name}", math.nan)) for row in told], name), costs.get(name)
        lines.append(
            BlueprintLine(
                blueprint=name,
                germinated=placed,
                fossilized=good,
                culled=bad,
                success=good / (good + bad) if good + bad else None,
                gain=gain if math.isfinite(gain) else None,
                params=None if cost is None else cost.params,
                multiplier=None if cost is None else cost.multiplier,
            )
        )
    return lines


def costs_from(resolved: Mapping[str, Any]) -> dict[str, BlueprintCost]:
    """What ``resolved.json`` says of the blueprints' costs; of several tasks the dearest."""
    found: dict[str, BlueprintCost] = {}
    for facts in resolved.values():
        for name, (params, multiplier) in facts.get("blueprint_costs", {}).items():
            before = found.get(name, BlueprintCost(0, 0.0))
            found[name] = BlueprintCost(max(params, before.params), max(multiplier, before.multiplier))
    return found
