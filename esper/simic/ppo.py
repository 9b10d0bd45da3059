"""PPO for the recurrent policy: whole episodes as sequences, several epochs over minibatches of environments.

Schulman et al. 2017; generalised advantage estimation, Schulman et al. 2016. Collector, loss and the advantage's
recursion are TorchRL's. The horizon ends the task here: the policy sees how much of it is left, rewards are paid for
it, and nothing follows. The environment calls it a truncation, for learners that would look beyond; bootstrapping
there lets the values run away, for the state at the horizon is a target's part in every update and a target in none.
So the reward's potentials are 0 there, and shaping changes no decision.

With one epoch per batch the ratio is always 1 and clipping never acts, so there are several;
an update stops early when the policy has moved too far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import Compose, InitTracker, Transform, TransformedEnv
from torchrl.modules import ActorValueOperator
from torchrl.modules.utils import get_primers_from_module
from torchrl.objectives import ClipPPOLoss

from esper.leyline.config import ConfigError
from esper.simic.adam import build_adam, step_if
from esper.simic.advantages import PreparedBatch, prepare, sound
from esper.simic.chunks import REMEMBERED, Chunking, descend
from esper.simic.environment import EsperEnv
from esper.simic.ppo_config import PPOConfig
from esper.simic.ranks import ALONE, Ranks, Shard, places_of, sum_gradients
from esper.simic.sharded_actor import ShardedActor
from esper.tamiyo.tiles import StrictActor
from esper.utils import rng

SEEN = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "gradient_norm", "skipped")
"""What is told of a minibatch."""


class GoOn(Transform):
    """Lets an episode be taken up: the next reset finds the policy's memory as it was, and no beginning.

    Attributes:
      memory: what the policy saw and remembered last, [E]; used once. None: episodes begin.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory: TensorDictBase | None = None

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        memory, self.memory = self.memory, None
        if memory is not None:
            for name in REMEMBERED:
                tensordict_reset.set(name, memory[name].clone())
            tensordict_reset.set("is_init", torch.zeros_like(tensordict_reset["is_init"]))
        return tensordict_reset


def make_collector(
    env: EsperEnv,
    policy: ActorValueOperator,
    part: int | None = None,
    go_on: GoOn | None = None,
    shard: Shard | None = None,
) -> Collector:
    """A collector of episodes.

    Args:
      env: what is played.
      policy: what plays.
      part: decisions t of a batch [E, t]; None = whole episodes.
      go_on: what lets episodes be taken up, if anything.
      shard: which of all environments these are, where other ranks have the others.

    Returns:
      the collector. Every batch begins with a reset, as long as its ``reset_at_each_iter`` is true.
    """
    transforms = Compose(InitTracker(), get_primers_from_module(policy), *([] if go_on is None else [go_on]))
    actor = policy.get_policy_operator()
    if env.strict:
        actor = StrictActor(actor)
    elif shard is not None:
        actor = ShardedActor(actor, shard)
    return Collector(
        TransformedEnv(env, transforms),
        actor,
        frames_per_batch=env.engine.config.num_envs * (part or env.engine.config.horizon),
        total_frames=-1,
        reset_at_each_iter=True,
        auto_register_policy_transforms=False,
        track_traj_ids=False,
    )


def told(numbers: Sequence[Tensor]) -> Any:
    """Numbers as Python has them: one download, for which the host waits."""
    return torch.stack(list(numbers)).tolist()


