"""Comparison: policies side by side on the same environments, as one table of numbers."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.leyline.actions import Op
from esper.nissa import calibration
from esper.nissa.actions import by_third, exploring_by_third, mix_entropy, shares
from esper.nissa.seeds import survival
from esper.nissa.trace import Trace
from esper.runtime.rollout import Outcome, rollout
from esper.runtime.scene import Scene
from esper.runtime.scripts import WAIT
from esper.runtime.yardsticks import STATIC, Scored, best_script, hindsight, score, static_network, task_scripts
from esper.tamiyo.policies import LEARNED, Policy
from esper.utils import rng
from esper.utils.stats import measured_interval, rank_correlation, stratified_interval


class TableColumn(NamedTuple):
    """A number of an outcome: its heading in tables, its unit, and how many decimals are worth printing."""

    head: str
    unit: str
    decimals: int = 2
    of_tokens: bool | None = None  # whether it is for token tasks alone, for the others alone, or for all


COLUMNS = {
    "test_accuracy": TableColumn("test %", "pp, accuracy at the end on the test part", 1),
    "val_accuracy": TableColumn("val. %", "pp, last validation accuracy", 1),
    "utility": TableColumn("J", "pp, test accuracy less the price of ln(1 + added / host) parameters", 1),
    "test_bits": TableColumn("test bits", "bits per token at the end on the test part", 3, of_tokens=True),
    "val_bits": TableColumn("val. bits", "bits per token, last validation", 3, of_tokens=True),
    "test_perplexity": TableColumn("perplexity", "at the end on the test part", of_tokens=True),
    "total_reward": TableColumn("return", "undiscounted", 1),
    "added": TableColumn("added", "parameters in seeds at the end", 0),
    "germinated": TableColumn("germinated", "seeds", 1),
    "fossilized": TableColumn("fossilized", "seeds", 1),
    "culled": TableColumn("culled", "seeds", 1),
    "rollbacks": TableColumn("rollbacks", "count"),
    "refused": TableColumn("refused", "decisions for illegal actions, which are carried out as WAIT"),
}
"""Fields of ``Outcome`` that are averaged and compared, in the order of the tables; also their names in the JSON
reports. What is reported comes first: the test part's figures. Decisions were made on the validation's beside them.
"""

DOMINANT, COLLAPSED = 0.9, 0.05
"""Share of one operation, and entropy in nats of the mix of operations, beyond which a reader is warned."""


FIXED = (WAIT, "grow ", STATIC)
"""How names begin of what cannot act otherwise than it does."""


def compare(
    scene: Scene, policies: list[Policy], seed: int, note: Callable[[str], None]
) -> tuple[dict[str, Any], list[Outcome]]:
    """Run every policy, the best script known and a static network on the same environments.

    Args:
      scene: task and reward.
      policies: the one the others are compared with comes first.
      seed: of the environments and of the policies' draws.
      note: told what is going on.

    Returns:
      the report, for ``to_json``, and the outcomes. Of the data it holds name, sizes and split. Per policy it holds
      of every column (``COLUMNS`` has names and units) the ``cell``, and the ``values`` of environments 0 to E - 1, so
      that evaluations of several seeds can be pooled; its shares of the operations as a whole and by third of the
      episode, the entropy of that mix and of the policy itself, the survival of its seeds, the calibration of its
      values and of its confidence, the share of its choices that explored by third, and red flags; the ``agreement`` of
      return and J; per other policy the paired differences of the first policy to it. None stands for what is
      undefined. "runs" is what ``over_runs`` makes of the learned policies, if there are several.
    """
    outcomes, tokens = list[Outcome](), scene.engine.data.has_tokens
    names = [name for name, column in COLUMNS.items() if column.of_tokens in (None, tokens)]
    scripts = task_scripts(scene)
    for script in (*best_script(scene), *scripts):
        policies = policies + ([script] if script.name not in {policy.name for policy in policies} else [])
    for number, policy in enumerate(policies, start=1):
        note(f"playing {policy.name} in {scene.engine.config.num_envs} environments ({number}/{len(policies)})")
        outcomes.append(rollout(scene.engine, policy, seed, scene.mode, scene.params)[1])
    agrees, rules = agreement(outcomes), scene.rules
    outcomes += static_network(scene, seed)
    report = {
        "task": rules.task,
        "data": scene.engine.data.record(),
        "num_envs": scene.engine.config.num_envs,
        "horizon": scene.engine.config.horizon,
        "seed": seed,
        "reward": rules.reward,
        "gamma": rules.gamma,
        "rewards": dict(rules.rewards),
        "price": scene.params.price.tolist(),
        "host_params": scene.engine.structure.host.num_params,
        "engine": dict(rules.engine),
        "policies": {outcome.policy: summary(outcome, names, rules.gamma) for outcome in outcomes},
        "rank_correlation": agrees,
        "hindsight": ceiling_of(outcomes, [script.name for script in scripts]),
        "runs": over_runs([outcome for outcome in outcomes if outcome.policy.startswith(LEARNED)], names),
        "first_minus": {other.policy: differences(outcomes[0], other, names) for other in outcomes[1:]},
    }
    return report, outcomes


RUNS_KEY = 0x14A8
"""Of the resamples of runs."""


def over_runs(outcomes: Sequence[Outcome], names: Sequence[str]) -> dict[str, Any] | None:
    """Several learned policies as one: of every column the interquartile mean over runs with its 95 % interval.

    A run's score is its mean over the environments; runs, not environments, are drawn again for the interval (see
    ``stratified_interval``; one task, so one stratum), since what is asked is what another training would give.

    Args:
      outcomes: of the learned policies, one a run.
      names: columns.

    Returns:
      None of fewer than two runs.
    """
    if len(outcomes) < 2:
        return None
    found: dict[str, Any] = {"count": len(outcomes), "policies": [outcome.policy for outcome in outcomes]}
    for name in names:
        scores = torch.stack([getattr(outcome, name).double().nanmean() for outcome in outcomes])
        middle, low, high = stratified_interval(scores.unsqueeze(1), rng.key(RUNS_KEY))
        found[name] = {"iqm": middle, "low": low, "high": high}
    return found


def agreement(outcomes: Sequence[Scored]) -> dict[str, float | None]:
    """How well the return, which decisions are learned from, ranks as J does, which growing is for.

    Args:
      outcomes: of several policies.

    Returns:
      Spearman's rank correlation of return and J over all episodes of all policies, and over the policies' means; None
      where it is undefined, as where all are equal.
    """
    pairs = [torch.stack((each.total_reward.double(), each.utility.double())) for each in outcomes]
    return {
        "episodes": rank_correlation(*torch.cat(pairs, dim=1)),
        "policies": rank_correlation(*torch.stack([pair.nanmean(1) for pair in pairs], dim=1)),
    }


def ceiling_of(outcomes: Sequence[Outcome], scripts: Sequence[str]) -> dict[str, Any] | None:
    """J of every environment's best script in hindsight, a ``cell``, and what share of its gain each policy has."""
    if not scripts:
        return None
    best = hindsight(outcomes, scripts)
    (waited,) = (each.utility for each in outcomes if each.policy == WAIT)
    scores = {each.policy: score(each.utility, waited, best) for each in outcomes}
    return {"scripts": list(scripts), "utility": cell(best), "score": scores}


