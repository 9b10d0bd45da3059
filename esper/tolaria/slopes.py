"""What a seed would be worth, by first derivatives of the validation loss. Nothing is trained to know it.

Of a seed that is not there yet: the gradient with respect to its last layer, were it there at its target alpha. A step
of gradient descent at rate r would lower the loss by r |gradient|^2, to first order; the norm by which GradMax (Evci et
al. 2022) chooses new neurons' incoming weights and NeST (Dai et al. 2019) new connections. Of a seed that trains behind
the host: the slope along its alpha, what the loss loses per unit of it. At birth that slope says nothing: seeds start
as the identity, and it is 0.

Derivatives are taken of the definition, ``esper.tezzeret.eager``, whatever backend trains.
"""

from collections.abc import Callable
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

from esper.kasmina import arena
from esper.kasmina.counterfactuals import Counterfactuals
from esper.kasmina.layout import Layout
from esper.kasmina.slot_table import SlotTable, take_table
from esper.kasmina.structure import Structure
from esper.leyline.actions import Action
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import Learners, learners_of
from esper.leyline.stages import ACTIVE, Stage
from esper.leyline.state import State
from esper.tezzeret import eager

Samples = tuple[Tensor, Tensor]
"""Inputs [V, *input_shape] and targets [V, ...]."""


def last_layer(layout: Layout) -> slice:
    """Columns of a seed's last layer: its last tensor, with those before it of the same name up to the dot.

    So ``norm.weight`` and ``norm.bias`` are one layer, ``conv`` and ``point`` are two.
    """
    stems = [param.name.rpartition(".")[0] or param.name for param in layout.params]
    count = len(list(takewhile(lambda stem: stem == stems[-1], reversed(stems))))
    return slice(layout.size - sum(param.size for param in layout.params[len(stems) - count :]), layout.size)


def losses_at(
    structure: Structure, hypers: HyperParams, table: SlotTable, learners: Learners, alphas: Tensor, samples: Samples
) -> Tensor:
    """Mean loss of every network on samples, with every active seed in it by its alpha, also those in TRAINING.

    Args:
      structure, hypers, learners: of the environments.
      table: of their slots.
      alphas: [E, S].
      samples: V of them.

    Returns:
      [E], nats (or the objective's unit); differentiable.
    """
    shown = table._replace(stage=np.where(table.within(ACTIVE), int(Stage.BLENDING), table.stage))
    plan, none = eager.plan(structure, shown, alphas.device), np.zeros((0, alphas.shape[1]), dtype=np.int64)
    wanted = Counterfactuals(none.sum(1), none)
    return eager.evaluate(structure, hypers, plan, learners, alphas, samples, wanted).losses.mean(1)


def alpha_slopes(structure: Structure, hypers: HyperParams, state: State, alphas: Tensor, samples: Samples) -> Tensor:
    """The slope of every environment's loss along the alpha of every slot.

    Args:
      structure, hypers, state: the environments.
      alphas: [E, S]; where the slopes are taken; seeds in TRAINING stand at 0.
      samples: to measure the loss on.

    Returns:
      [E, S], nats per unit of alpha; negative where more of the seed is better, 0 without an active seed.
    """
    table, learners = take_table(state.slots), learners_of(state)
    return _gradient(
        structure, lambda alphas, part: losses_at(structure, hypers, table, learners, alphas, part), alphas, samples
    )


def birth_norms(structure: Structure, hypers: HyperParams, state: State, action: Action, samples: Samples) -> Tensor:
    """How steeply the loss falls along the last layer of a seed that would germinate now, at its target alpha.

    Args:
      structure, hypers, state: the environments.
      action: a germination: slot, blueprint and blend; that the slot is free is not asked.
      samples: to measure the loss on.

    Returns:
      [E], L2 norm in nats per unit of a parameter. The seed has the numbers that a step with this action would give
      it; other seeds take part by the alphas that they have.
    """
    table, number = take_table(state.slots), action.slot
    slot = structure.slots[number]
    sown = _with_seed(table, action, Stage.GERMINATED)
    learners = arena.init_seeds(structure, sown, learners_of(state), state.key, state.epoch)
    here = torch.arange(len(structure.slots), device=state.key.device) == number
    alphas = torch.where(here, hypers.alpha_target.reshape(-1, 1), state.slots.alpha)
    there = _with_seed(table, action, Stage.BLENDING)

    def losses(params: Tensor, part: Samples) -> Tensor:
        own = learners._replace(seeds=learners.seeds._replace(params=params))
        return losses_at(structure, hypers, there, own, alphas, part)

    found = _gradient(structure, losses, learners.seeds.params, samples)[:, slot.blueprint_columns(action.blueprint)]
    return torch.linalg.vector_norm(found[:, last_layer(slot.row(action.blueprint))], dim=1)


def _with_seed(table: SlotTable, action: Action, stage: Stage) -> SlotTable:
    """The table with a seed in one slot of every environment."""
    values = (int(stage), action.blueprint, action.blend)
    columns = np.arange(table.stage.shape[1]) == action.slot
    return SlotTable(*(np.where(columns, value, part) for part, value in zip(table, values, strict=True)))


def _gradient(
    structure: Structure, losses: Callable[[Tensor, Samples], Tensor], at: Tensor, samples: Samples
) -> Tensor:
    """Every environment's gradient of its own mean loss, ``eval_batch_size`` samples at a time: like ``at``."""
    size, count = structure.config.eval_batch_size, samples[1].shape[0]
    total = torch.zeros_like(at)
    for part in zip(samples[0].split(size), samples[1].split(size), strict=True):
        share = part[1].shape[0] / count
        total = total + share * grad(lambda value, part=part: losses(value, part).sum())(at)
    return total
