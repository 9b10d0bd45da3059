"""What happened in environments, as events: every decision, refusal with its check, transition and rollback.

Read from a trace when a round is over, so that no step waits for them; each has the time of its decision, and the
validation loss and accuracy after it with what they changed by.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from esper.leyline.actions import NONE, Codec, Op
from esper.leyline.codes import REFUSAL_TEXT, VERDICT_TEXT, Refusal, Verdict, failed_checks
from esper.leyline.stages import FAILURE, Stage
from esper.nissa.event_record import Event, occurrence
from esper.nissa.field_reports import field_reports
from esper.nissa.seeds import lives
from esper.nissa.trace import Trace

STILL = 0.005
"""Earlier losses that lie within this of the latest, nats, are as if it had not moved."""

PLATEAU = 3
"""Losses in a row that have not moved."""

MOVED = 0.01
"""Change of a loss that is told, nats."""

ISOLATED = (Stage.GERMINATED, Stage.TRAINING)
"""Stages after a decision in which a seed has no weight in its network's output."""

PLACED = (Op.GERMINATE, Op.CHANGE_BLUEPRINT)


class EpisodePlace(NamedTuple):
    """Where it happened.

    Attributes:
      round: rounds that are finished when this one is.
      task: its name.
      codec: actions.
      slots: names of the slots.
      first: decisions of the episode that were played before the trace.
      history: losses that are looked back on for a plateau.
    """

    round: int
    task: str
    codec: Codec
    slots: Sequence[str]
    first: int = 0
    history: int = 10


class _Moment(NamedTuple):
    """A decision of an environment; ``fields`` are those of all its events."""

    place: EpisodePlace
    trace: Trace
    decision: int
    env: int
    seconds: float
    fields: dict[str, Any]

    def tell(self, kind: str, **further: Any) -> Event:
        return occurrence(kind, self.place.round, self.seconds, **self.fields, **further)

    def at_slot(self, slot: int, blueprint: int) -> dict[str, Any]:
        names = self.place.codec.blueprint_names
        return {"slot": self.place.slots[slot]} | ({"blueprint": names[blueprint]} if blueprint >= 0 else {})


def growth_events(trace: Trace, times: Sequence[float], place: EpisodePlace) -> list[Event]:
    """The events of a trace, decision by decision, environment by environment.

    Args:
      trace: T decisions of the environments that are told of.
      times: T, since 1970.
      place: where it happened.
    """
    losses, accuracies = trace.loss.T.tolist(), trace.accuracy.T.tolist()
    found = list[Event]()
    for t, seconds in enumerate(times):
        for env in range(trace.action.shape[1]):
            now = {"loss": _known(losses[env][t]), "accuracy": _known(accuracies[env][t])}
            before = (losses[env][t - 1], accuracies[env][t - 1]) if t else (math.nan, math.nan)
            changes = {
                "loss_change": _known(losses[env][t] - before[0]),
                "accuracy_change": _known(accuracies[env][t] - before[1]),
            }
            where = {"task": place.task, "environment": env, "decision": place.first + t + 1}
            moment = _Moment(place, trace, t, env, seconds, where | now | changes)
            found += [*_command(moment), *_seeds(moment), *_epoch(moment, losses[env][: t + 1])]
    return found


