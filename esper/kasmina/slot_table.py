"""The slot table: the life cycle's fields on the host CPU, which say what must be computed at all.

Taking it is a step's one download. Plans, fresh seeds and counterfactuals are listed from it, without another look at
the device.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from esper.leyline.actions import BLENDS
from esper.leyline.stages import HELD, Stage
from esper.leyline.state import Slots
from esper.utils.torch_private import below_transforms
from esper.utils.transforms import is_mapped, unwrapped

IntArray = np.ndarray
BoolArray = np.ndarray


def among(values: IntArray, codes: Iterable[int]) -> BoolArray:
    """Elementwise: is the value one of a few codes? ``np.isin`` takes ten times as long for tables of this size."""
    found = np.zeros(values.shape, dtype=bool)
    for code in codes:
        found |= values == int(code)
    return found


class SlotTable(NamedTuple):
    """Stage, blueprint and blend of every slot, int [E, S] each."""

    stage: IntArray
    blueprint: IntArray
    blend: IntArray

    def within(self, stages: tuple[Stage, ...]) -> BoolArray:
        """Which slots are in one of ``stages``."""
        return among(self.stage, stages)

    @property
    def gated(self) -> BoolArray:
        """Which slots blend through a learned gate."""
        return among(self.blend, (blend for blend, rule in BLENDS.items() if rule.gated))

    @property
    def any_held(self) -> bool:
        """Whether any environment holds a seed: without one, none can become active by the clock either."""
        return bool(self.within(HELD).any())

    def kinds(self, slot: int, rows: IntArray) -> list[tuple[int, IntArray]]:
        """Some environments by the blueprint they hold in a slot, in the order of blueprints; no part is empty."""
        held = self.blueprint[rows, slot]
        return [(int(kind), rows[held == kind]) for kind in np.unique(held)]


def take_table(slots: Slots) -> SlotTable:
    """Copy the fields to the CPU: the step's one synchronisation.

    Raises:
      ValueError: vmap holds a batch in them; a table, and the plan made from it, are common to all that vmap runs.
    """
    table = torch.stack((slots.stage, slots.blueprint, slots.blend)).cpu()
    if is_mapped(table):
        raise ValueError("take_table: slots batched by vmap; expected a table taken outside, common to the whole batch")
    with below_transforms():
        return SlotTable(*unwrapped(table).numpy())
