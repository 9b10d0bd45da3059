"""The offline learner: a policy, what it is learned with, and rounds of updates on windows of recorded episodes.

A round is a function of the learner before it, the windows and the round's number alone: which windows a step takes is
drawn from the seed, the round and the step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules import ActorValueOperator

from esper.simic.adam import build_adam, step_if
from esper.simic.offline.bc import BehaviourCloning
from esper.simic.offline.config import ALGORITHMS, OfflineConfig
from esper.simic.offline.cql import HEADS as CQL_HEADS
from esper.simic.offline.cql import ConservativeQLearning
from esper.simic.offline.iql import HEADS as IQL_HEADS
from esper.simic.offline.iql import ImplicitQLearning
from esper.simic.offline.objective import OfflineObjective, drawn
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.critics import build_critics
from esper.tamiyo.interface import Interface
from esper.utils import rng

STREAM = 0x0FF1
"""Folded into the seed for the windows of a step."""

Source = Callable[[Tensor], TensorDictBase]
"""From numbers of windows, int64 [B], to the windows, [B, T] with "to_go"."""


def build_objective(
    algorithm: str,
    policy: ActorValueOperator,
    config: OfflineConfig,
    sizes: ActorCriticConfig,
    seen: Interface,
    seed: int,
) -> OfflineObjective:
    """The losses of an algorithm on a policy.

    Args:
      algorithm: of ``ALGORITHMS``.
      policy: what learns.
      config: numbers of the learner.
      sizes: of the critics, and of the policy's memory.
      seen: what the policy sees and says.
      seed: of the critics' parameters.

    Raises:
      ValueError: no such algorithm.
    """
    device = next(policy.parameters()).device
    if algorithm == "bc":
        return BehaviourCloning(policy, config, sizes)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm = {algorithm!r}: expected {', '.join(ALGORITHMS)}")
    kind, heads = (ImplicitQLearning, IQL_HEADS) if algorithm == "iql" else (ConservativeQLearning, CQL_HEADS)
    parts = build_critics(sizes, seen, seed, heads)
    nn.ModuleList((parts.trunk, *parts.heads)).to(device)
    return kind(policy, parts, config, sizes)


@dataclass
class OfflineLearner:
    """A policy with what it is learned with; ``update`` is the only thing that changes it.

    Attributes:
      policy: what learns.
      objective: how.
      config: its numbers.
      seed: of the windows.
      done: rounds so far.
      optimizer: of the policy's parameters, then of the critics'.
    """

    policy: ActorValueOperator
    objective: OfflineObjective
    config: OfflineConfig
    seed: int = 0
    done: int = 0
    optimizer: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        """Build the optimizer."""
        self.optimizer = build_adam(chain(self.policy.parameters(), self._of_critics()), self.config.lr)

    @property
    def critics(self) -> nn.Module:
        """What is learned beside the policy."""
        return self.objective.critics

    def _of_critics(self) -> list[nn.Parameter]:
        return [each for each in self.critics.parameters() if each.requires_grad]

    def update(self, count: int, source: Source, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """A round.

        Args:
          count: of windows.
          source: of windows.
          check: called before every step; an update that it ends by an exception is incomplete.

        Returns:
          means over the steps of what the objective tells, of the norms of policy's and critics' gradients, and the
          share of steps that was skipped, a gradient not being finite.
        """
        seen = list[dict[str, Tensor]]()
        for step in range(self.config.updates):
            check()
            key = rng.fold_in(rng.key(self.seed), STREAM, self.done, step)
            seen.append(self.step(source(drawn(key, self.config.batch, count))))
        self.done += 1
        return {name: float(torch.stack([row[name] for row in seen]).mean()) for name in seen[0]}

    def step(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One step of Adam on windows; the targets come after it. What ``update`` tells of one, [] each."""
        found = self.objective.losses(batch)
        self.optimizer.zero_grad()
        found.total.backward()
        limit = self.config.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), limit)
        of_critics = nn.utils.clip_grad_norm_(self._of_critics(), limit)
        sound = torch.isfinite(norm) & torch.isfinite(of_critics).to(norm.device)
        step_if(self.optimizer, sound)
        self.objective.follow()
        told = {name: value.detach() for name, value in found.told.items()}
        return told | {"gradient_norm": norm, "critic_gradient_norm": of_critics, "skipped": (~sound).to(norm.dtype)}


@torch.no_grad()
def held_out_losses(objective: OfflineObjective, batches: list[TensorDictBase]) -> Mapping[str, float]:
    """What an objective tells of windows that nothing was learned from; means over batches."""
    told = [objective.losses(batch).told for batch in batches]
    return {name: float(torch.stack([row[name] for row in told]).mean()) for name in objective.told} if told else {}
