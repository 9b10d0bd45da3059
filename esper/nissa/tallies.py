"""What an endpoint's metrics stand at: a value, folded over rounds and events by pure functions.

A round counts once, whatever is played again after a run was gone on with: of a round whose number was seen, only
gauges are taken. So counters never fall within a run, and a histogram has each round's value once.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from esper.nissa.event_record import Event
from esper.nissa.metric_table import METRICS_BY_NAME, SECONDS, MetricKind
from esper.nissa.sinks.protocol import Row
from esper.utils.compilations import NAMES
from esper.utils.documents import json_ready

Series = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its labels."""


class RunFacts(NamedTuple):
    """What of a run no row says.

    Attributes:
      tasks: its tasks; a number of one stands in a row under ``name/task``, if there are several.
      decisions: of all environments of all tasks in a round.
      environments: of all tasks.
      rounds: after which it ends.
    """

    tasks: tuple[str, ...]
    decisions: int
    environments: int
    rounds: int


class HistogramCounts(NamedTuple):
    """A histogram: how many values were at most each of ``SECONDS``, and above the one before; the last: all others."""

    counts: tuple[int, ...]
    total: float


class Tallies(NamedTuple):
    """Where all metrics stand.

    Attributes:
      round: the last one that was counted.
      values: counters and gauges.
      spreads: histograms.
    """

    round: int = 0
    values: Mapping[Series, float] = {}
    spreads: Mapping[Series, HistogramCounts] = {}


