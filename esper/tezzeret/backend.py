"""The seam: how a structure is run. One contract, chosen once, when an engine is made.

All that crosses it has the shapes of State; a plan is the backend's own. Nothing above asks which backend it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.slot_table import SlotTable
from esper.leyline.config import ConfigError
from esper.leyline.events import Epoch
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners
from esper.tezzeret.batches import Batch, Batches
from esper.tezzeret.health import MinibatchGradients
from esper.tezzeret.score import Scores
from esper.utils.upload import upload

Plan = Any
"""What a backend needs to know of a step's slots."""

Lists = Any
"""A tree of arrays of the host, int64 or bool, as ``esper.utils.upload`` takes it; or of tensors on the device."""


class BackendError(ConfigError):
    """A backend that cannot run a structure; one line with the backend and the reason.

    Attributes:
      setting: the argument of ``make`` that it cannot do with this value; empty: it is none's.
    """

    def __init__(self, line: str, setting: str = "") -> None:
        super().__init__(line)
        self.setting = setting


class WatchedBatches(NamedTuple):
    """The minibatches of an epoch, and what is kept of their gradients.

    Attributes:
      batches: k minibatches.
      start: what is kept before the first.
      fold: (what is kept, a minibatch's gradients) -> what is kept. It writes into neither. None: nothing is kept.
    """

    batches: Batches
    start: Any = None
    fold: Callable[[Any, MinibatchGradients], Any] | None = None


WatchedEpoch = Callable[[HyperParams, Plan, Learners, Tensor, WatchedBatches], tuple[Learners, Epoch, Any]]
"""See ``Backend``."""


class Backend(NamedTuple):
    """The functions of ``esper.tezzeret.eager``, bound to a structure.

    Attributes:
      name: as given to ``esper.make``.
      plan_with: (table, device, lists) -> plan, and the lists on the device. What a backend sends up for its plan goes
        in one copy with the lists.
      forward: (plan, learners, alphas, batch) -> outputs, learners with new buffers.
      minibatch_step: (hypers, plan, learners, alphas, batch) -> learners, what was seen.
      epoch: (hypers, plan, learners, alphas, batches) -> learners, what was seen.
      evaluate: (hypers, plan, learners, alphas, samples, counterfactuals) -> scores.
      describe: () -> a line on what runs where, and one for each thing that does not run here, with the reason.
      independent: whether the bits of an environment's results depend on nothing but its own arguments, whatever the
        number and the order of the others.
      failures: () -> how many kernels raised while they ran, and run as the definition has them since.
      watched_epoch: (hypers, plan, learners, alphas, watched) -> what ``epoch`` returns, to the bit, and what was kept
        of the gradients of all its minibatches; None where the backend does not show them.
    """

    name: str
    plan_with: Callable[[SlotTable, torch.device, Lists], tuple[Plan, Lists]]
    forward: Callable[[Plan, Learners, Tensor, Batch], tuple[Tensor, Learners]]
    minibatch_step: Callable[[HyperParams, Plan, Learners, Tensor, Batch], tuple[Learners, Epoch]]
    epoch: Callable[[HyperParams, Plan, Learners, Tensor, Batches], tuple[Learners, Epoch]]
    evaluate: Callable[[HyperParams, Plan, Learners, Tensor, tuple[Tensor, Tensor], Counterfactuals], Scores]
    describe: Callable[[], tuple[str, ...]]
    independent: bool = False
    failures: Callable[[], int] = lambda: 0
    watched_epoch: WatchedEpoch | None = None

    def plan(self, table: SlotTable, device: torch.device) -> Plan:
        """A plan alone."""
        return self.plan_with(table, device, ())[0]


def sending_lists(plan: Callable[[SlotTable, torch.device], Plan]) -> Callable[..., tuple[Plan, Lists]]:
    """``plan_with`` of a backend that sends nothing up for its plans: the lists go by themselves."""
    return lambda table, device, lists: (plan(table, device), upload(lists, device))
