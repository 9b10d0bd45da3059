"""PPO for the recurrent policy: whole episodes as sequences, several epochs over minibatches of environments.

Schulman et al. 2017; generalised advantage estimation, Schulman et al. 2016. Collector, loss and the advantage's
recursion are TorchRL's. The horizon ends the task here: the policy sees how much of it is left, rewards are paid for
it, and nothing follows. The environment calls it a truncation, for learners that would look beyond; bootstrapping
there lets the values run away, for the state at the horizon is a target's part in every update and a target in none.

With one epoch per batch the ratio is always 1 and clipping never acts, so there are several;
an update stops early when the policy has moved too far.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import Compose, InitTracker, TransformedEnv
from torchrl.modules import ActorValueOperator, set_recurrent_mode
from torchrl.modules.utils import get_primers_from_module
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate

from esper.leyline.config import ConfigError
from esper.simic.adam import build_adam, step_if
from esper.simic.environment import EsperEnv
from esper.utils import rng

KEPT = ("observation", "action_mask", "recurrent_state_h", "recurrent_state_c", "action", "action_log_prob")
"""Keys of a rollout that the update needs, beside the advantages."""

SEEN = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "gradient_norm", "skipped")
"""What is told of a minibatch."""

LOSSES = ("loss_objective", "loss_critic", "loss_entropy", "entropy", "kl_approx", "clip_fraction")
"""What TorchRL's loss says of a minibatch."""


RANGES: dict[str, tuple[float, float]] = {
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "clip": (0.001, 0.99),  # the ratio's lower end is 1 - clip, and its logarithm is taken
    "epochs": (1, 100),
    "minibatches": (1, 1024),
    "lr": (0.0, 1.0),
    "warmup": (0.0, 1.0),
    "entropy_start": (0.0, 100.0),
    "entropy_end": (0.0, 100.0),
    "value_weight": (0.0, 1e6),
    "value_scale": (1e-6, 1e9),
    "max_grad_norm": (1e-6, 1e9),
    "target_kl": (0.0, math.inf),  # infinite: no update ends early
}
"""Closed ranges of the learner's numbers."""


@dataclass(frozen=True)
class PPOConfig:
    """Numbers of the learner; ``RANGES`` has what is allowed.

    Attributes:
      gamma: discount per decision; the shaping's potential uses the same.
      gae_lambda: decay of the advantage estimate.
      clip: range of the probability ratio.
      epochs, minibatches: passes over a batch, and parts of each.
      lr: Adam's rate at its peak; warmed up over ``warmup`` of all rounds, then decaying linearly to a tenth.
      entropy_start, entropy_end: entropy bonus, linear over the rounds.
      value_weight: weight of the critic's loss.
      value_scale: the critic's errors are measured in this unit of return (the policy's ``value_scale``), so that the
        clipping of the gradient's norm does not drown the actor in the critic.
      max_grad_norm: of all parameters together.
      target_kl: an epoch in which the approximate KL exceeds 1.5 times this is the last.
    """

    gamma: float = 0.995
    gae_lambda: float = 0.95
    clip: float = 0.2
    epochs: int = 4
    minibatches: int = 4
    lr: float = 1e-3
    warmup: float = 0.05
    entropy_start: float = 0.05
    entropy_end: float = 0.005
    value_weight: float = 0.5
    value_scale: float = 1.0
    max_grad_norm: float = 0.5
    target_kl: float = 0.03

    def __post_init__(self) -> None:
        """Check every number; raise ``ConfigError`` with one line."""
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ConfigError(f"ppo.{name} = {value!r}: expected {low:g} to {high:g}")


def make_collector(env: EsperEnv, policy: ActorValueOperator) -> Collector:
    """A collector of whole episodes: each batch is [E, T], T the horizon."""
    transforms = Compose(InitTracker(), get_primers_from_module(policy))
    horizon = env.engine.config.horizon
    return Collector(
        TransformedEnv(env, transforms),
        policy.get_policy_operator(),
        frames_per_batch=env.engine.config.num_envs * horizon,
        total_frames=-1,
        reset_at_each_iter=True,
        auto_register_policy_transforms=False,
        track_traj_ids=False,
    )


