"""The plan: which rows hold which blueprint, read from the state once per environment step.

Making it is the only synchronisation of a step. Every forward and backward of the step gathers the rows of a group,
applies the group's blueprint to them, and scatters the result; a group without rows does not exist.

A *lane* is a copy of an environment with some of its slots overridden: training has one lane per environment,
evaluation forks a lane where a counterfactual leaves the common path (``esper.kasmina.lanes``).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.kasmina.network import Network
from esper.kernels.chain import Places
from esper.leyline.actions import BLENDS
from esper.leyline.stages import ACTIVE, ISOLATED, MERGED, Stage
from esper.leyline.state import Slots

IntArray = np.ndarray
BoolArray = np.ndarray


class Group(NamedTuple):
    """Rows of one slot that hold the same blueprint."""

    blueprint: int
    rows: Tensor  # int64 [n]; environments


class SlotPlan(NamedTuple):
    """One slot's part in a forward pass; lanes are listed group by group."""

    groups: tuple[Group, ...]  # rows are environments: whose parameters to use
    lanes: Tensor  # int64 [n]; rows of the features, all groups one after the other
    envs: Tensor  # int64 [n]; environment of each, whose parameters it uses: the groups' rows in one piece
    gated: Tensor  # int64 [g]; positions within `lanes` whose blend has a learned gate
    gate_rows: Tensor  # int64 [g]; their environments
    training: Tensor  # bool [n]; TRAINING: straight-through
    isolated: Tensor  # bool [n]; the seed reads detached features


class Census(NamedTuple):
    """The lifecycle fields on the host, [E, S] each."""

    stage: IntArray
    blueprint: IntArray
    blend: IntArray

    def within(self, stages: tuple[Stage, ...]) -> BoolArray:
        """Which slots are in one of ``stages``."""
        return np.isin(self.stage, [int(stage) for stage in stages])

    @property
    def gated(self) -> BoolArray:
        """Which slots blend through a learned gate."""
        return np.isin(self.blend, [int(blend) for blend, rule in BLENDS.items() if rule.gated])


class Plan(NamedTuple):
    """One step's dispatch: per slot the active rows, and the rows whose seed is fresh and must be sown."""

    census: Census
    slots: tuple[SlotPlan, ...]
    fresh: tuple[tuple[Group, ...], ...]
    places: tuple[Places, ...] = ()  # per slot, for a network that is a chain

    @property
    def any_active(self) -> bool:
        """Whether any environment has an active seed."""
        return any(slot.groups for slot in self.slots)


def take_census(slots: Slots) -> Census:
    """Copy the lifecycle fields to the host: the step's one synchronisation."""
    table = torch.stack((slots.stage, slots.blueprint, slots.blend)).cpu().numpy()
    return Census(table[0], table[1], table[2])


def make_plan(network: Network, slots: Slots) -> Plan:
    """Read the state and list the rows.

    Args:
      network: slots and blueprints.
      slots: [E, S].

    Returns:
      the plan of this step; groups in the order of blueprints, rows ascending.
    """
    census = take_census(slots)
    device = slots.stage.device
    active, merged, fresh = census.within(ACTIVE), census.within(MERGED), census.within((Stage.GERMINATED,))
    lanes = np.arange(census.stage.shape[0])
    plans, sown = [], []
    for slot in range(network.config.num_slots):
        rows = by_blueprint(census, slot, lanes[active[:, slot]], lanes)
        plans.append(plan_slot(census, slot, rows, rows, merged[rows, slot], device))
        sown.append(group_rows(census, slot, lanes[fresh[:, slot]], device))
    chained = plans if network.units.whole is not None else ()
    places = (places_of(slot, lanes.size, torch.arange(slot.gated.shape[0])) for slot in chained)
    return Plan(census, tuple(plans), tuple(sown), tuple(places))


def places_of(plan: SlotPlan, num_lanes: int, gates: Tensor) -> Places:
    """What a chain must know of a slot's plan, on the CPU.

    Args:
      plan: n rows.
      num_lanes: lanes L.
      gates: int64 [g]; where the gates of the rows ``plan.gated`` are.
    """
    rows = torch.full((num_lanes,), -1)
    rows[plan.lanes] = torch.arange(plan.lanes.shape[0])
    places = None
    if plan.gated.shape[0]:
        places = torch.full(plan.lanes.shape, -1)
        places[plan.gated] = gates
    kinds = [group.blueprint for group in plan.groups for _ in range(group.rows.shape[0])]
    return Places(torch.tensor(kinds, dtype=torch.int64), rows, places)


def by_blueprint(census: Census, slot: int, lanes: IntArray, env: IntArray) -> IntArray:
    """Sort lanes by the blueprint their environment (``env[lane]``) holds in a slot, otherwise keeping their order."""
    return lanes[np.argsort(census.blueprint[env[lanes], slot], kind="stable")]


def group_rows(census: Census, slot: int, envs: IntArray, device: torch.device) -> tuple[Group, ...]:
    """Environments by the blueprint they hold in a slot, in the order of blueprints; no group is empty."""
    kinds = census.blueprint[envs, slot]
    return tuple(Group(int(k), torch.as_tensor(envs[kinds == k], device=device)) for k in np.unique(kinds))


def plan_slot(
    census: Census, slot: int, lanes: IntArray, envs: IntArray, blended: BoolArray, device: torch.device
) -> SlotPlan:
    """One slot's groups over lanes.

    Args:
      census: stages and blueprints.
      slot: which slot.
      lanes: int [n]; the lanes whose seed takes part, sorted ``by_blueprint``.
      envs: int [n]; the environment of each.
      blended: bool [n]; whether its output is weighted at all, so that a gate takes part.
      device: where the indices go.

    Returns:
      the slot's plan.
    """
    gated = np.flatnonzero(census.gated[envs, slot] & blended)
    stage = census.stage[envs, slot]

    def move(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=device)

    return SlotPlan(
        groups=group_rows(census, slot, envs, device),
        lanes=move(lanes),
        envs=move(envs),
        gated=move(gated),
        gate_rows=move(envs[gated]),
        training=move(stage == int(Stage.TRAINING)),
        isolated=move(np.isin(stage, [int(s) for s in ISOLATED])),
    )
