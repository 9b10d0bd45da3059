"""Learning from what others did, before learning from what one does: imitation, weighted by how it ended.

Several deciders play the same environments. In each of them the decisions of an episode count by a softmax over the
returns of all (advantage-weighted regression, Peng et al. 2019, with the environment's other episodes in the place of a
critic). The actor learns the decisions, the critic what they returned. So what is best where need not be found by
chance first, and what nobody showed is still to be found.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules import ActorValueOperator, set_recurrent_mode

from esper.leyline.config import ConfigError
from esper.simic.adam import step_if
from esper.simic.chunks import as_whole
from esper.simic.ppo import Learner
from esper.utils import rng

TEMPERATURE = 3.0
"""Return, in its own unit, by which an episode must be better to count e times as much: of the order of the error of
J on a few hundred validation samples.
"""

LEAST = 0.05
"""Share of an environment's weight below which an episode is left out: it would cost as much as the others. Of many
deciders, an equal share counts.
"""

PASSES, MINIBATCH, RATE = 100, 32, 3e-3
"""Over everything that was shown; episodes of a task in a minibatch; of Adam, whatever the rounds' rate is."""

STREAM = 0x51E3
"""Folded into the learner's seed for the minibatches."""


class Shown(NamedTuple):
    """Episodes of one decider in E environments.

    Attributes:
      data: "observation" [E, T, O], "action_mask" bool [E, T, A], "action" int64 [E, T], and the policy's memory where
        an episode begins, ``REMEMBERED``, [E, T, 1, n].
      reward: [E, T].
    """

    data: TensorDictBase
    reward: Tensor


def weights(returns: Tensor) -> Tensor:
    """How much every episode counts, [N, E]; the sum over deciders is 1 wherever a return is finite, else 0.

    Args:
      returns: of N deciders in the same E environments.

    Laws: equal returns count alike; what is added to all returns of an environment changes nothing; what is not finite
    counts nothing.
    """
    known = torch.where(returns.isfinite(), returns, -torch.inf)
    return torch.softmax(known / TEMPERATURE, dim=0).nan_to_num(0.0)


def to_go(reward: Tensor, gamma: float) -> Tensor:
    """Discounted sums of what is still to come: [E, T] to [E, T]."""
    found, ahead = list[Tensor](), torch.zeros_like(reward[:, 0])
    for step in reversed(range(reward.shape[1])):
        ahead = reward[:, step] + gamma * ahead
        found.append(ahead)
    return torch.stack(found[::-1], 1)


def lessons(shown: Sequence[Shown], gamma: float) -> TensorDictBase:
    """What N deciders did in the same E environments, as one batch [n, T] with "value_target" and "weight".

    Episodes that hardly count are left out, so that n is between E and N E where all returns are finite.
    """
    weight = weights(torch.stack([each.reward.sum(1) for each in shown])).flatten()
    target = torch.cat([to_go(each.reward, gamma) for each in shown])
    data: TensorDictBase = torch.cat([each.data for each in shown])
    data = data.update({"value_target": target, "weight": weight.unsqueeze(1).expand_as(target)})
    return data[weight >= min(LEAST, 1 / len(shown))]


def imitate(learner: Learner, batches: Sequence[TensorDictBase], check: Callable[[], None] = lambda: None) -> float:
    """Take up what was shown. It is no round: ``done`` stays.

    Args:
      learner: fresh.
      batches: a task each, from ``lessons``.
      check: called before every minibatch.

    Returns:
      mean negative log-probability of the decisions in the last pass, nats, weighted.

    Raises:
      ConfigError: of a task there is no episode, no return having been finite.
    """
    if not all(map(len, batches)):
        raise ConfigError("demonstrations: no return is finite; nothing can be learned from them")
    for group in learner.optimizer.param_groups:
        group["lr"] = RATE
    count = 1 + max(len(batch) for batch in batches) // MINIBATCH
    for number in range(PASSES):
        key = rng.fold_in(rng.key(learner.seed), STREAM, number)
        parts = [rng.permutation(key, len(batch)).tensor_split(count) for batch in batches]
        read = list[Tensor]()
        for share in zip(*parts, strict=True):
            check()
            read.append(_minibatch(learner, [batch[rows] for batch, rows in zip(batches, share, strict=True)]))
    return float(torch.stack(read).mean())


def _minibatch(learner: Learner, parts: Sequence[TensorDictBase]) -> Tensor:
    """One step of Adam on a minibatch of every task; the decisions' negative log-probability, []."""
    found = [_losses(learner, learner.view(place), part) for place, part in enumerate(parts) if len(part)]
    surprise, error = (torch.stack(losses).mean() for losses in zip(*found, strict=True))
    learner.optimizer.zero_grad()
    (surprise + learner.config.value_weight * error).backward()
    norm = torch.nn.utils.clip_grad_norm_(learner.policy.parameters(), learner.config.max_grad_norm)
    step_if(learner.optimizer, torch.isfinite(norm))
    return surprise.detach()


def _losses(learner: Learner, view: ActorValueOperator, part: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Of the actor, nats, and of the critic, in its unit squared: weighted means over episodes and decisions."""
    seen, share = as_whole(part), part["weight"] / part["weight"].sum()
    with set_recurrent_mode(True):
        chances = view.get_policy_operator().get_dist(seen)
        value = view.get_value_head()(seen)["state_value"].squeeze(-1)
    off = (value - part["value_target"]) / learner.config.value_scale
    return -(share * chances.log_prob(part["action"])).sum(), (share * off**2).sum()
