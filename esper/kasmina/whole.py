"""A network as one chain of programs: training and inference of everything in one call each.

Possible where every stage, blueprint and gate can be written down and nothing is tied. The forms of ``forward`` and
``lanes`` say what is computed; this one computes the same up to rounding.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.kasmina import arena
from esper.kasmina.forward import SeedParams
from esper.kasmina.lanes import Lanes
from esper.kasmina.layers import RUNNING_MOMENTUM
from esper.kasmina.network import Network
from esper.kasmina.plan import SlotPlan
from esper.kernels import chain
from esper.kernels.chain import Chain, Lesson, Picked, Seeds
from esper.leyline.state import State

Forward = Callable[[Tensor], Tensor]


class Whole(NamedTuple):
    """A network's chains.

    Attributes:
      train: of stages in training form, and slots.
      infer: likewise in inference form.
      tracked: per stage and number of its buffers, the place in ``aux`` that it follows.
    """

    train: Chain
    infer: Chain
    tracked: tuple[tuple[int, ...], ...]


def train(
    whole: Whole,
    plans: Sequence[SlotPlan],
    host: tuple[Tensor, Sequence[Tensor]],
    seeds: Sequence[SeedParams],
    alphas: Sequence[Tensor],
    batch: tuple[Tensor | Picked, Tensor],
) -> tuple[Lesson, tuple[Tensor, ...]]:
    """One minibatch of every network.

    Args:
      whole: the chains.
      plans: per slot, its rows.
      host: parameters [E, P], and per stage buffers [E, N_i].
      seeds: per slot.
      alphas: per slot [n].
      batch: inputs [E, B, ...], or picked, and targets [E, B].

    Returns:
      losses and gradients, and the new buffers per stage.
    """
    count = host[0].shape[0]
    rows = [_seeds(plan, params, alpha, count, None) for plan, params, alpha in zip(plans, seeds, alphas, strict=True)]
    lesson = chain.train(whole.train, *batch, host[0], rows)
    return lesson, tuple(
        torch.lerp(old, lesson.aux[:, list(places)], RUNNING_MOMENTUM) if places else old
        for old, places in zip(host[1], whole.tracked, strict=True)
    )


def _seeds(plan: SlotPlan, params: SeedParams, alpha: Tensor, count: int, owners: Tensor | None) -> Seeds:
    """A slot's rows as the kernel takes them: ``owners`` None if ``params`` has one row per seed and gate."""
    number = plan.lanes.shape[0]
    gates = None
    if plan.gated.shape[0]:
        gates = plan.gated.new_full((number,), -1)
        gates[plan.gated] = torch.arange(plan.gated.shape[0]) if owners is None else plan.gate_rows
    rows = plan.lanes.new_full((count,), -1)
    rows[plan.lanes] = torch.arange(number)
    kinds = torch.tensor([group.blueprint for group in plan.groups for _ in range(group.rows.shape[0])])
    return Seeds(kinds, rows, alpha, params.rows, owners, params.gate, gates, plan.training, plan.isolated)


def lane_table(tree: Lanes) -> chain.Lanes:
    """The lanes of every environment, in the order in which they fork."""
    parents = torch.arange(tree.env.shape[0])
    for slot, lane in enumerate(tree.slots):
        if lane.parents is not None:
            born = torch.as_tensor(np.flatnonzero(tree.forked_slot == slot))
            parents[born] = lane.parents[born]
    order = np.argsort(tree.env, kind="stable")
    first = np.searchsorted(tree.env[order], np.arange((tree.forked_slot < 0).sum() + 1))
    return chain.Lanes(torch.as_tensor(first), torch.as_tensor(order), torch.as_tensor(tree.forked_slot), parents)


def infer(network: Network, whole: Whole, state: State, tree: Lanes, alphas: Sequence[Tensor]) -> Forward:
    """Inference of all lanes with a state's numbers: inputs [E, B, ...] -> logits [L, B, C]."""
    slots, arena_rows, table = [], state.seeds.params, lane_table(tree)
    for slot, (lane, alpha) in enumerate(zip(tree.slots, alphas, strict=True)):
        columns = arena.seed_columns(network, slot), arena.gate_columns(network, slot)
        params = SeedParams(arena_rows[:, columns[0]], arena_rows[:, columns[1]])
        slots.append(_seeds(lane.plan, params, alpha, tree.env.shape[0], lane.plan.envs))
    return lambda inputs: chain.infer(whole.infer, inputs, state.host.params, state.buffers, slots, table)
