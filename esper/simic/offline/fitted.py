"""Fitted Q-evaluation: what a policy would earn, by the values of its actions, learned from what others did.

Le, Voloshin & Yue 2019, "Batch policy learning under constraints". The value of pi solves Bellman's equation for pi,

    Q(s, a) = E[r + gamma (1 - terminated) sum over a' of pi(a' | s') Q(s', a')]                        (1)

whose right-hand side asks for recorded steps only, whoever decided them: the expectation over the next action is taken
under pi. It is solved by regressions on targets Q' that follow slowly,

    minimise  mean over rows of (r + gamma (1 - terminated) sum over a' of pi(a' | s') Q'(s', a') - Q(s, a))^2      (2)

and a return is read off at the first steps: mean of sum over a of pi(a | s_0) Q(s_0, a). No ratio grows with the
horizon, as it does in importance sampling; in exchange it believes what the network says of actions that nobody took.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules import ActorValueOperator

from esper.simic.adam import build_adam, step_if
from esper.simic.offline.bc import first_of
from esper.simic.offline.config import OfflineConfig
from esper.simic.offline.objective import draw_near, drawn, policy_keys
from esper.simic.offline.rows import HIDDEN, along, rows_of, with_hidden
from esper.simic.offline.windows import OfflineData
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.critics import CriticParts, build_critics
from esper.tamiyo.interface import from_table
from esper.utils import rng

STREAM, CRITICS = 0x0FF4, 0x0FF5
"""Folded into the seed for the windows of a step; added to it for the critics' parameters."""

RATE = 0.05
"""Share of the critics that the targets take over with each regression."""


class FittedQ:
    """Values of a policy's actions; ``loss`` is (2), ``values`` what is read off.

    Attributes:
      policy: whose; never changed.
      parts, targets: trunk and head, and what follows them.
    """

    def __init__(
        self, policy: ActorValueOperator, parts: CriticParts, config: OfflineConfig, sizes: ActorCriticConfig
    ) -> None:
        self.policy, self.config, self.width, self.keys = policy, config, sizes.lstm, policy_keys(policy)
        self.parts = parts
        self.targets = CriticParts(
            deepcopy(parts.trunk).requires_grad_(False), (deepcopy(parts.heads[0]).requires_grad_(False),)
        )
        self.deciding = first_of(policy.get_policy_head())

    def parameters(self) -> list[nn.Parameter]:
        """Of trunk and head."""
        return list(nn.ModuleList((self.parts.trunk, *self.parts.heads)).parameters())

    def _values(self, parts: CriticParts, rows: TensorDictBase, batch: TensorDictBase, *, ahead: bool) -> Tensor:
        """Of all actions, of the steps or of what is behind them, [R, A]."""
        found = along(parts.trunk, batch, self.width, (HIDDEN,))
        seen = with_hidden(rows, found, batch, ahead=ahead)
        seen = seen["next"] if ahead else seen
        values: Tensor = parts.heads[0](seen[HIDDEN], seen["action_mask"])
        return values

    def _worth(self, chances: TensorDictBase, values: Tensor) -> Tensor:
        """What the policy earns by values, [R]; an illegal action, whose value is no number, has no chance."""
        logits = self.deciding(chances)["logits"]
        return torch.where(chances["action_mask"], logits.exp() * values, 0.0).sum(-1)

    def loss(self, batch: TensorDictBase) -> Tensor:
        """(2), []."""
        with torch.no_grad():
            rows = rows_of(batch, along(self.policy.module[0], batch, self.width, self.keys), self.config.horizon)
            ahead = self._worth(rows["next"].copy(), self._values(self.targets, rows, batch, ahead=True))
            going_on = ~rows["next", "terminated"].squeeze(-1)
            target = rows["next", "reward"].squeeze(-1) + self.config.gamma * going_on * ahead
        values = self._values(self.parts, rows, batch, ahead=False)
        return ((target - values.gather(-1, rows["action"].unsqueeze(-1)).squeeze(-1)) ** 2).mean()

    def follow(self, rate: float) -> None:
        """Let the targets come after."""
        pairs = zip((self.targets.trunk, *self.targets.heads), (self.parts.trunk, *self.parts.heads), strict=True)
        for target, source in pairs:
            draw_near(target.parameters(), source.parameters(), rate)

    @torch.no_grad()
    def values(self, batch: TensorDictBase) -> Tensor:
        """What the policy would earn from every step on, [R]."""
        rows = rows_of(batch, along(self.policy.module[0], batch, self.width, self.keys), self.config.horizon)
        return self._worth(rows.copy(), self._values(self.parts, rows, batch, ahead=False))


def fitted_value(
    policy: ActorValueOperator,
    data: OfflineData,
    config: OfflineConfig,
    sizes: ActorCriticConfig,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> float:
    """A policy's discounted return from the first steps of the episodes that are held out.

    Args:
      policy: whose.
      data: what is learned from, and on what it is read off.
      config: gamma, batch, rate and norm, and how many regressions.
      sizes: of the critics, and of the policy's memory.
      seed: of critics and windows.
      check: called before every step.
    """
    seen = from_table(data.episodes.manifest.facts["interface"])
    device = next(policy.parameters()).device
    parts = build_critics(sizes, seen, seed + CRITICS, 1)
    nn.ModuleList((parts.trunk, *parts.heads)).to(device)
    fitted = FittedQ(policy, parts, config, sizes)
    optimizer, count = build_adam(fitted.parameters(), config.lr), len(data.taught)
    for step in range(config.fitted):
        check()
        key = rng.fold_in(rng.key(seed), STREAM, step)
        loss = fitted.loss(data.taught_windows(drawn(key, config.batch, count)).to(device)) / config.value_scale**2
        optimizer.zero_grad()
        loss.backward()
        step_if(optimizer, torch.isfinite(nn.utils.clip_grad_norm_(fitted.parameters(), config.max_grad_norm)))
        fitted.follow(RATE)
    batch = data.whole(data.held_out).to(device)
    firsts = batch["step"][batch["valid"]] == 0
    return float(fitted.values(batch)[firsts].mean())
