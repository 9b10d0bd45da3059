"""Which rounds of a run were its best, and the learner after them."""

import math
from dataclasses import dataclass

from torch import Tensor

from esper.runtime.policy_checkpoint import AnyLearner, learner_tensors
from esper.urza.checkpoint import Checkpoint
from esper.utils.documents import as_number

SMOOTHING = 5
"""Rounds whose mean return decides which policy is best: one round's return is luck in part."""


@dataclass
class Best:
    """The best ``SMOOTHING`` rounds in a row so far.

    Attributes:
      returns: of the last rounds, at most ``SMOOTHING``; oldest first.
      mean: highest mean of ``SMOOTHING`` returns in a row; None before there are as many rounds.
      number: the round that ended them; before, the last one.
      tensors: the learner after it.
    """

    returns: list[float]
    mean: float | None
    number: int
    tensors: dict[str, Tensor]

    def look(self, number: int, gained: float, tensors: dict[str, Tensor]) -> None:
        """Take a round into account."""
        self.returns = [*self.returns, gained][-SMOOTHING:]
        mean = sum(self.returns) / SMOOTHING if len(self.returns) == SMOOTHING else math.nan
        if self.mean is None or mean > self.mean:
            self.mean = mean if math.isfinite(mean) else None
            self.number, self.tensors = number, tensors


def best_of(learner: AnyLearner, loaded: Checkpoint | None, best: Checkpoint | None) -> Best:
    """The best rounds of the run that is gone on with; at first, the learner as it is."""
    if loaded is None or best is None or int(best.table["done"]) > learner.done:
        return Best([], None, learner.done, learner_tensors(learner))
    returns = [as_number(value) for value in loaded.table["returns"]]
    return Best(returns, loaded.table["best"], int(best.table["done"]), best.tensors)
