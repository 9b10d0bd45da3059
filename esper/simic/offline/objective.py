"""What every offline algorithm is to the learner: losses of a batch, critics beside the policy, and their targets."""

from collections.abc import Iterable
from typing import ClassVar, NamedTuple, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules import ActorValueOperator

from esper.utils import rng


class Losses(NamedTuple):
    """What a batch comes to: the number to be made small, [], and by name what is told of it, [] each."""

    total: Tensor
    told: dict[str, Tensor]


class OfflineObjective(Protocol):
    """An algorithm.

    Attributes:
      told: names of what it tells.
      critics: what it learns beside the policy, with its targets; a module without parameters if that is nothing.
    """

    told: ClassVar[tuple[str, ...]]
    critics: nn.Module

    def losses(self, batch: TensorDictBase) -> Losses:
        """Of windows [B, T] with "to_go" [B, T]; a mean over the rows that are data."""

    def follow(self) -> None:
        """Let the targets come after the critics, once after every step."""


def policy_keys(policy: ActorValueOperator) -> tuple[str, ...]:
    """What the heads of a policy read of its trunk."""
    read = (*policy.get_policy_head().in_keys, *policy.get_value_head().in_keys)
    return tuple(dict.fromkeys(key for key in read if key != "action_mask"))


def drawn(key: Tensor, size: int, count: int) -> Tensor:
    """Numbers below ``count``, drawn with replacement, int64 [size]."""
    return (rng.uniform(key, (size,), dtype=torch.float64) * count).long().clamp(max=count - 1)


@torch.no_grad()
def draw_near(targets: Iterable[Tensor], sources: Iterable[Tensor], rate: float) -> None:
    """Move targets towards their sources: target + rate (source - target) (Polyak averaging)."""
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source, rate)