def as_whole(episodes: TensorDictBase) -> TensorDictBase:
    """Episodes [E, T] that begin at their first step, marked so for TorchRL's LSTM.

    Before every pass it looks whether one begins further on. The flags that it looks at stay on the host, so that it
    need not wait for the device.
    """
    return episodes.copy().clear_device_().set("is_init", torch.zeros(*episodes.shape, 1, dtype=torch.bool))


def values_of(policy: ActorValueOperator, batch: TensorDictBase) -> Tensor:
    """State values along whole episodes and of the successor of their last step.

    Args:
      policy: trunk and critic.
      batch: [E, T] rollout from the start of its episodes.

    Returns:
      [E, T + 1, 1].
    """
    last = batch[:, -1:]
    keys = ("observation", "action_mask")
    sequence = {key: torch.cat((batch[key], last["next", key]), dim=1) for key in keys}
    again = ("recurrent_state_h", "recurrent_state_c")
    sequence |= {key: torch.cat((batch[key], torch.zeros_like(last[key])), dim=1) for key in again}
    whole = TensorDict(sequence, batch_size=[batch.shape[0], batch.shape[1] + 1])
    with torch.no_grad(), set_recurrent_mode(True):
        value: Tensor = policy.get_value_operator()(as_whole(whole))["state_value"]
    return value


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


def normalise(estimate: TensorDict, values: Tensor) -> TensorDict:
    """Advantages of mean 0 and deviation 1; steps that are not finite are left out and teach nothing.

    Args:
      estimate: from ``advantages``, [E, T].
      values: [E, T, 1]; what the critic said.

    Returns:
      like estimate, finite. Law: the finite steps get what they would get if the others did not exist.
    """
    advantage, target = estimate["advantage"], estimate["value_target"]
    finite, flat = torch.isfinite(advantage), advantage.flatten()
    count = finite.sum().to(advantage.dtype)
    mean = torch.where(finite.flatten(), flat, 0.0).sum() / count
    spread = torch.where(finite.flatten(), flat, mean).std()  # the mean's deviation is 0: only the divisor counts it
    std = spread * ((flat.numel() - 1) / (count - 1).clamp(min=1)).sqrt()
    scaled = torch.where(finite & (count > 1), (advantage - mean) / std.clamp(min=1e-6), 0.0)
    kept = {"advantage": scaled, "value_target": torch.where(finite, target, values)}
    return TensorDict(kept, batch_size=estimate.batch_size)


def told(numbers: Sequence[Tensor]) -> Any:
    """Numbers as Python has them: one download, for which the host waits."""
    return torch.stack(list(numbers)).tolist()


class PreparedBatch(NamedTuple):
    """A task's episodes, ready to learn from."""

    data: TensorDictBase  # [E, T]; what the update needs, with normalised advantages and value targets
    explained: Tensor  # []; share of the targets' variance that the critic foresaw


def prepare(policy: ActorValueOperator, config: PPOConfig, batch: TensorDictBase) -> PreparedBatch:
    """Judge a task's episodes.

    Args:
      policy: trunk and critic.
      config: gamma and lambda.
      batch: [E, T] from ``make_collector``.
    """
    after, values = batch["next"], values_of(policy, batch)
    estimate = advantages(config, values, after["reward"], after["done"], after["done"])
    target = estimate["value_target"]
    explained = 1 - (target - values[:, :-1]).var() / (target.var() + 1e-8)
    return PreparedBatch(batch.select(*KEPT).update(normalise(estimate, values[:, :-1])), explained)


