"""The plan of the definition: which rows hold which blueprint, listed once per environment step.

Every pass gathers the rows of a slot, group by group, applies each group's blueprint, and puts the results back; a
group without rows does not exist. A *lane* is one network's features on their way: in training the environments, in
evaluation also the counterfactuals, which fork from their environment where they first differ, so that what lies before
is computed once.

Padded plans list every blueprint that fits, each with ``SINKS`` rows more that nobody reads: shapes that compiled code
need not be specialised on.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from esper.kasmina.counterfactuals import AS_IS, Counterfactuals, single_changes, takes_part, with_trunk
from esper.kasmina.slot_table import BoolArray, IntArray, SlotTable, among
from esper.kasmina.structure import Structure
from esper.leyline.config import Isolation
from esper.leyline.stages import ACTIVE, ISOLATED, MERGED, Stage
from esper.utils.upload import upload

SINKS = 2
"""Rows more than needed in every group of a padded plan: torch.compile specialises on sizes 0 and 1."""

Rows = Any
"""Integers or flags: an array on the CPU while a plan is made, then a tensor on the device."""


class Group(NamedTuple):
    """Rows of one slot that hold the same blueprint, side by side."""

    blueprint: int
    size: int


class SlotRows(NamedTuple):
    """One slot's part in a pass of L lanes: n rows, group by group."""

    groups: tuple[Group, ...]
    lanes: Rows  # int64 [n]; rows of the features
    rows: Rows  # int64 [n]; rows of the numbers: environments, or in an objective pass the training's rows
    training: Rows  # bool [n]; in TRAINING
    isolated: Rows  # bool [n]; what it reads is held constant
    gated: Rows  # bool [n]; its blend has a learned gate
    row_of: Rows  # int64 [L]; row of each lane's seed; 0 without one
    present: Rows  # bool [L]; whether it has one
    parents: Rows | None = None  # int64 [L]; the lane each continues; None if nothing forks here

    @property
    def sizes(self) -> list[int]:
        """Rows of each group."""
        return [group.size for group in self.groups]


class ObjectivePass(NamedTuple):
    """The seeds of one slot in TRAINING, and the way of their networks from there on."""

    envs: Rows  # int64 [n]
    picks: Rows  # int64 [n]; their rows
    gated: Rows  # bool [n]
    alive: Rows  # bool [n]; False for sinks
    slots: tuple[SlotRows, ...]


class EvaluationPlan(NamedTuple):
    """The tree of lanes of an evaluation."""

    slots: tuple[SlotRows, ...]
    envs: tuple[Rows | None, ...]  # per block, int64 [L]; environment of each lane; None: the environments in order
    rows: Rows  # int64; the lane of each counterfactual


class Plan(NamedTuple):
    """One step's dispatch."""

    table: SlotTable
    slots: tuple[SlotRows, ...]
    objectives: tuple[ObjectivePass | None, ...]
    evaluation: EvaluationPlan  # with what a step's validation asks for, ``single_changes``
    padded: bool


def make_plan(structure: Structure, table: SlotTable, device: torch.device, padded: bool = False) -> Plan:
    """List the rows of a step; arguments as of ``plan_with``."""
    return plan_with(structure, table, device, (), padded)[0]


def plan_with(
    structure: Structure, table: SlotTable, device: torch.device, lists: Any, padded: bool = False
) -> tuple[Plan, Any]:
    """List the rows of a step, and send them up.

    Args:
      structure: slots and blueprints.
      table: of all environments.
      device: where the lists go.
      lists: a tree of arrays that goes up in the same copy.
      padded: whether shapes must suit compiled code.

    Returns:
      the plan, and the lists on the device.
    """
    sinks, envs = SINKS if padded else 0, np.arange(table.stage.shape[0])
    active, own = table.within(ACTIVE), structure.config.isolation is Isolation.OBJECTIVE
    slots = tuple(
        list_slot(structure, table, slot, envs, active[:, slot], sinks) for slot in range(len(structure.slots))
    )
    objectives = tuple(_objective(structure, table, slots, slot, sinks) if own else None for slot in range(len(slots)))
    evaluation = _tree(structure, table, with_trunk(single_changes(table), envs.size), padded)
    slots, objectives, evaluation, lists = upload((slots, objectives, evaluation, lists), device)
    return Plan(table, slots, objectives, evaluation, padded), lists