def columns_of(report: dict[str, Any]) -> list[str]:
    """Names of the columns to show of a report, in the order of the tables; of refusals only where there were any."""
    rows = report["policies"].values()
    return [name for name in COLUMNS if all(name in row for row in rows) and (name != "refused" or _refused(rows))]


def _refused(rows: Iterable[dict[str, Any]]) -> bool:
    return any(row["refused"]["mean"] for row in rows)


def summary(outcome: Outcome, names: Sequence[str], gamma: float) -> dict[str, Any]:
    """One policy's part of the report."""
    columns = {name: getattr(outcome, name) for name in names}
    thirds = by_third(outcome.operations)
    diagnostics = outcome.trace.diagnostics
    return {
        **{name: cell(values) | {"values": values.tolist()} for name, values in columns.items()},
        "operations": shares(outcome.operations),
        "operations_by_third": [shares(part) for part in thirds],
        "entropy_by_third": [mix_entropy(part) for part in thirds],
        "policy_entropy_by_third": diagnostics and [float(part.mean()) for part in by_third(diagnostics.entropy)],
        "survival": survival(outcome.seeds),
        "calibration": value_calibration(outcome.trace, gamma),
        "confidence": confidence(outcome.trace),
        "exploring_by_third": exploring(outcome.trace),
        "seconds": outcome.seconds,
        "red_flags": red_flags(outcome),
    }


def value_calibration(trace: Trace, gamma: float) -> dict[str, Any] | None:
    """Predicted values beside realised returns-to-go (see ``calibrate``); None for a policy without values."""
    if trace.diagnostics is None:
        return None
    return calibration.calibrate(trace.diagnostics.value, calibration.returns_to_go(trace.reward, gamma))


def confidence(trace: Trace) -> dict[str, Any] | None:
    """How well the policy's confidence foretold what came of the decisions that did something; None without any."""
    if trace.account is None:
        return None
    acted = (trace.op != int(Op.WAIT)) & (trace.refusal == 0)
    return calibration.confidence_calibration(trace.account.confidence, acted, trace.accuracy)


def exploring(trace: Trace) -> list[float | None] | None:
    """Share of the choices that explored, by third; None of a policy that knows no such choices."""
    found = None if trace.account is None else exploring_by_third(trace.account.intent)
    return None if found is None or all(share is None for share in found) else found


def red_flags(outcome: Outcome) -> list[str]:
    """What a reader should be warned of: one operation for nearly everything, no variety left, no seeds at all.

    A policy that can do nothing else does not do it by fault; there is nothing to warn of.
    """
    if outcome.policy.startswith(FIXED):
        return []
    mix = shares(outcome.operations)
    flags = [f"{op.name} is over {DOMINANT:.0%} of all actions" for op in Op if mix[op.name] > DOMINANT]
    if mix_entropy(outcome.operations) < COLLAPSED:
        flags.append(f"the mix of operations has collapsed (entropy below {COLLAPSED} nats)")
    if not outcome.seeds.born.numel():
        flags.append("no seed was ever germinated")
    return [flag.replace("%", " %") for flag in flags]


def cell(values: Tensor) -> dict[str, Any]:
    """Mean and 95 % half-width of the environments that were measured, and how many they are; see
    ``measured_interval``.
    """
    mean, half, count = measured_interval(values.double())
    return {"mean": mean, "half_width": half, "measured": count}


LARGE = 1e7
"""From here on, tables give powers of ten."""


def with_error(name: str, cell: dict[str, Any], sign: str = "") -> str:
    """A column's mean with its half-width, as text; ``sign`` is a format's sign; - where nothing was measured."""
    mean, half = cell["mean"], cell["half_width"]
    if mean is None:
        return "-"
    form = ".2e" if LARGE <= max(abs(mean), half or 0.0) < math.inf else f"z.{COLUMNS[name].decimals}f"
    return f"{mean:{sign}{form}}" + ("" if half is None else f" ± {half:{form}}")


def differences(first: Outcome, other: Outcome, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Paired differences of columns, first minus other: a ``cell`` each, of the environments measured in both."""
    return {name: cell(getattr(first, name).double() - getattr(other, name).double()) for name in names}