@dataclass
class Learner:
    """A policy with its optimizer; ``update`` is the only thing that changes what it has learned.

    Attributes:
      policy: what learns.
      config: its numbers.
      rounds: how many are planned.
      seed: of the minibatches.
      done: rounds so far.
      views: the policy as it plays each of several tasks, with the same parameters in all; empty = as it is.
      ranks: whose episodes are learned from together; each has a learner, and all of them learn the same.
      losses: of every view.
      optimizer: of the parameters.
    """

    policy: ActorValueOperator
    config: PPOConfig
    rounds: int
    seed: int = 0
    done: int = 0
    views: Sequence[ActorValueOperator] = ()
    ranks: Ranks = ALONE
    losses: list[ClipPPOLoss] = field(init=False)
    optimizer: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        """Build losses and optimizer."""
        views = self.views or (self.policy,)
        built = {id(view): self._build_loss(view) for view in views}
        self.losses = [built[id(view)] for view in views]
        self.optimizer = build_adam(self.policy.parameters(), self.config.lr)

    @property
    def loss(self) -> ClipPPOLoss:
        """The loss of the first view."""
        return self.losses[0]

    def view(self, place: int) -> ActorValueOperator:
        """The policy as it plays a task."""
        return self.views[place] if self.views else self.policy

    def loss_of(self, place: int) -> ClipPPOLoss:
        """The loss of a task."""
        return self.losses[place] if self.views else self.loss

    def show(self, views: Sequence[ActorValueOperator]) -> None:
        """Let the policy play through other interfaces; its parameters and their moments keep their bits.

        Args:
          views: per task; names and shapes of their parameters are the policy's.
        """
        before, moments = list(self.policy.parameters()), self.optimizer.state
        views[0].load_state_dict(self.policy.state_dict())
        self.policy, self.views = views[0], views
        self.__post_init__()
        for old, new in zip(before, self.policy.parameters(), strict=True):
            if old in moments:
                self.optimizer.state[new] = moments[old]

    def _build_loss(self, view: ActorValueOperator) -> ClipPPOLoss:
        config = self.config
        loss = ClipPPOLoss(
            view.get_policy_operator(),
            view.get_value_head(),
            clip_epsilon=config.clip,
            entropy_coeff=config.entropy_start,
            critic_coeff=config.value_weight / config.value_scale**2,
            loss_critic_type="l2",
            normalize_advantage=False,
        )
        loss.set_keys(sample_log_prob="action_log_prob")
        return loss

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
          skipped, their gradient not being finite; the epochs done; and which share of the decisions was left out.
          Law: an update with episodes in which something is not finite is the update without them, to the bit.

        Raises:
          ConfigError: all decisions of a task would be left out. Nothing has changed then.
        """
        config = self.config
        lr, entropy = self.schedule()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for loss in self.losses:
            loss.entropy_coeff.fill_(entropy)
        prepared, foreseen, left_out = self._prepare(batches)
        data = [part.data for part in prepared]
        places = places_of(self.ranks, [len(part) for part in data])
        count = min([config.minibatches, *(place.total for place in places)])
        seen, epochs = list[list[float]](), 0
        for epoch in range(config.epochs):
            read = self._pass(list(zip(data, places, strict=True)), count, epoch, check)
            seen, epochs = seen + read, epochs + 1
            if sum(row[SEEN.index("kl")] for row in read) / len(read) > 1.5 * config.target_kl:
                break
        self.done += 1
        means = {name: sum(column) / len(seen) for name, column in zip(SEEN, zip(*seen, strict=True), strict=True)}
        means |= {"explained_variance": sum(foreseen) / len(foreseen), "left_out": sum(left_out) / len(left_out)}
        return means | {"epochs": epochs, "lr": lr, "entropy_weight": entropy}

    def _prepare(self, batches: Sequence[TensorDictBase]) -> tuple[list[PreparedBatch], list[float], list[float]]:
        """The sound episodes of every task; how much of the targets' variance was foreseen, and how much is left out.

        All of it in one download, unless there are broken ones.
        """
        names, kept = ("explained_variance", "left_out", "broken"), [1.0] * len(batches)
        while True:
            views = [self.view(place) for place in range(len(batches))]
            prepared = [prepare(view, self.config, own, self.ranks) for view, own in zip(views, batches, strict=True)]
            found = told([torch.stack([getattr(part, name) for name in names]) for part in prepared])
            foreseen, left_out, broken = map(list, zip(*found, strict=True))
            left_out = [1 - share * (1 - left) for share, left in zip(kept, left_out, strict=True)]
            if max(*left_out, *broken) == 1:
                raise ConfigError(
                    f"round {self.done + 1}: in no episode are all numbers finite; nothing can be learned"
                )
            if max(broken) == 0:
                return prepared, foreseen, left_out
            kept = [1 - share for share in broken]
            batches = [batch[sound(batch)] for batch in batches]

    def _pass(
        self,
        batches: Sequence[tuple[TensorDictBase, Shard]],
        count: int,
        epoch: int,
        check: Callable[[], None],
    ) -> list[list[float]]:
        """All minibatches once; the numbers of ``SEEN`` of each, a pass's one download.

        Which episodes a minibatch holds is drawn for all ranks' together; a rank learns from those that it has.
        """
        key = rng.fold_in(rng.key(self.seed).to(batches[0][0]["action"].device), self.done, epoch)
        parts = [rng.permutation(key, place.total).tensor_split(count) for _, place in batches]
        taken = []
        for chosen in zip(*parts, strict=True):
            check()
            pairs = list(zip(batches, chosen, strict=True))
            steps = sum(len(rows) * batch.shape[1] for (batch, _), rows in pairs)
            taken.append(self._minibatch([batch[place.own(rows)] for (batch, place), rows in pairs], steps))
        read: list[list[float]] = told(taken)
        return read

    def _minibatch(self, parts: Sequence[TensorDictBase], steps: int) -> Tensor:
        """One step of Adam on what this rank has of a minibatch of every task, of so many decisions on all ranks; the
        numbers of ``SEEN``.
        """
        self.optimizer.zero_grad()
        chunking = Chunking(self.config.sequence_chunk, self.config.exact_chunks)
        out = descend(parts, [self.loss_of(place) for place in range(len(parts))], chunking, steps)
        names = ("loss_objective", "loss_critic", "entropy", "kl_approx", "clip_fraction")
        losses = torch.stack([out[name] for name in names])
        losses = sum_gradients(self.ranks, list(self.policy.parameters()), losses)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        sound = torch.isfinite(norm)
        step_if(self.optimizer, sound)
        return torch.cat([losses, torch.stack([norm.detach(), (~sound).to(norm.dtype)])])
