"""Scores of slots as orchestration has them: how well a seed does, and which does worst."""

import torch
from torch import Tensor

from esper.leyline.stages import LIVE, Stage, is_in
from esper.leyline.state import State

UNKNOWN = 0.5
"""A part of a score of which nothing was measured."""


def composite(accuracy: Tensor, loss: Tensor, efficiency: Tensor) -> Tensor:
    """The score of a seed: the mean of its accuracy's, of 1 minus its loss's and of its efficiency's, all in [0, 1]."""
    return (accuracy + (1 - loss) + efficiency) / 3


def scores(state: State, growth: Tensor, unit: float) -> Tensor:
    """Score of every slot; 1/2 for each part that is not known, as in an empty slot.

    Accuracy: 1/2 + contribution / (2 unit), or by the prospect while in TRAINING, cut to [0, 1]. Loss: x / (1 + x) of
    its network's validation loss. Efficiency: host parameters over those of host and seed.

    Args:
      state: [E].
      growth: [E, S]; parameters of a slot's seed over those of its host.
      unit: pp of contribution that lift the accuracy's part by 1/2.

    Returns:
      float64 [E, S] in [0, 1].
    """
    slots, signals = state.slots, state.signals
    foreseen = (slots.stage == int(Stage.TRAINING)) & (slots.evaluations > 0)
    effect = torch.where(foreseen, slots.prospect, slots.contribution).double()
    accuracy = (UNKNOWN + effect / (2 * unit)).clamp(0, 1).nan_to_num(0.0)
    accuracy = torch.where(slots.measured | foreseen, accuracy, UNKNOWN)
    loss = signals.val_loss.double()
    loss = torch.where(loss.isfinite(), loss / (1 + loss), 1.0)
    loss = torch.where(signals.epochs_seen > 0, loss, UNKNOWN).unsqueeze(1)
    efficiency = 1 / (1 + growth.double())
    known = composite(accuracy, loss, efficiency)
    return torch.where(is_in(slots.stage, LIVE), known, UNKNOWN)


def ranks(score: Tensor, among: Tensor) -> Tensor:
    """Place of every slot in ascending order of its score, the lower number first of equals; int64 [E, S]. Slots that
    are not among them come last.
    """
    key = torch.where(among, score, torch.inf)
    places = torch.arange(score.shape[1], device=score.device)
    own, other = key.unsqueeze(2), key.unsqueeze(1)
    return ((other < own) | ((other == own) & (places < places.unsqueeze(1)))).sum(2)
