"""Critics of actions: a trunk with memory like the policy's, and heads that value every action, legal or not.

    observation [..., O] -> Linear, LayerNorm, ReLU -> LSTM, LayerNorm -> per head Linear, ReLU, Linear -> [..., A]

They are no part of what plays: an offline learner has them beside the policy, as it learns.
"""

from typing import NamedTuple

import torch
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn

from esper.tamiyo.actor_critic import (
    VALUE_GAIN,
    ActorCriticConfig,
    Features,
    head_of,
    initialise,
    rescale,
    seeing_of,
    trunk_of,
)
from esper.tamiyo.interface import Interface
from esper.utils import rng

_STREAM = 0x7A3172
"""Folded into the seed's key, apart from the policies' and the engine's streams."""


class ActionValues(nn.Module):
    """Values of all actions in units of the return: hidden [..., H] and mask bool [..., A] to [..., A].

    Law: illegal entries are finfo.min / 4, so that no maximum finds them and no log-sum-exp counts them, and no
    gradient comes of them.
    """

    scale: Tensor

    def __init__(self, config: ActorCriticConfig, actions: int) -> None:
        super().__init__()
        self.head = head_of(config, actions)
        self.register_buffer("scale", torch.tensor(config.value_scale))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Score, in the unit of the return."""
        values = self.scale * self.head(hidden)
        return torch.where(mask, values, torch.finfo(values.dtype).min / 4)


class CriticParts(NamedTuple):
    """A trunk, with the keys of the policy's, and heads on it."""

    trunk: TensorDictSequential
    heads: tuple[ActionValues, ...]


def build_critics(config: ActorCriticConfig, interface: Interface, seed: int, heads: int) -> CriticParts:
    """Critics of the actions of an interface.

    Args:
      config: sizes.
      interface: what they see and what they value.
      seed: 0 <= seed < 2**64; the parameters are a pure function of it and the sizes.
      heads: how many, >= 1.

    Returns:
      float32, on the CPU.
    """
    key = rng.fold_in(rng.key(seed), _STREAM)
    with torch.random.fork_rng(devices=[]):  # constructors draw; what they draw is overwritten
        features = Features(len(interface.columns), config.features)
        lstm = nn.LSTM(config.features, config.lstm, batch_first=True)
        norm = nn.LayerNorm(config.lstm)
        values = tuple(ActionValues(config, interface.codec.size) for _ in range(heads))
    initialise(nn.ModuleList((features, lstm, norm, *values)), key)
    for each in values:
        rescale(each.head[-1], VALUE_GAIN)
    return CriticParts(trunk_of(seeing_of(features), lstm, norm), values)
