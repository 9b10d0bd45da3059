"""Events: what a run or a worker did, one kind on success and one on failure for every operation; and what happened in
environments.

``OPERATIONS`` and ``OCCURRENCES`` are the two tables; a kind is an operation's name with one of ``OUTCOMES`` behind it,
as ``round.done``, or an occurrence's name.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

OPERATIONS = {
    "run": "a training run, from its directory to its report",
    "demonstrate": "scripts shown to a policy before its first round",
    "round": "a round: one episode of every environment, and what is learned from it",
    "checkpoint": "the rounds so far, and the learner after them, on the disk",
    "evaluate": "the evaluation at a run's end",
    "blueprint.take": "a further blueprint, taken between two rounds",
    "worker": "a worker, from its store to its end",
    "compile": "a blueprint's document that a worker took: compiled, validated and published",
    "stage": "one stage of a compilation",
    "make": "an engine, built by esper.make",
    "host": "a module, made a host by esper.host",
    "load": "a state, read by esper.load",
    "save": "a state, written by esper.save",
    "engine.init": "a fresh batch of environments",
    "engine.step": "one decision and one epoch of all environments",
    "engine.test": "all networks on the test part",
    "engine.network_of": "an environment's network as a plain module",
    "engine.reset": "some environments, begun anew",
    "engine.observe": "what a policy sees",
    "engine.mask": "which actions are legal",
    "engine.describe": "what runs where, in words",
}
"""Operation -> what it is."""

OCCURRENCES = {
    "command.issued": "a decision, as it was asked for",
    "command.executed": "a decision other than to wait that was carried out",
    "command.failed": "a decision that was refused, with the reason and the checks that failed",
    "seed.germinated": "a seed was placed",
    "seed.stage_changed": "a slot passed from one stage to another",
    "seed.fossilized": "a seed was made permanent",
    "seed.culled": "a seed was removed",
    "seed.reported": "a seed's end: its field report",
    "epoch.completed": "an environment's epoch, with its loss and accuracy and what they changed by",
    "plateau.detected": "the loss has not moved for three epochs in a row",
    "improvement.detected": "the loss fell by more than 0.01",
    "performance.degraded": "the loss rose by more than 0.01",
    "environment.rolled_back": "an environment was put back to its last good state, with the verdict",
    "gradient.anomaly": "a host's gradients vanish, explode, or are unsound",
    "isolation.violated": "a seed that trains behind the host has a weight in its output",
}
"""What happens in an environment -> what it is; kinds of their own, which neither succeed nor fail."""

OUTCOMES = ("done", "failed")

KINDS = (*(f"{operation}.{outcome}" for operation in OPERATIONS for outcome in OUTCOMES), *OCCURRENCES)
"""Every kind of event."""


class Event(NamedTuple):
    """Something that happened.

    Attributes:
      kind: of ``KINDS``.
      round: rounds that were finished then; 0 of a worker.
      seconds: when, since 1970.
      fields: what there is to say; words, numbers and truth values.
    """

    kind: str
    round: int
    seconds: float
    fields: Mapping[str, Any]


def event(operation: str, fine: bool, round: int = 0, /, **fields: Any) -> Event:
    """An event that happens now.

    Args:
      operation: of ``OPERATIONS``.
      fine: whether it succeeded.
      round: rounds that were finished.
      fields: what there is to say.

    Raises:
      KeyError: no such operation.
    """
    OPERATIONS[operation]
    return Event(f"{operation}.{OUTCOMES[not fine]}", round, time.time(), fields)


def occurrence(kind: str, round: int, seconds: float, /, **fields: Any) -> Event:
    """What happened in an environment.

    Args:
      kind: of ``OCCURRENCES``.
      round: rounds that are finished when its own is.
      seconds: when, since 1970.
      fields: what there is to say.

    Raises:
      KeyError: no such occurrence.
    """
    OCCURRENCES[kind]
    return Event(kind, round, seconds, fields)
