"""The three parts of a task's data: what trains, what decides, what is reported.

Datasets have two parts so far. Their validation samples are parted by a fixed key: one half is reported on, and of the
other at most twice an epoch's training samples decide (on rates, gates and prunings).
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from esper.engine import Engine
from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.slot_table import take_table
from esper.leyline.learners import learners_of
from esper.leyline.state import State
from esper.runtime.tasks import Task
from esper.utils import rng

SPLIT = 0x5117
"""Key by which the validation samples are parted."""

Samples = tuple[Tensor, Tensor]
"""Inputs and targets."""


class Parted(NamedTuple):
    """A task whose dataset holds what trains and what decides, and apart from it what is reported."""

    task: Task
    test: Samples

    @property
    def sizes(self) -> dict[str, int]:
        """Samples of each part."""
        data = self.task.data
        parts = {"train": data.train_targets, "validation": data.val_targets, "test": self.test[1]}
        return {name: targets.shape[0] for name, targets in parts.items()}


def part(task: Task, decisive: int) -> Parted:
    """Part the validation samples of a task.

    Args:
      task: as its preset gives it.
      decisive: validation samples at most.
    """
    data = task.data
    half, test = rng.permutation(rng.key(SPLIT), data.val_targets.shape[0]).tensor_split(2)
    own = half[:decisive]
    kept = data._replace(val_inputs=data.val_inputs[own], val_targets=data.val_targets[own])
    return Parted(task._replace(data=kept), (data.val_inputs[test].contiguous(), data.val_targets[test]))


def test_scores(engine: Engine, state: State, test: Samples) -> tuple[Tensor, Tensor]:
    """Accuracy in pp and loss in nats [E] of every network as it stands, on the samples that are reported."""
    none = np.zeros((0, engine.config.num_slots), dtype=np.int64)
    plan = engine.backend.plan(take_table(state.slots), state.key.device)
    wanted = Counterfactuals(np.zeros(0, dtype=np.int64), none)
    samples = test if engine.data.has_tokens else (test[0].to(engine.config.precision.dtype), test[1])
    found = engine.backend.evaluate(engine.hypers, plan, learners_of(state), state.slots.alpha, samples, wanted)
    return 100 * found.scores.double().mean(1), found.losses.double().mean(1)
