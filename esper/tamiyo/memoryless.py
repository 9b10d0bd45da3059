"""The small policy without memory: two layers of 64 and 32 units, and one score per action.

    observation [..., O] -> Linear 64, ReLU -> Linear 32, ReLU -> logits [..., A], state_value [..., 1]

It has the keys of the recurrent policy (``esper.tamiyo.actor_critic``), so that it plays where that one plays; its
memory is carried along and never looked at. A baseline: what memory and factored heads are worth is what it lacks.
"""

from dataclasses import replace

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules import ActorValueOperator

from esper.leyline.actions import Codec
from esper.tamiyo.actor_critic import (
    ACTION_GAIN,
    VALUE_GAIN,
    ActorCriticConfig,
    ValueHead,
    guarded,
    initialise,
    operator_of,
    rescale,
)
from esper.tamiyo.amp import narrowing, widened
from esper.utils import rng

WIDTHS = (64, 32)
"""Units of the layers."""

_STREAM = 0x7A3173
"""Folded into the seed's key, apart from the other policies' and the engine's streams."""


class SmallTrunk(nn.Module):
    """Two layers: [..., O] to [..., 32]. Law: a row that is not finite gives finite features, and disturbs no other."""

    def __init__(self, observation_size: int) -> None:
        super().__init__()
        first, second = WIDTHS
        self.layers = nn.Sequential(nn.Linear(observation_size, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU())

    @narrowing
    def forward(self, observation: Tensor) -> Tensor:
        """Guard, and run the layers."""
        found: Tensor = self.layers(guarded(observation))
        return found


class FlatHead(nn.Module):
    """Exact log-probabilities of all actions: hidden [..., 32] and mask bool [..., A] to [..., A].

    Laws: legal entries' exponentials sum to 1; illegal entries are finfo.min / 4.
    """

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.scores = nn.Linear(WIDTHS[-1], actions)

    @narrowing
    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Score, and normalise what is legal."""
        scores = widened(self.scores(hidden))
        illegal = torch.finfo(scores.dtype).min / 4
        return torch.where(mask, torch.log_softmax(torch.where(mask, scores, illegal), -1), illegal)


class _Carried(TensorDictModule):
    """Hands the recurrent states on as they are, and makes them where an episode begins."""

    def __init__(self, width: int) -> None:
        states = ("recurrent_state_h", "recurrent_state_c")
        super().__init__(lambda h, c: (h, c), in_keys=[*states], out_keys=[("next", state) for state in states])
        self.width = width

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """As TorchRL's recurrent modules have it."""
        shape = (1, self.width)
        return TensorDictPrimer({name: Unbounded(shape=shape) for name in self.in_keys}, expand_specs=True)


def build_memoryless(config: ActorCriticConfig, codec: Codec, observation_size: int, seed: int) -> ActorValueOperator:
    """An actor and critic without memory.

    Args:
      config: of which the value head's width and unit count, and the width of the memory that is carried along.
      codec: actions.
      observation_size: O >= 1.
      seed: 0 <= seed < 2**64; the parameters are a pure function of it and the sizes.

    Returns:
      what ``build_actor_critic`` returns, with the same keys.
    """
    key = rng.fold_in(rng.key(seed), _STREAM)
    with torch.random.fork_rng(devices=[]):  # constructors draw; what they draw is overwritten
        trunk, head, value = (
            SmallTrunk(observation_size),
            FlatHead(codec.size),
            ValueHead(replace(config, lstm=WIDTHS[-1])),
        )
    initialise(nn.ModuleList((trunk, head, value)), key)
    rescale(head.scores, ACTION_GAIN)
    rescale(value.head[-1], VALUE_GAIN)
    seeing = TensorDictSequential(
        TensorDictModule(trunk, in_keys=["observation"], out_keys=["_hidden"]), _Carried(config.lstm)
    )
    deciding = TensorDictModule(head, in_keys=["_hidden", "action_mask"], out_keys=["logits"])
    return operator_of(seeing, deciding, value)
