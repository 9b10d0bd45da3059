"""The native plan: per slot the active rows, sorted by blueprint, and where a network finds its own."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.kasmina.slot_table import BoolArray, IntArray, SlotTable, among
from esper.kasmina.structure import Structure
from esper.leyline.config import Isolation
from esper.leyline.stages import ACTIVE, ISOLATED, MERGED, Stage


class SlotRows(NamedTuple):
    """One slot's rows, those of one blueprint side by side."""

    kinds: tuple[tuple[int, int], ...]  # (blueprint, rows) of each part
    envs: Tensor  # int64 [n]; environment of each, whose numbers it uses
    blueprints: Tensor  # int64 [n]
    row_of: Tensor  # int64 [L]; row of each lane, -1 if it has no seed here
    gated: Tensor  # int64 [g]; rows whose blend has a learned gate
    training: Tensor  # bool [n]; TRAINING
    isolated: Tensor  # bool [n]; what it reads is held constant
    merged: Tensor  # bool [n]; the network sees it

    @property
    def gate_envs(self) -> Tensor:
        """int64 [g]; environments of the gates."""
        return self.envs[self.gated]

    def gate_rows(self, places: Tensor) -> Tensor | None:
        """int64 [n]; where the gate of each row is among ``places`` [g], -1 without one; None if there are none."""
        if not self.gated.shape[0]:
            return None
        return torch.full_like(self.envs, -1).index_copy(0, self.gated, places)


class Plan(NamedTuple):
    """One step's dispatch."""

    table: SlotTable
    slots: tuple[SlotRows, ...]


def make_plan(structure: Structure, table: SlotTable, device: torch.device) -> Plan:
    """List the rows of a step; arguments as the definition's ``plan``."""
    del device
    active, merged = table.within(ACTIVE), table.within(MERGED)
    lanes = np.arange(table.stage.shape[0])
    weighs = active if structure.config.isolation is Isolation.OBJECTIVE else merged
    slots = [list_rows(table, slot, lanes, active[:, slot], weighs[:, slot]) for slot in range(len(structure.slots))]
    if structure.config.isolation is Isolation.NONE:
        slots = [listed._replace(isolated=torch.zeros_like(listed.isolated)) for listed in slots]
    return Plan(table, tuple(slots))


def list_rows(table: SlotTable, slot: int, envs: IntArray, through: BoolArray, blended: BoolArray) -> SlotRows:
    """One slot's rows.

    Args:
      table: stages and blueprints.
      slot: which.
      envs: int [L]; environment of each lane.
      through: bool [L]; lanes whose seed takes part.
      blended: bool [L]; whether its output is weighted at all, so that a gate takes part.
    """
    lanes = np.flatnonzero(through)
    lanes = lanes[np.argsort(table.blueprint[envs[lanes], slot], kind="stable")]
    index = np.full(envs.shape, -1)
    index[lanes] = np.arange(lanes.size)
    rows = envs[lanes]
    stage, held = table.stage[rows, slot], table.blueprint[rows, slot]
    kinds, counts = np.unique(held, return_counts=True)
    return SlotRows(
        kinds=tuple(zip(kinds.tolist(), counts.tolist(), strict=True)),
        envs=torch.as_tensor(rows),
        blueprints=torch.as_tensor(held),
        row_of=torch.as_tensor(index),
        gated=torch.as_tensor(np.flatnonzero(table.gated[rows, slot] & blended[lanes])),
        training=torch.as_tensor(stage == int(Stage.TRAINING)),
        isolated=torch.as_tensor(among(stage, ISOLATED)),
        merged=torch.as_tensor(among(stage, MERGED)),
    )
