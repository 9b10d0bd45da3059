"""Lanes: evaluating counterfactuals with shared prefixes.

Lane e < E is environment e as it is. Where a counterfactual switches a slot off (or, for a seed in TRAINING, on), a
new lane forks from its parent at that slot and runs on beside it, so that everything before the slot is computed
once and all lanes share every later layer's launch.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.kasmina.arena import slot_params, split_buffers, split_stages
from esper.kasmina.forward import SeedParams, through_slot
from esper.kasmina.network import Network
from esper.kasmina.plan import BoolArray, Census, IntArray, SlotPlan, by_blueprint, plan_slot
from esper.leyline.stages import MERGED, Stage
from esper.leyline.state import State


class LaneSlot(NamedTuple):
    """What happens to the lanes at one slot."""

    parents: Tensor | None  # int64 [L']; the lane each continues; None if nothing forks here
    envs: Tensor  # int64 [L']; environment of each lane from here on
    plan: SlotPlan  # lanes that pass through the seed
    prospect: Tensor  # bool [n]; alpha at its target instead of its present value


class Lanes(NamedTuple):
    """A tree of lanes over all slots.

    All but ``slots`` are on the host.
    """

    slots: tuple[LaneSlot, ...]
    env: IntArray  # [L]; environment of each lane
    off: IntArray  # [L]; bit mask of the slots switched off
    forked_slot: IntArray  # [L]; the slot at which the lane last forked, -1 for the environments as they are
    is_prospect: BoolArray  # [L]; switched on there instead of off
    merged: BoolArray  # [E, S]; slots that change the output


def fork_lanes(network: Network, census: Census, every_coalition: bool, device: torch.device) -> Lanes:
    """Build the tree.

    Args:
      network: slots.
      census: stages and blueprints, [E, S].
      every_coalition: False: one lane per active slot, switched alone (merged seeds off, seeds in TRAINING on).
        True: every subset of the merged seeds, for Shapley values.
      device: where the indices go.

    Returns:
      the lanes; the first E are the environments as they are.
    """
    merged, training = census.within(MERGED), census.within((Stage.TRAINING,))
    env = np.arange(census.stage.shape[0])
    off, forked_slot = np.zeros_like(env), np.full_like(env, -1)
    is_prospect = np.zeros(env.shape, dtype=bool)
    slots = []
    for slot in range(network.config.num_slots):
        lanes = np.arange(env.shape[0])
        trunk = lanes if every_coalition else lanes[: census.stage.shape[0]]
        on_parents = trunk[:0] if every_coalition else trunk[training[env[trunk], slot]]
        parents = np.concatenate((lanes, trunk[merged[env[trunk], slot]], on_parents))
        first_on = parents.size - on_parents.size
        through = np.concatenate((lanes[merged[env, slot]], np.arange(first_on, parents.size)))
        env, off, forked_slot, is_prospect = (row[parents] for row in (env, off, forked_slot, is_prospect))
        off[lanes.size : first_on] |= 1 << slot
        forked_slot[lanes.size :] = slot
        is_prospect[first_on:] = True
        through = by_blueprint(census, slot, through, env)
        plan = plan_slot(census, slot, through, env[through], np.ones(through.shape, dtype=bool), device)
        no = torch.zeros_like(plan.training)
        slots.append(
            LaneSlot(
                parents=torch.as_tensor(parents, device=device) if parents.size > lanes.size else None,
                envs=torch.as_tensor(env, device=device),
                plan=plan._replace(training=no, isolated=no),
                prospect=torch.as_tensor(through >= first_on, device=device),
            )
        )
    return Lanes(tuple(slots), env, off, forked_slot, is_prospect, merged)


class LaneParams(NamedTuple):
    """Parameters of every lane, gathered once per evaluation."""

    host: tuple[Tensor, ...]  # per stage [L_i, P_i]
    buffers: tuple[Tensor, ...]  # per stage [L_i, N_i]
    seeds: tuple[SeedParams, ...]  # per slot
    alphas: tuple[Tensor, ...]  # per slot [n]


def lane_alphas(state: State, lanes: Lanes, target: Tensor) -> tuple[Tensor, ...]:
    """Per slot, the weight [n] of every row of its plan; ``target`` [E] is that of prospect lanes."""
    return tuple(
        torch.where(lane.prospect, target[lane.plan.envs], state.slots.alpha[lane.plan.envs, slot])
        for slot, lane in enumerate(lanes.slots)
    )


def lane_params(network: Network, state: State, lanes: Lanes, alphas: tuple[Tensor, ...]) -> LaneParams:
    """Gather what the lanes need.

    Args:
      network: structure.
      state: [E].
      lanes: the tree.
      alphas: as ``lane_alphas`` gives them.

    Returns:
      rows of host parameters, buffers, seeds and alphas per lane.
    """
    host, buffers = split_stages(network, state.host.params), split_buffers(network, state.buffers)
    envs: Tensor | None = None
    host_rows, buffer_rows = [], []
    for index in range(len(network.host.stages)):
        host_rows.append(host[index] if envs is None else host[index].index_select(0, envs))
        buffer_rows.append(buffers[index] if envs is None else buffers[index].index_select(0, envs))
        for slot in network.slots_after(index):
            envs = lanes.slots[slot].envs if lanes.slots[slot].parents is not None else envs
    seeds = tuple(slot_params(network, state.seeds.params, slot, lane.plan) for slot, lane in enumerate(lanes.slots))
    return LaneParams(tuple(host_rows), tuple(buffer_rows), seeds, alphas)


def lane_forward(network: Network, lanes: Lanes, params: LaneParams, inputs: Tensor) -> Tensor:
    """Forward pass of all lanes in inference form.

    Args:
      network: structure.
      lanes: the tree.
      params: their parameters.
      inputs: [E, B, *input_shape].

    Returns:
      logits [L, B, C]; rows 0 to E - 1 are the environments as they are.
    """
    h = inputs
    for index, infer in enumerate(network.units.infer):
        h = infer(params.host[index], params.buffers[index], h)
        for slot in network.slots_after(index):
            lane = lanes.slots[slot]
            if lane.parents is not None:
                h = h.index_select(0, lane.parents)
            h = through_slot(network, slot, lane.plan, params.seeds[slot], params.alphas[slot], h)
    return h