def list_slot(
    structure: Structure, table: SlotTable, slot: int, envs: IntArray, through: BoolArray, sinks: int
) -> SlotRows:
    """One slot's groups.

    Args:
      structure: which blueprints fit.
      table: stages and blueprints.
      slot: which.
      envs: int [L]; environment of each lane.
      through: bool [L]; lanes whose seed takes part.
      sinks: rows more in every group, whose numbers are those of the row behind the last environment.
    """
    held, num_envs = table.blueprint[envs, slot], table.stage.shape[0]
    kinds = structure.slots[slot].offers if sinks else tuple(map(int, np.unique(held[through])))
    parts = [np.flatnonzero(through & (held == kind)) for kind in kinds]
    lanes = np.concatenate([_append(part, -1, sinks) for part in parts]) if parts else envs[:0]
    alive, index = lanes >= 0, np.zeros_like(envs)
    index[lanes[alive]] = np.flatnonzero(alive)
    lanes = np.where(alive, lanes, 0)
    rows = np.where(alive, envs[lanes], num_envs)
    stage = np.where(alive, table.stage[envs[lanes], slot], int(Stage.FOSSILIZED))
    isolates = structure.config.isolation is not Isolation.NONE
    return SlotRows(
        groups=tuple(Group(kind, part.size + sinks) for kind, part in zip(kinds, parts, strict=True)),
        lanes=lanes,
        rows=rows,
        training=stage == int(Stage.TRAINING),
        isolated=among(stage, ISOLATED) & isolates,
        gated=table.gated[envs[lanes], slot] & alive,
        row_of=index,
        present=through,
    )


def _append(values: IntArray, value: int, count: int) -> IntArray:
    return np.concatenate((values, np.full(count, value, dtype=values.dtype)))


def _objective(
    structure: Structure, table: SlotTable, trained: tuple[SlotRows, ...], slot: int, sinks: int
) -> ObjectivePass | None:
    """The objective pass of a slot; other seeds in TRAINING are absent from it."""
    envs = np.flatnonzero(table.stage[:, slot] == int(Stage.TRAINING))
    if not envs.size and not sinks:
        return None
    lanes = _append(envs, 0, sinks)
    alive = _append(np.ones(envs.size, dtype=bool), False, sinks)
    merged, slots = table.within(MERGED), list[SlotRows]()
    for other in range(len(structure.slots)):
        listed = list_slot(structure, table, other, lanes, merged[lanes, other] & alive, sinks)
        own = np.append(trained[other].row_of, _sink(trained[other]))
        slots.append(listed._replace(rows=own[listed.rows]))
    gated = table.gated[lanes, slot]
    return ObjectivePass(lanes, trained[slot].row_of[lanes], gated, alive, tuple(slots))


def _sink(listed: SlotRows) -> int:
    """A row that nobody reads, in a padded plan: the last one."""
    return max(int(listed.lanes.shape[0]) - 1, 0)


def plan_evaluation(structure: Structure, plan: Plan, wanted: Counterfactuals, device: torch.device) -> EvaluationPlan:
    """The tree of lanes of the environments as they are, and of other networks behind them.

    Args:
      structure: slots and the route.
      plan: of the step; it has the tree already that a step's validation asks for.
      wanted: the other networks.
      device: where the lists go.
    """
    expected = single_changes(plan.table)
    if all(np.array_equal(*pair) for pair in zip(wanted, expected, strict=True)):
        return plan.evaluation
    every = with_trunk(wanted, plan.table.stage.shape[0])
    return upload(_tree(structure, plan.table, every, plan.padded), device)


def _tree(structure: Structure, table: SlotTable, wanted: Counterfactuals, padded: bool) -> EvaluationPlan:
    """Build the tree; the first of the networks are the environments as they are."""
    envs, lane, sinks = np.arange(table.stage.shape[0]), wanted.env, SINKS if padded else 0
    active, part = table.within(ACTIVE), takes_part(table, wanted)
    slots: dict[int, SlotRows] = {}
    blocks, forked = list[IntArray | None](), False
    for is_slot, number in structure.route:
        if not is_slot:
            blocks.append(envs if forked or (padded and slots) else None)
            continue
        change = np.where(active[wanted.env, number], wanted.change[:, number], AS_IS)
        found, first, inverse = np.unique(change * envs.size + lane, return_index=True, return_inverse=True)
        parents = found % envs.size
        forks = not np.array_equal(parents, np.arange(envs.size))  # more of them, or the same number in another order
        lane, forked = inverse, forked or forks
        envs = envs[parents]
        listed = list_slot(structure, table, number, envs, part[first, number], sinks)
        slots[number] = listed._replace(parents=parents if forks or padded else None)
    ordered = tuple(slots[number] for number in range(len(structure.slots)))
    return EvaluationPlan(ordered, tuple(blocks), lane)