class Change(NamedTuple):
    """A counter grows by a value, a gauge becomes it, a histogram observes it."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


PHASES = {"collect": "collect_seconds", "learn": "learn_seconds", "hosts": "host_seconds"}
PHASES |= {"validation": "validation_seconds"}
"""Phase -> the number of a row that says how long it took."""

BY_TASK = {
    "return": "esper_return",
    "val_accuracy": "esper_validation_accuracy_percent",
    "val_loss": "esper_validation_loss_nats",
    "measured": "esper_measured_ratio",
    "seed_params": "esper_seed_parameters",
}
"""Numbers of a row that there are for every task."""

PER_ENVIRONMENT = {"refused": "esper_refused_actions", "rolled_back": "esper_rollbacks"}
"""Counts of a row that are means over environments."""

AS_IT_IS = {"entropy": "esper_policy_entropy_nats", "kl": "esper_policy_kl_nats"}
AS_IT_IS |= {"skipped": "esper_skipped_minibatches_ratio"}

SHARE = "share_"
"""Before the name of an action, of its share of all decisions."""

OF_COMPILATIONS: Mapping[str, Series] = {
    "compilations": ("esper_compilations", ()),
    "compilation_seconds": ("esper_compilation_seconds", ()),
    "cache_hits": ("esper_cache_lookups", ("hit",)),
    "cache_misses": ("esper_cache_lookups", ("miss",)),
}
"""What is counted of compilations -> its metric, and the labels behind what it is of."""

KNOWN = {"round", "seconds", "kernel_failures", *PHASES.values(), *BY_TASK, *PER_ENVIRONMENT, *AS_IT_IS, *NAMES}
"""Numbers of a row that a metric of their own has."""


def of_round(row: Row, facts: RunFacts) -> list[Change]:
    """What a round changes."""
    numbers = {name: float(value) for name, value in row.items() if not isinstance(value, str)}
    found = [
        Change("esper_rounds", 1.0),
        Change("esper_rounds_wanted", facts.rounds),
        Change("esper_decisions", facts.decisions),
    ]
    found += [Change("esper_kernel_failures", numbers.get("kernel_failures", 0.0))]
    found += [Change("esper_round_seconds", numbers["seconds"])] if "seconds" in numbers else []
    for name, value in numbers.items():
        head, _, task = name.partition("/")
        if name.startswith(SHARE) and not task:
            found.append(Change("esper_actions", value * facts.decisions, (name.removeprefix(SHARE),)))
        elif name in PER_ENVIRONMENT:
            found.append(Change(PER_ENVIRONMENT[name], round(value * facts.environments, 6)))
        elif name in AS_IT_IS:
            found.append(Change(AS_IT_IS[name], value))
        elif name in NAMES:
            found.append(of_compilations(name, value))
        elif head in BY_TASK and (task in facts.tasks or len(facts.tasks) == 1):
            found.append(Change(BY_TASK[head], value, (task or facts.tasks[0],)))
        elif name not in KNOWN and not task:
            found.append(Change("esper_measure", value, (name,)))
    found += [
        Change("esper_phase_seconds", numbers[name], (phase,)) for phase, name in PHASES.items() if name in numbers
    ]
    return found


def of_compilations(name: str, value: float) -> Change:
    """What a number of ``esper.utils.compilations.NAMES`` changes."""
    metric, labels = OF_COMPILATIONS[NAMES[name].what]
    return Change(metric, value, (NAMES[name].of, *labels))


def of_event(event: Event) -> list[Change]:
    """What an event changes."""
    found = [Change("esper_events", 1.0, (event.kind,))]
    operation, _, outcome = event.kind.rpartition(".")
    took = float(event.fields.get("took", math.nan))
    if operation == "compile":
        found.append(Change("esper_compile_requests", 1.0, (str(event.fields.get("outcome", outcome)),)))
        found.append(Change("esper_compile_seconds", took))
    if operation == "stage":
        stage = str(event.fields.get("stage", ""))
        found.append(Change("esper_stage_seconds", took, (stage,)))
        found += [Change("esper_stage_failures", float(outcome == "failed"), (stage,))]
    return found


def after_round(tallies: Tallies, row: Row, facts: RunFacts, seconds: float | None = None) -> Tallies:
    """Where metrics stand after a round.

    Args:
      tallies: before.
      row: of the round.
      facts: of the run.
      seconds: when it was finished, since 1970; None = unknown.
    """
    number, found = int(row["round"]), of_round(row, facts)
    if seconds is not None:
        found.append(Change("esper_last_round_timestamp_seconds", seconds))
    if number <= tallies.round:
        found = [each for each in found if METRICS_BY_NAME[each.name].kind is MetricKind.GAUGE]
    return changed(tallies, found)._replace(round=max(number, tallies.round))


def changed(tallies: Tallies, changes: Iterable[Change]) -> Tallies:
    """Where metrics stand after changes; a counter or a histogram takes no value that is not finite or below 0."""
    values, spreads = dict(tallies.values), dict(tallies.spreads)
    for name, value, labels in changes:
        metric, series = METRICS_BY_NAME[name], (name, labels)
        kept: dict[Series, Any] = spreads if metric.kind is MetricKind.HISTOGRAM else values
        if series not in kept and sum(one == name for one, _ in kept) >= metric.most:
            continue
        if metric.kind is MetricKind.GAUGE:
            values[series] = value
        elif math.isfinite(value) and value >= 0:
            if metric.kind is MetricKind.COUNTER:
                values[series] = values.get(series, 0.0) + value
            else:
                spreads[series] = _observed(spreads.get(series, HistogramCounts((0,) * (len(SECONDS) + 1), 0.0)), value)
    return tallies._replace(values=values, spreads=spreads)


def _observed(spread: HistogramCounts, value: float) -> HistogramCounts:
    place = next((place for place, bound in enumerate(SECONDS) if value <= bound), len(SECONDS))
    counts = tuple(count + (place == number) for number, count in enumerate(spread.counts))
    return HistogramCounts(counts, spread.total + value)


def to_text(tallies: Tallies) -> str:
    """As strict JSON."""
    values = [[name, list(labels), value] for (name, labels), value in tallies.values.items()]
    spreads = [[name, list(labels), *spread] for (name, labels), spread in tallies.spreads.items()]
    return json.dumps(json_ready({"round": tallies.round, "values": values, "spreads": spreads}), allow_nan=False)


def from_text(text: str) -> Tallies:
    """What ``to_text`` made; series of metrics that are no more are left out, and gauges that were not finite.

    Raises:
      ValueError: it did not make this.
    """
    try:
        table = json.loads(text)
        values = {(name, tuple(labels)): float(value) for name, labels, value in table["values"] if _is_number(value)}
        spreads = {
            (n, tuple(labels)): HistogramCounts(tuple(map(int, c)), float(t)) for n, labels, c, t in table["spreads"]
        }
        found = Tallies(int(table["round"]), values, spreads)
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no tallies: {error!r}") from None
    if any(len(spread.counts) != len(SECONDS) + 1 for spread in found.spreads.values()):
        raise ValueError("no tallies: other buckets")
    kept = {series: value for series, value in found.values.items() if series[0] in METRICS_BY_NAME}
    return found._replace(values=kept, spreads={s: one for s, one in spreads.items() if s[0] in METRICS_BY_NAME})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