@dataclass
class Learner:
    """A policy with its optimizer; ``update`` is the only thing that changes it."""

    policy: ActorValueOperator
    config: PPOConfig
    rounds: int
    seed: int = 0
    done: int = 0
    loss: ClipPPOLoss = field(init=False)
    optimizer: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        """Build loss and optimizer."""
        config = self.config
        self.loss = ClipPPOLoss(
            self.policy.get_policy_operator(),
            self.policy.get_value_head(),
            clip_epsilon=config.clip,
            entropy_coeff=config.entropy_start,
            critic_coeff=config.value_weight / config.value_scale**2,
            loss_critic_type="l2",
            normalize_advantage=False,
        )
        self.loss.set_keys(sample_log_prob="action_log_prob")
        self.optimizer = build_adam(self.policy.parameters(), config.lr)

    def schedule(self) -> tuple[float, float]:
        """Learning rate and entropy bonus of the present round."""
        config, share = self.config, self.done / max(self.rounds, 1)
        warm = min(1.0, (self.done + 1) / max(1.0, config.warmup * self.rounds))
        entropy = config.entropy_start + (config.entropy_end - config.entropy_start) * min(1.0, share)
        return config.lr * warm * (1 - 0.9 * min(1.0, share)), entropy

    def update(self, batches: Sequence[TensorDictBase], check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Learn from whole episodes, of one task or of several.

        Advantages are normalised within a task: their returns need not be on one scale. Every minibatch holds a share
        of every task, and counts each decision alike.

        Args:
          batches: a task each, [E, T] from ``make_collector``; E and T may differ.
          check: called before every minibatch; an update that it ends by an exception is incomplete.

        Returns:
          means over the minibatches: losses, entropy, approximate KL, clipped fraction, and which share of them was
          skipped, their gradient not being finite; and the epochs done.
        """
        config, device = self.config, next(self.policy.parameters()).device
        lr, entropy = self.schedule()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.loss.entropy_coeff.fill_(entropy)
        prepared = [prepare(self.policy, config, batch) for batch in batches]
        count = min([config.minibatches, *(len(part.data) for part in prepared)])
        seen, epochs = list[list[float]](), 0
        for epoch in range(config.epochs):
            key = rng.fold_in(rng.key(self.seed).to(device), self.done, epoch)
            parts = [rng.permutation(key, len(part.data)).tensor_split(count) for part in prepared]
            taken = []
            for share in zip(*parts, strict=True):
                check()
                taken.append(self._minibatch([part.data[rows] for part, rows in zip(prepared, share, strict=True)]))
            epochs += 1
            read = told(taken)  # which says whether there is another pass
            seen += read
            if sum(row[SEEN.index("kl")] for row in read) / len(read) > 1.5 * config.target_kl:
                break
        self.done += 1
        means = {name: sum(column) / len(seen) for name, column in zip(SEEN, zip(*seen, strict=True), strict=True)}
        explained = sum(told([part.explained for part in prepared])) / len(prepared)
        return means | {"epochs": epochs, "lr": lr, "entropy_weight": entropy, "explained_variance": explained}

    def _minibatch(self, parts: Sequence[TensorDictBase]) -> Tensor:
        """One step of Adam on a minibatch of every task; the numbers of ``SEEN``."""
        steps = sum(part.numel() for part in parts)
        with set_recurrent_mode(True):
            found = [(part.numel() / steps, self.loss(as_whole(part))) for part in parts]
        zero = parts[0]["action_log_prob"].new_zeros(())  # a loss of weight 0 is left out
        out = {name: sum(share * loss.get(name, zero).mean() for share, loss in found) for name in LOSSES}
        total = out["loss_objective"] + out["loss_critic"] + out["loss_entropy"]
        self.optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        sound = torch.isfinite(norm)
        step_if(self.optimizer, sound)
        losses = (out[name] for name in ("loss_objective", "loss_critic", "entropy", "kl_approx", "clip_fraction"))
        return torch.stack([*(value.detach() for value in losses), norm.detach(), (~sound).to(norm.dtype)])