def report_events(trace: Trace, times: Sequence[float], place: EpisodePlace) -> Iterator[Event]:
    """The field reports of the seeds that came to an end in whole episodes, each as an event.

    An event has the number and the time of the last decision in which the seed was there; ``germinated`` is the number
    of the one that placed it, ``epochs_STAGE`` how many it spent in a stage.

    Args:
      trace: T decisions of the environments that are told of, from an episode's first.
      times: T, since 1970.
      place: where it happened.
    """
    for report in field_reports(trace, lives(trace), place.codec.blueprint_names):
        if report.success is None:
            continue
        told = report._asdict()
        for name in ("env", "ended", "epochs"):
            del told[name]
        told |= {"slot": place.slots[report.slot], "germinated": report.germinated + 1}
        told |= {f"epochs_{stage.lower()}": count for stage, count in report.epochs.items()}
        where = {"task": place.task, "environment": report.env, "decision": report.ended}
        yield occurrence("seed.reported", place.round, times[report.ended - 1], **where, **told)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _command(moment: _Moment) -> Iterator[Event]:
    """What was asked for, and what became of it."""
    trace, t, env, codec = moment.trace, moment.decision, moment.env, moment.place.codec
    asked, refusal = int(trace.action[t, env]), Refusal(int(trace.refusal[t, env]))
    known = 0 <= asked < codec.size
    words = codec.describe(asked) if known else f"no action: {asked}"
    yield moment.tell("command.issued", command=words)
    if refusal is not Refusal.NONE:
        checks = failed_checks(int(trace.failed[t, env]))
        yield moment.tell("command.failed", command=words, reason=REFUSAL_TEXT[refusal], checks="; ".join(checks))
    elif known and codec.actions[asked].op is not Op.WAIT:
        yield moment.tell("command.executed", command=words)


def _seeds(moment: _Moment) -> Iterator[Event]:
    """Transitions of the slots: by the decision, then by the clock or the governor."""
    trace, t, env = moment.trace, moment.decision, moment.env
    op, chosen = Op(int(trace.op[t, env])), int(trace.slot[t, env])
    if op is Op.CHANGE_BLUEPRINT:
        replaced = int(trace.blueprint[t - 1, env, chosen]) if t else NONE
        yield moment.tell("seed.culled", **moment.at_slot(chosen, replaced), cause="decision")
    if op in PLACED:
        yield moment.tell("seed.germinated", **moment.at_slot(chosen, int(trace.kind[t, env])))
    for slot in range(trace.stage.shape[2]):
        during, after = Stage(int(trace.during[t, env, slot])), Stage(int(trace.stage[t, env, slot]))
        begun = Stage(int(trace.stage[t - 1, env, slot])) if t else None if moment.place.first else Stage.DORMANT
        by_clock = "governor" if bool(trace.rolled_back[t, env]) else "clock"
        for source, target, cause in ((begun, during, "decision"), (during, after, by_clock)):
            if source is not None and source is not target:
                yield from _transition(moment, slot, (source, target), cause)
        if after in ISOLATED and float(trace.alpha[t, env, slot]) != 0:
            where = moment.at_slot(slot, int(trace.blueprint[t, env, slot]))
            yield moment.tell("isolation.violated", **where, alpha=float(trace.alpha[t, env, slot]))


def _transition(moment: _Moment, slot: int, ends: tuple[Stage, Stage], cause: str) -> Iterator[Event]:
    source, target = ends
    where = moment.at_slot(slot, int(moment.trace.blueprint[moment.decision, moment.env, slot]))
    told = where | {"source": source.name, "target": target.name, "cause": cause}
    yield moment.tell("seed.stage_changed", **told)
    if target is Stage.FOSSILIZED:
        yield moment.tell("seed.fossilized", **where)
    if target in FAILURE and source not in FAILURE:
        yield moment.tell("seed.culled", **where, cause=cause)


def _epoch(moment: _Moment, losses: Sequence[float]) -> Iterator[Event]:
    """The epoch as a whole; ``losses`` up to now."""
    trace, t, env = moment.trace, moment.decision, moment.env
    yield moment.tell("epoch.completed", reward=float(trace.reward[t, env]))
    if bool(trace.rolled_back[t, env]):
        yield moment.tell("environment.rolled_back", verdict=VERDICT_TEXT[Verdict(int(trace.verdict[t, env]))])
    change = moment.fields["loss_change"]
    if change is not None and abs(change) > MOVED:
        yield moment.tell("improvement.detected" if change < 0 else "performance.degraded")
    if plateau_length(losses[-moment.place.history :]) == PLATEAU:
        yield moment.tell("plateau.detected", epochs=PLATEAU)


def plateau_length(losses: Sequence[float]) -> int:
    """How many losses in a row before the latest lie within ``STILL`` of it."""
    count = 0
    for loss in losses[-2::-1]:
        if not abs(loss - losses[-1]) < STILL:
            break
        count += 1
    return count
