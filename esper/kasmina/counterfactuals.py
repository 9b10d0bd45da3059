"""Counterfactuals: the same network with some of its seeds off, or a seed in TRAINING on; which of them to measure.

Their results depend on alphas alone. What differs from environment to environment is which exist, so they are listed on
the CPU, from the slot table.
"""

from typing import Any, NamedTuple

import numpy as np

from esper.kasmina.slot_table import BoolArray, IntArray, SlotTable
from esper.leyline.stages import MERGED, Stage

AS_IS, OFF, ON = range(3)
"""What becomes of a slot's alpha: it stays, becomes 0, or the target."""


class Counterfactuals(NamedTuple):
    """Networks to evaluate beside the environments as they are.

    Attributes:
      env: int [L]; whose network.
      change: int [L, S]; AS_IS, OFF or ON.
    """

    env: IntArray
    change: IntArray


class EffectPlaces(NamedTuple):
    """Where the effects of L seeds belong; arrays of the host, or tensors of a device.

    Attributes:
      envs, slots: int64 [L].
      grows: bool [L]; the seed is switched on instead of off.
    """

    envs: Any
    slots: Any
    grows: Any


def with_trunk(wanted: Counterfactuals, num_envs: int) -> Counterfactuals:
    """All environments as they are, then the counterfactuals."""
    as_is = np.full((num_envs, wanted.change.shape[1]), AS_IS)
    return Counterfactuals(np.append(np.arange(num_envs), wanted.env), np.concatenate((as_is, wanted.change)))


def no_changes(num_slots: int) -> Counterfactuals:
    """None: the environments as they are, alone."""
    return Counterfactuals(np.zeros(0, dtype=np.int64), np.zeros((0, num_slots), dtype=np.int64))


def list_effects(table: SlotTable) -> EffectPlaces:
    """Every active slot, slot by slot: what merged seeds do where they are, and those in TRAINING would do."""
    training = table.within((Stage.TRAINING,))
    slots, envs = (np.ascontiguousarray(each) for each in (table.within(MERGED) | training).T.nonzero())
    return EffectPlaces(envs, slots, training[envs, slots])


def single_changes(table: SlotTable) -> Counterfactuals:
    """One network for each of ``list_effects``: merged seeds off, seeds in TRAINING on."""
    envs, slots, grows = list_effects(table)
    change = np.full((envs.size, table.stage.shape[1]), AS_IS)
    change[np.arange(envs.size), slots] = np.where(grows, ON, OFF)
    return Counterfactuals(envs, change)


def coalitions(table: SlotTable) -> tuple[Counterfactuals, IntArray]:
    """Every non-empty subset of the merged seeds off, for Shapley values; and each subset as a bit mask of slots."""
    merged = table.within(MERGED)
    bits = 1 << np.arange(merged.shape[1])
    held = (merged * bits).sum(1)
    masks = np.arange(1, 1 << merged.shape[1])
    env, index = ((masks & ~held[:, None]) == 0).nonzero()
    off = masks[index]
    return Counterfactuals(env, np.where(off[:, None] & bits, OFF, AS_IS)), off


def takes_part(table: SlotTable, wanted: Counterfactuals) -> BoolArray:
    """Whether each slot's seed reaches the output of each network, bool [L, S]."""
    merged, training = table.within(MERGED)[wanted.env], table.within((Stage.TRAINING,))[wanted.env]
    return (merged & (wanted.change != OFF)) | (training & (wanted.change == ON))
