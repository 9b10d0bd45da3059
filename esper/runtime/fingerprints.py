"""Two chains of fingerprints in a run's rows, by which the first round in which two runs differ is found."""

from collections.abc import Mapping, Sequence
from typing import Any

from tensordict import TensorDictBase

from esper.leyline.state import State
from esper.runtime.policy_checkpoint import learner_tensors
from esper.simic.ppo import Learner
from esper.simic.ranks import is_common, whole_digests
from esper.utils.fingerprint import link, row_fingerprints, tables_of

ENVIRONMENTS, LEARNER = "environments_hash", "learner_hash"
"""Names of the chains in a row of the metrics."""

TOLD = ("observation", "action", ("next", "reward"))
"""What is taken of the episodes, beside the states that they end in."""


def fingerprints(
    before: Mapping[str, Any], ends: Sequence[State], batches: Sequence[TensorDictBase], learner: Learner
) -> dict[str, str]:
    """The next link of both chains.

    Args:
      before: the row of the round before; empty for the first.
      ends: per task, the states in which the round's episodes ended, [E]; of this rank, where there are several.
      batches: per task, the episodes [E, T].
      learner: after the round.

    Returns:
      ``environments_hash``, of the environments' states, observations, actions and rewards, and ``learner_hash``, of
      the policy's parameters with Adam's moments. Each holds the link before it: two runs agree in every round up to
      the last in which their links are equal, and parted in the first in which they are not.
    """
    told = [tables_of(batch.select(*TOLD)) for batch in batches]
    seen = [
        row
        for end, tables in zip(ends, told, strict=True)
        for row in whole_digests(learner.ranks, row_fingerprints(tables_of(end) | tables))
    ]
    held = _of_learner(learner)
    return {
        ENVIRONMENTS: link(before.get(ENVIRONMENTS, ""), *seen),
        LEARNER: link(before.get(LEARNER, ""), *held),
    }


def _of_learner(learner: Learner) -> list[bytes]:
    return row_fingerprints({name: value.reshape(1, -1) for name, value in learner_tensors(learner).items()})


def expect_common(learner: Learner) -> None:
    """Raise unless the learners of all ranks have the same bits.

    Raises:
      RuntimeError: they do not; the job is worth nothing from here on.
    """
    if learner.ranks.size > 1 and not is_common(learner.ranks, *_of_learner(learner)):
        raise RuntimeError(f"round {learner.done}: the ranks' learners differ; expected the same bits on all of them")
