"""What a batch of episodes teaches: advantages by generalised advantage estimation (Schulman et al. 2016), and targets.

The advantage's recursion is TorchRL's. An episode in which a number is not finite is left out as a whole, so that the
others teach what they would teach alone; so is a decision whose advantage overflows. How much that is, is told.
"""

from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.modules import ActorValueOperator
from torchrl.objectives.value.functional import generalized_advantage_estimate

from esper.simic.chunks import REMEMBERED, in_chunks
from esper.simic.ppo_config import PPOConfig
from esper.simic.ranks import ALONE, Ranks, share

READ = ("observation", "action_log_prob", ("next", "observation"), ("next", "reward"))
"""Numbers of a rollout that the update computes with."""

KEPT = ("observation", "action_mask", *REMEMBERED, "action", "action_log_prob")
"""Keys of a rollout that the update needs, beside the advantages."""


def sound(batch: TensorDictBase) -> Tensor:
    """Which episodes [E] of a rollout [E, T] hold finite numbers only."""
    whole: Tensor = torch.stack([batch[name].flatten(1).isfinite().all(1) for name in READ]).all(0)
    return whole


def values_of(policy: ActorValueOperator, batch: TensorDictBase, chunk: int = 0) -> Tensor:
    """State values along whole episodes and of the successor of their last step.

    Args:
      policy: trunk and critic.
      batch: [E, T] rollout from the start of its episodes.
      chunk: steps that are run at once; 0 = all.

    Returns:
      [E, T + 1, 1].
    """
    if not len(batch):
        return batch["next", "reward"].new_zeros(0, batch.shape[1] + 1, 1)
    last = batch[:, -1:]
    keys = ("observation", "action_mask")
    sequence = {key: torch.cat((batch[key], last["next", key]), dim=1) for key in keys}
    sequence |= {key: torch.cat((batch[key], torch.zeros_like(last[key])), dim=1) for key in REMEMBERED}
    whole = TensorDict(sequence, batch_size=[batch.shape[0], batch.shape[1] + 1])
    critic = policy.get_value_operator()
    return torch.cat([part["state_value"] for part in in_chunks(critic, critic, whole, chunk)], 1)


def advantages(config: PPOConfig, values: Tensor, reward: Tensor, done: Tensor, terminated: Tensor) -> TensorDict:
    """Advantages and value targets.

    Args:
      config: gamma and lambda.
      values: [E, T + 1, 1].
      reward, done, terminated: [E, T, 1]; a truncated step is done but not terminated and bootstraps.

    Returns:
      "advantage" and "value_target", [E, T, 1]. Law: A_t = sum_k (gamma lambda)^k delta_{t+k} within an episode.
      TorchRL's recursion over time, not its vectorised form: that one drops the far tail of the sum (an error of 1e-5)
      and raises where gamma * lambda is nearly 0.
    """
    gamma, lam = values.new_full((), config.gamma), values.new_full((), config.gae_lambda)
    advantage, target = generalized_advantage_estimate(
        gamma, lam, values[:, :-1], values[:, 1:], reward, done, terminated
    )
    return TensorDict({"advantage": advantage, "value_target": target}, batch_size=list(reward.shape[:2]))


def normalise(estimate: TensorDict, values: Tensor, ranks: Ranks = ALONE) -> TensorDict:
    """Advantages of mean 0 and deviation 1 over all ranks; steps that are not finite are left out and teach nothing.

    Args:
      estimate: from ``advantages``, [E, T].
      values: [E, T, 1]; what the critic said.
      ranks: of the job.

    Returns:
      like estimate, finite. Law: the finite steps get what they would get if the others did not exist.
    """
    advantage, target = estimate["advantage"], estimate["value_target"]
    finite = torch.isfinite(advantage)
    count, mean = _mean(advantage, finite, ranks)
    std = _deviation(advantage, finite, (count, mean), ranks)
    scaled = torch.where(finite & (count > 1), (advantage - mean) / std.clamp(min=1e-6), 0.0)
    kept = {"advantage": scaled, "value_target": torch.where(finite, target, values)}
    return TensorDict(kept, batch_size=estimate.batch_size)


def _mean(values: Tensor, counted: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Of all ranks' values that count: how many, and their mean; twice []."""
    held = torch.stack((counted.sum().to(values.dtype), torch.where(counted, values, 0.0).sum()))
    count, total = ranks.sum(held)
    return count, total / count


def _squares(values: Tensor, counted: Tensor, mean: Tensor, ranks: Ranks) -> Tensor:
    """The sum of squares around the mean, of all ranks' values that count, []."""
    return ranks.sum(torch.where(counted, (values - mean) ** 2, 0.0).sum())


def _deviation(values: Tensor, counted: Tensor, centre: tuple[Tensor, Tensor], ranks: Ranks) -> Tensor:
    """Unbiased deviation of all ranks' values that count, with their count and mean, [].

    One rank has it from torch, in one pass; its last place may differ from that of the sum over ranks.
    """
    count, mean = centre
    degrees = (count - 1).clamp(min=1)
    if ranks.size > 1:
        return (_squares(values, counted, mean, ranks) / degrees).sqrt()
    spread = torch.where(counted, values, mean).std()  # the mean's deviation is 0: only the divisor counts it
    return spread * ((values.numel() - 1) / degrees).sqrt()


class PreparedBatch(NamedTuple):
    """A task's episodes, ready to learn from."""

    data: TensorDictBase  # [E, T]; what the update needs, with normalised advantages and value targets
    explained_variance: Tensor  # []; share of the targets' variance that the critic foresaw
    left_out: Tensor  # []; share of the decisions whose advantage is not finite, and which teach nothing
    broken: Tensor  # []; share of the episodes that are not sound, and must be taken out


def variance(values: Tensor, counted: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Unbiased variance of those of all ranks' values that count, []; NaN of fewer than two.

    Args:
      values: any shape; those that do not count may be anything.
      counted: bool, likewise.
      ranks: of the job.
    """
    count, mean = _mean(values, counted, ranks)
    return _squares(values, counted, mean, ranks) / torch.where(count > 1, count - 1, torch.nan)


def prepare(
    policy: ActorValueOperator, config: PPOConfig, batch: TensorDictBase, ranks: Ranks = ALONE
) -> PreparedBatch:
    """Judge a task's episodes.

    Args:
      policy: trunk and critic.
      config: gamma and lambda.
      batch: [E, T] from ``make_collector``; E may be 0 where other ranks have episodes.
      ranks: of the job; what is told is told of all ranks' episodes.
    """
    after = batch["next"]
    values = values_of(policy, batch, config.sequence_chunk)
    estimate = advantages(config, values, after["reward"], after["done"], after["done"])
    finite, target = torch.isfinite(estimate["advantage"]), estimate["value_target"]
    unforeseen = variance(target - values[:, :-1], finite, ranks)
    explained = 1 - unforeseen / (variance(target, finite, ranks) + 1e-8)
    data = batch.select(*KEPT).update(normalise(estimate, values[:, :-1], ranks))
    return PreparedBatch(data, explained, 1 - share(ranks, finite), 1 - share(ranks, sound(batch)))
