"""Behaviour cloning: the policy that makes what was done most likely.

    minimise over pi    - mean over rows of log pi(a | s)                                             (1)

which is the cross-entropy of the recorded decisions, up to a constant the divergence KL(b || pi) from whoever decided,
b, averaged over the states that b met (Pomerleau 1989, "ALVINN"; Bain & Sammut 1995, "A framework for behavioural
cloning"). It knows no reward: of a mix it learns the mix. Where b differs from pi in what it met, errors add up, T^2 of
them in T decisions (Ross & Bagnell 2010), which is what the other two algorithms try to do better than.

The state value, which nothing is decided by, learns what was earned from there on, so that training can go on online:

    minimise over V    mean over rows of (G - V(s))^2,    G_t = sum over k of gamma^k r_{t+k}           (2)

The loss is TorchRL's ``BCLoss`` with the masked logits as the prediction: an illegal action has probability 0 in (1).
"""

from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import ActorValueOperator
from torchrl.objectives import BCLoss

from esper.simic.offline.config import OfflineConfig
from esper.simic.offline.objective import Losses, policy_keys
from esper.simic.offline.rows import along, rows_of
from esper.tamiyo.actor_critic import ActorCriticConfig


def first_of(head: TensorDictSequential) -> TensorDictModule:
    """What writes the logits, of an actor's head."""
    found: TensorDictModule = head.module[0]
    return found


class BehaviourCloning:
    """Behaviour cloning; an ``OfflineObjective``."""

    told: ClassVar[tuple[str, ...]] = ("surprise", "value_loss", "accuracy")

    def __init__(self, policy: ActorValueOperator, config: OfflineConfig, sizes: ActorCriticConfig) -> None:
        """Build the loss on a policy's own parameters."""
        self.policy, self.config, self.width = policy, config, sizes.lstm
        self.critics: nn.Module = nn.ModuleDict()
        head, self.keys = policy.get_policy_head(), policy_keys(policy)
        self.deciding = first_of(head)
        logits = TensorDictModule(_Same(), in_keys=["logits"], out_keys=["action"])
        self.loss = _Cloning(TensorDictSequential(self.deciding, logits), loss_function="cross_entropy")

    def losses(self, batch: TensorDictBase) -> Losses:
        """See ``OfflineObjective``."""
        found = along(self.policy.module[0], batch, self.width, self.keys)
        rows = rows_of(batch, found, self.config.horizon)
        surprise = self.loss(rows)["loss_bc"]
        value = self.policy.get_value_head()(rows)["state_value"].squeeze(-1)
        off = ((value - batch["to_go"][batch["valid"]]) ** 2).mean()
        weight = self.config.value_weight / self.config.value_scale**2
        with torch.no_grad():
            best = self.deciding(rows)["logits"].argmax(-1)
        right = (best == rows["action"]).to(off.dtype).mean()
        return Losses(surprise + weight * off, {"surprise": surprise, "value_loss": off, "accuracy": right})

    def follow(self) -> None:
        """There is no target."""


class _Cloning(BCLoss):
    """TorchRL's loss, which looks for the target's parameters in its annotations and has none there."""

    target_actor_network_params: TensorDictParams


class _Same(nn.Module):
    def forward(self, given: Tensor) -> Tensor:
        """What was given."""
        return given
