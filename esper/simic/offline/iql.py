"""Implicit Q-learning: values of the best of what was recorded, without asking for an action that nobody took.

Kostrikov, Nair & Levine 2021, "Offline reinforcement learning with implicit Q-learning". Q-learning's target takes a
maximum over actions, of which most were never tried in that state, and the largest error wins. Here the maximum is
taken over recorded actions only, and without knowing who took them: the expectile of level tau of Q(s, a) over a ~ b,

    m_tau = argmin over m of E |tau - 1(u < 0)| u^2,    u = Q(s, a) - m,                              (1)

is the mean at tau = 1/2 and tends to the largest value with b(a | s) > 0 as tau -> 1 (Newey & Powell 1987, "Asymmetric
least squares": set the derivative of (1) to 0, (1 - tau) E (m - Q)+ = tau E (Q - m)+). So, over rows,

    V:     minimise  mean |tau - 1(u < 0)| u^2,    u = min over i of Q'_i(s, a) - V(s)                (2)
    Q_i:   minimise  mean (r + gamma (1 - terminated) V(s') - Q_i(s, a))^2,    i = 1, 2               (3)

with targets Q' that follow Q slowly, Q' + rate (Q - Q'). (3) is a regression: V's expectile, not the target, does the
improving, and with tau -> 1 the pair tends to the optimum of the Markov problem that is restricted to recorded actions
(theorem 3 of the source). The policy is drawn out of them by weighted cloning: of all pi with
KL(pi || b) <= c the one of highest advantage is pi(a | s) ~ b(a | s) exp(beta A(s, a)) (Peters & Schaal 2007; Nair et
al. 2020, "AWAC"), and its projection on what the network can say is

    pi:    minimise  - mean min(exp(beta (min over i of Q'_i(s, a) - V(s))), 100) log pi(a | s)       (4)

The cut at 100 is TorchRL's; which share of the rows it meets is told, ``clipped``: where that is large, (4) no longer
tells good from better, and a smaller beta is asked for. What TorchRL calls what:

    tau   expectile      beta   temperature      Q, Q'   qvalue_network, its target params      gamma   TD0's gamma

(2), (3) and (4) are TorchRL's ``DiscreteIQLLoss``, of rows that trunks with memory have run over (``rows``): V and pi
are heads of the policy's trunk, Q_1 and Q_2 of the critics' own, Q'_i of that trunk's target. V is the policy's value
head, the one that PPO goes on with.
"""

from copy import deepcopy
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import ActorValueOperator
from torchrl.objectives import DiscreteIQLLoss, SoftUpdate
from torchrl.objectives.utils import ValueEstimators

from esper.simic.offline.config import OfflineConfig
from esper.simic.offline.objective import Losses, draw_near, policy_keys
from esper.simic.offline.rows import HIDDEN, along, rows_of, with_hidden
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.critics import CriticParts

CLIP = 100.0
"""Largest weight of a row in (4): TorchRL's."""

HEADS = 2
"""Heads of action values; the smaller one counts."""

OF_CRITICS = "_critic_hidden"
"""The critics' trunk's output in a row, beside the policy's."""


class ImplicitQLearning:
    """Implicit Q-learning; an ``OfflineObjective``."""

    told: ClassVar[tuple[str, ...]] = (
        "policy_loss",
        "action_value_loss",
        "value_loss",
        "entropy",
        "advantage",
        "clipped",
    )

    def __init__(
        self, policy: ActorValueOperator, critics: CriticParts, config: OfflineConfig, sizes: ActorCriticConfig
    ) -> None:
        """Build the loss on a policy's own parameters and two heads of critics."""
        self.policy, self.config, self.width, self.keys = policy, config, sizes.lstm, policy_keys(policy)
        heads = [
            TensorDictModule(head, in_keys=[OF_CRITICS, "action_mask"], out_keys=["state_action_value"])
            for head in critics.heads
        ]
        self.loss = DiscreteIQLLoss(
            policy.get_policy_head(),
            heads,
            policy.get_value_head(),
            action_space="categorical",
            num_qvalue_nets=HEADS,
            loss_function="l2",
            temperature=config.beta,
            expectile=config.expectile,
        )
        self.loss.make_value_estimator(ValueEstimators.TD0, gamma=config.gamma)
        self.update = SoftUpdate(self.loss, tau=config.target_rate)
        self.trunk, self.target = critics.trunk, deepcopy(critics.trunk).requires_grad_(False)
        parts = {"trunk": self.trunk, "target_trunk": self.target}
        parts |= {"heads": self.loss.qvalue_network_params, "target_heads": self.loss.target_qvalue_network_params}
        self.critics: nn.Module = nn.ModuleDict(parts)

    def losses(self, batch: TensorDictBase) -> Losses:
        """See ``OfflineObjective``."""
        rows = rows_of(batch, along(self.policy.module[0], batch, self.width, self.keys), self.config.horizon)
        own = self._beside(self.trunk, batch, rows)
        with torch.no_grad():
            targets = self._beside(self.target, batch, rows)
        actor, _ = self.loss.actor_loss(targets)
        value, _ = self.loss.value_loss(targets)
        action_value, _ = self.loss.qvalue_loss(own)
        with torch.no_grad():
            ahead = self._advantage(targets)
        weight = self.config.value_weight / self.config.value_scale**2
        told = {
            "policy_loss": actor,
            "action_value_loss": action_value,
            "value_loss": value,
            "entropy": -targets["_log_prob"].mean(),
            "advantage": ahead.mean(),
            "clipped": (self.config.beta * ahead > torch.tensor(CLIP).log()).to(ahead.dtype).mean(),
        }
        return Losses(actor + weight * value + action_value / self.config.value_scale**2, told)

    def _beside(self, trunk: nn.Module, batch: TensorDictBase, rows: TensorDictBase) -> TensorDictBase:
        """Rows with a critics' trunk's output beside the policy's."""
        return with_hidden(rows, {OF_CRITICS: along(trunk, batch, self.width, (HIDDEN,))[HIDDEN]}, batch, ahead=False)

    def _advantage(self, rows: TensorDictBase) -> Tensor:
        """Advantages min over i of Q'_i(s, a) - V(s), [R]."""
        network, action, found = self.loss.qvalue_network, rows["action"].unsqueeze(-1), list[Tensor]()
        for params in self.loss.target_qvalue_network_params.unbind(0):
            with params.to_module(network):
                found.append(network(rows.copy())["state_action_value"].gather(-1, action).squeeze(-1))
        value: Tensor = self.policy.get_value_head()(rows.copy())["state_value"].squeeze(-1)
        return torch.stack(found).min(0).values - value

    def follow(self) -> None:
        """Targets of heads and trunk."""
        self.update.step()
        draw_near(self.target.parameters(), self.trunk.parameters(), self.config.target_rate)
