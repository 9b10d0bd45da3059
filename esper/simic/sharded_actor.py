"""An actor for some of the environments, whose draws are those of an actor for all of them.

TorchRL draws actions from torch's global generator, a batch at a time, so that what an environment gets depends on how
many there are. Here every rank draws for all environments, from a generator that stands where every other rank's does,
and keeps its own rows.
"""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.modules import MaskedCategorical, ProbabilisticActor

from esper.simic.ranks import Shard
from esper.tamiyo.tiles import scored


class ShardedActor(TensorDictModuleBase):
    """An actor for a block of the environments.

    It reads and writes what the actor does. Law: from the same generator it draws the rows that the actor draws for a
    batch of all environments, as long as it scores these rows alike.
    """

    def __init__(self, actor: ProbabilisticActor, shard: Shard) -> None:
        super().__init__()
        self.actor, self.shard = actor, shard
        self.in_keys, self.out_keys = list(actor.in_keys), list(actor.out_keys)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decide for the block's environments [size]."""
        out = scored(self.actor)(tensordict)
        mask, logits, rows = out["action_mask"], out["logits"], self.shard.numbers
        all_logits = logits.new_zeros(self.shard.total, logits.shape[1]).index_copy_(0, rows.to(logits.device), logits)
        all_masks = torch.ones_like(all_logits, dtype=torch.bool).index_copy_(0, rows.to(mask.device), mask)
        action = MaskedCategorical(logits=all_logits, mask=all_masks).sample()[rows]
        chance = MaskedCategorical(logits=logits, mask=mask).log_prob(action)
        return out.update({"action": action, "action_log_prob": chance})
