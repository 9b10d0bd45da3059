"""Events: what a run or a worker did, one kind on success and one on failure for every operation.

``OPERATIONS`` is the one table; a kind is an operation's name with one of ``OUTCOMES`` behind it, as ``round.done``.
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
}
"""Operation -> what it is."""

OUTCOMES = ("done", "failed")

KINDS = tuple(f"{operation}.{outcome}" for operation in OPERATIONS for outcome in OUTCOMES)
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
