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
from esper.kasmina.plan import Plan, places_of
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
    plan: Plan,
    host: tuple[Tensor, Sequence[Tensor]],
    seeds: Sequence[SeedParams],
    alphas: Sequence[Tensor],
    batch: tuple[Tensor | Picked, Tensor],
) -> tuple[Lesson, tuple[Tensor, ...]]:
    """One minibatch of every network.

    Args:
      whole: the chains.
      plan: rows per slot.
      host: parameters [E, P], and per stage buffers [E, N_i].
      seeds: per slot.
      alphas: per slot [n].
      batch: inputs [E, B, ...], or picked, and targets [E, B].

    Returns:
      losses and gradients, and the new buffers per stage.
    """
    rows = [
        Seeds(places, alpha, params.rows, None, params.gate, slot.training, slot.isolated)
        for slot, places, params, alpha in zip(plan.slots, plan.places, seeds, alphas, strict=True)
    ]
    lesson = chain.train(whole.train, *batch, host[0], rows)
    return lesson, tuple(
        torch.lerp(old, lesson.aux[:, list(places)], RUNNING_MOMENTUM) if places else old
        for old, places in zip(host[1], whole.tracked, strict=True)
    )


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
        columns = arena.slot_columns(network, slot), arena.gate_columns(network, slot)
        places = places_of(lane.plan, tree.env.shape[0], lane.plan.gate_rows)
        params, gates = (arena_rows[:, part] for part in columns)
        slots.append(Seeds(places, alpha, params, lane.plan.envs, gates))
    return lambda inputs: chain.infer(whole.infer, inputs, state.host.params, state.buffers, slots, table)
