"""Conservative Q-learning: values that are low for what nobody did.

Kumar, Zhou, Tucker & Levine 2020, "Conservative Q-learning for offline reinforcement learning". Q-learning on recorded
rows overrates actions that were never tried. So their values are pushed down, and those of recorded ones up, beside the
error of Bellman's equation. With the distribution of the push chosen as the worst one with an entropy bonus,

    max over mu of E_{a ~ mu} Q(s, a) + H(mu) = log sum over a of exp Q(s, a),                        (1)

whose maximiser is the softmax of Q (set the derivative of the Lagrangian to 0), the objective is the source's CQL(H):

    minimise  1/2 mean (y - Q(s, a))^2 + alpha mean (log sum over legal a' of exp Q(s, a') - Q(s, a)) (2)
    y = r + gamma (1 - terminated) max over legal a' of Q'(s', a')

with targets Q' that follow Q slowly. At alpha = 0 it is Q-learning, and with every legal pair of state and action
recorded that finds the optimum. In a table (2) moves Q at its fixed point by alpha (1 - softmax(Q)(a | s) / b(a | s)),
b being who decided: down where b was rarer than the softmax (differentiate (2), b(a | s) its weight).

Illegal actions count neither in the sum nor in the maximum: the heads hold them at finfo.min / 4
(``esper.tamiyo.critics``), whose exponential is 0.

What plays is a policy, so one is drawn from Q: of all distributions the one of highest value with an entropy bonus of
temperature c, softmax(Q / c), projected on what the network can say; and the state value is what it earns,

    pi:    minimise  - mean over rows of sum over a of softmax(Q(s, .) / c)(a) log pi(a | s)          (3)
    V:     minimise  mean over rows of (sum over a of softmax(Q(s, .) / c)(a) Q(s, a) - V(s))^2       (4)

Neither moves Q. (2) is TorchRL's ``DiscreteCQLLoss``. It hands its target's parameters on under a name that its
estimator of values does not look at (0.14), and would then take Q for Q'; so the target is a network of ours, which
the estimator is given as its own.
"""

from copy import deepcopy
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import ActorValueOperator
from torchrl.objectives import DiscreteCQLLoss
from torchrl.objectives.value import TD0Estimator

from esper.simic.offline.bc import first_of
from esper.simic.offline.config import OfflineConfig
from esper.simic.offline.objective import Losses, draw_near, policy_keys
from esper.simic.offline.rows import HIDDEN, along, rows_of, with_hidden
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.critics import ActionValues, CriticParts

HEADS = 1
"""Heads of action values."""

OF_CRITICS = "_critic_hidden"
"""The critics' trunk's output in a row, beside the policy's."""


class _WithBest(nn.Module):
    """Values of all actions, and the largest, [..., 1]."""

    def __init__(self, head: ActionValues) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Score, and find the best."""
        values = self.head(hidden, mask)
        return values, values.max(-1, keepdim=True).values


def _by_keys(head: ActionValues) -> TensorDictModule:
    return TensorDictModule(
        _WithBest(head), in_keys=[OF_CRITICS, "action_mask"], out_keys=["action_value", "chosen_action_value"]
    )


class ConservativeQLearning:
    """Conservative Q-learning; an ``OfflineObjective``."""

    told: ClassVar[tuple[str, ...]] = ("bellman_loss", "penalty", "policy_loss", "value_loss", "entropy", "best_value")

    def __init__(
        self, policy: ActorValueOperator, critics: CriticParts, config: OfflineConfig, sizes: ActorCriticConfig
    ) -> None:
        """Build the loss on critics of one head; the policy is drawn from them."""
        self.policy, self.config, self.width, self.keys = policy, config, sizes.lstm, policy_keys(policy)
        self.deciding = first_of(policy.get_policy_head())
        self.trunk, (self.head,) = critics
        self.target_trunk, self.target_head = (deepcopy(part).requires_grad_(False) for part in (self.trunk, self.head))
        self.loss = DiscreteCQLLoss(_by_keys(self.head), delay_value=False, action_space="categorical")
        estimator = TD0Estimator(gamma=config.gamma, value_network=_by_keys(self.target_head))
        estimator.set_keys(value="chosen_action_value")
        self.loss.make_value_estimator(estimator)
        parts = {"trunk": self.trunk, "target_trunk": self.target_trunk}
        parts |= {"head": self.head, "target_head": self.target_head}
        self.critics: nn.Module = nn.ModuleDict(parts)

    def losses(self, batch: TensorDictBase) -> Losses:
        """See ``OfflineObjective``."""
        config, scale = self.config, self.config.value_scale
        rows = rows_of(batch, along(self.policy.module[0], batch, self.width, self.keys), config.horizon)
        seen = self._with_critics(batch, rows)
        conservative = self.loss(seen)
        chances, values = self._drawn(seen)
        logits = self.deciding(rows)["logits"]
        actor = -(chances * logits).sum(-1).mean()
        value = self.policy.get_value_head()(rows)["state_value"].squeeze(-1)
        worth = (chances * values).sum(-1)
        off = ((worth - value) ** 2).mean()
        told = {
            "bellman_loss": conservative["loss_qvalue"],
            "penalty": conservative["loss_cql"],
            "policy_loss": actor,
            "value_loss": off,
            "entropy": -(logits.exp() * logits).sum(-1).mean(),
            "best_value": values.max(-1).values.mean(),
        }
        of_values = (told["bellman_loss"] + config.alpha * told["penalty"]) / scale**2
        return Losses(of_values + actor + config.value_weight * off / scale**2, told)

    def _with_critics(self, batch: TensorDictBase, rows: TensorDictBase) -> TensorDictBase:
        """Rows with the critics' trunk's output, and that of its target behind them."""
        here = along(self.trunk, batch, self.width, (HIDDEN,))[HIDDEN]
        with torch.no_grad():
            there = along(self.target_trunk, batch, self.width, (HIDDEN,))[HIDDEN]
        seen = with_hidden(rows, {OF_CRITICS: here}, batch, ahead=False)
        return with_hidden(seen, {OF_CRITICS: there}, batch, ahead=True)

    @torch.no_grad()
    def _drawn(self, rows: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The softmax of the values, and the values, 0 where the softmax is; [R, A] each."""
        values = self.head(rows[OF_CRITICS], rows["action_mask"])
        chances = torch.softmax(values / self.config.temperature, -1)
        return chances, torch.where(rows["action_mask"], values, 0.0)

    def follow(self) -> None:
        """Targets of head and trunk."""
        for target, source in ((self.target_trunk, self.trunk), (self.target_head, self.head)):
            draw_near(target.parameters(), source.parameters(), self.config.target_rate)
