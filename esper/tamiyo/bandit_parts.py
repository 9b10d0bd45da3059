"""What a bandit is made of, and what it remembers."""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.actions import NONE, Codec
from esper.leyline.state import Fields
from esper.tamiyo.arms import ArmStatistics, BanditConfig, no_statistics
from esper.tamiyo.baselines import NEVER, HeuristicConfig
from esper.tamiyo.logits import num_slots
from esper.tamiyo.selection import Strategy


class Viability(NamedTuple):
    """What seeds cost, and what they may cost."""

    sizes: Tensor  # int64 [A]; parameters of the seed that an action places
    held: Tensor  # int64 [S, K]; parameters of each blueprint at each slot
    budget: Tensor  # [] or [E]; parameters in all seeds


class BanditMemory(Fields):
    """What a bandit remembers, batch [E]."""

    statistics: ArmStatistics
    held: Tensor  # int64 [E, S]; blueprint of the seed that grew through the last epoch, NONE without one
    germinated_at: Tensor  # int64 [E]; epoch of the last germination, NEVER before one
    seen: Tensor  # int64 [E]; epochs that counted before the last decision


class Bandit(NamedTuple):
    """A bandit's fixed parts.

    Attributes:
      strategy: how an arm is selected.
      config: its numbers.
      rule: the rule of thumb's, for the rest of a seed's life and for the blend.
      codec: actions.
      arms: int64 [N]; actions to choose among.
      limits: costs.
    """

    strategy: Strategy
    config: BanditConfig
    rule: HeuristicConfig
    codec: Codec
    arms: Tensor
    limits: Viability


def init_bandit(bandit: Bandit, num_envs: int, statistics: ArmStatistics | None = None) -> BanditMemory:
    """Memory at the start of an episode, batch [E], with statistics of earlier ones."""
    device = bandit.codec.op.device
    if statistics is None:
        statistics = no_statistics(bandit.config, num_envs, len(bandit.arms), device)
    count = torch.zeros(num_envs, dtype=torch.int64, device=device)
    held = torch.full((num_envs, num_slots(bandit.codec)), NONE, device=device)
    return BanditMemory(
        statistics=statistics,
        held=held,
        germinated_at=torch.full_like(count, NEVER),
        seen=count,
        batch_size=[num_envs],
    )
