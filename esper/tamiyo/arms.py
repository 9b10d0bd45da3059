"""Arms: what a bandit may choose among, a blueprint in a slot each, and what is remembered of every one.

An arm is paid once an epoch while its seed grows: by the percentage points of validation accuracy that its environment
gained in that epoch, and by the nats of validation loss (negative = better).
"""

from dataclasses import dataclass

import torch
from tensordict import TypedTensorDict
from torch import Tensor

from esper.leyline.actions import NONE, Blend, Codec, Op
from esper.leyline.state import Signals
from esper.utils.documents import shown


@dataclass(frozen=True)
class BanditConfig:
    """Numbers of the bandits.

    Attributes:
      window: epochs remembered of every arm, >= 1.
      recent: of which so many, the latest, make its score, in [1, window].
      decay: weight of an epoch of age k is decay**k; in (0, 1].
      accuracy_weight, loss_weight: score = accuracy_weight * mean accuracy - loss_weight * mean loss.
      exploration: c of the upper confidence bound, >= 0.
      prior: both parameters of the Beta prior of Thompson sampling, >= 1.
      epsilon: chance of a trial in epoch 0, in [0, 1].
      epsilon_decay: its factor per epoch, in [0, 1].
      temperature: of the softmax over scores, >= 0; 0 = the highest.
      untried_weight: score of an arm never chosen, in the softmax.
      max_active: seeds growing at once, >= 1.
      cool_down: epochs after a germination without another, >= 0.
      memory_share: of the budget of seed parameters, how much a new seed may fill with those there are, in (0, 1].
    """

    window: int = 50
    recent: int = 20
    decay: float = 0.95
    accuracy_weight: float = 0.7
    loss_weight: float = 0.3
    exploration: float = 2.0
    prior: float = 1.0
    epsilon: float = 0.1
    epsilon_decay: float = 0.995
    temperature: float = 1.0
    untried_weight: float = 0.1
    max_active: int = 2
    cool_down: int = 5
    memory_share: float = 0.8

    def __post_init__(self) -> None:
        """Check every field; raise ``ValueError`` with one line."""
        for name, (low, high) in BANDIT_RANGES.items():
            value = getattr(self, name)
            whole = isinstance(getattr(type(self), name), int)
            good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
            if not good or (whole and not isinstance(value, int)):
                kind = "an integer" if whole else "a number"
                raise ValueError(f"bandit.{name} = {shown(value)}: expected {kind} from {low:g} to {high:g}")
        if self.recent > self.window:
            raise ValueError(f"bandit.recent = {self.recent}: expected at most the window, {self.window}")


BANDIT_RANGES: dict[str, tuple[float, float]] = {
    "window": (1, 4096),
    "recent": (1, 4096),
    "decay": (1e-3, 1),
    "accuracy_weight": (-1e6, 1e6),
    "loss_weight": (-1e6, 1e6),
    "exploration": (0, 1e6),
    "prior": (1, 1e6),
    "epsilon": (0, 1),
    "epsilon_decay": (0, 1),
    "temperature": (0, 1e6),
    "untried_weight": (-1e6, 1e6),
    "max_active": (1, 10**6),
    "cool_down": (0, 10**6),
    "memory_share": (1e-6, 1),
}
"""What a number of the bandits may be, both ends included."""


class ArmStatistics(TypedTensorDict):
    """What is remembered of N arms, batch [E]."""

    accuracy: Tensor  # float64 [E, N, W]; pp gained per epoch, newest last, 0 where absent
    loss: Tensor  # float64 [E, N, W]; nats per epoch, negative = better; likewise
    measured: Tensor  # int64 [E, N]; epochs so far
    chosen: Tensor  # int64 [E, N]; times chosen
    successes: Tensor  # int64 [E, N]; epochs in which accuracy rose or loss fell
    failures: Tensor  # int64 [E, N]; the others


def arms_of(codec: Codec, blend: Blend) -> Tensor:
    """The arms as actions: every GERMINATE with a blend, int64 [N], slot by slot."""
    found = [index for index, action in enumerate(codec.actions) if (action.op, action.blend) == (Op.GERMINATE, blend)]
    return torch.tensor(found, dtype=torch.int64, device=codec.op.device)


def arm_names(codec: Codec, blend: Blend) -> list[str]:
    """The arms for people, and for files: such as ``slot 1 norm``."""
    actions = [codec.actions[index] for index in arms_of(codec, blend).tolist()]
    return [f"slot {action.slot} {codec.blueprint_names[action.blueprint]}" for action in actions]


def no_statistics(config: BanditConfig, num_envs: int, num_arms: int, device: torch.device | str) -> ArmStatistics:
    """Statistics of nothing, batch [E]."""
    ring = torch.zeros(num_envs, num_arms, config.window, dtype=torch.float64, device=device)
    count = torch.zeros(num_envs, num_arms, dtype=torch.int64, device=device)
    return ArmStatistics(
        accuracy=ring,
        loss=ring.clone(),
        measured=count,
        chosen=count.clone(),
        successes=count.clone(),
        failures=count.clone(),
        batch_size=[num_envs],
    )


def pay(statistics: ArmStatistics, paid: Tensor, gained: Tensor, lost: Tensor) -> ArmStatistics:
    """Take in one epoch.

    Args:
      statistics: [E].
      paid: bool [E, N]; the arms that the epoch counts for.
      gained: [E]; pp of accuracy.
      lost: [E]; nats of loss, negative = better.
    """
    success = ((gained > 0) | (lost < 0)).unsqueeze(1)

    def push(ring: Tensor, value: Tensor) -> Tensor:
        newest = value.to(ring.dtype).reshape(-1, 1, 1).expand(-1, ring.shape[1], 1)
        return torch.where(paid.unsqueeze(2), torch.cat((ring[..., 1:], newest), dim=2), ring)

    return statistics.replace(
        accuracy=push(statistics.accuracy, gained),
        loss=push(statistics.loss, lost),
        measured=statistics.measured + paid,
        successes=statistics.successes + (paid & success),
        failures=statistics.failures + (paid & ~success),
    )


def scores(config: BanditConfig, statistics: ArmStatistics) -> Tensor:
    """How good every arm was lately, float64 [E, N]: the weighted means of its latest epochs, 0 without any.

    m = accuracy_weight * mean accuracy - loss_weight * mean loss, where an epoch of age k weighs decay**k.
    """
    recent = config.recent
    age = torch.arange(recent - 1, -1, -1, device=statistics.measured.device)
    weight = torch.where(age < statistics.measured.unsqueeze(2), config.decay ** age.to(torch.float64), 0.0)
    total = weight.sum(2).clamp(min=1e-300)
    accuracy, loss = ((weight * ring[..., -recent:]).sum(2) / total for ring in (statistics.accuracy, statistics.loss))
    return config.accuracy_weight * accuracy - config.loss_weight * loss


def success_rate(config: BanditConfig, statistics: ArmStatistics) -> Tensor:
    """Posterior mean of the chance that an epoch with an arm is a success, float64 [E, N]."""
    hits = statistics.successes.double() + config.prior
    return hits / (hits + statistics.failures + config.prior)


def arms_held(codec: Codec, arms: Tensor, held: Tensor) -> Tensor:
    """Which arms' seeds are in the slots.

    Args:
      codec: actions.
      arms: int64 [N]; from ``arms_of``.
      held: int64 [E, S]; blueprint in every slot, NONE without one.

    Returns:
      bool [E, N].
    """
    if not arms.numel():
        return torch.zeros(held.shape[0], 0, dtype=torch.bool, device=held.device)
    there = held[:, codec.slot[arms]]
    return (there != NONE) & (there == codec.blueprint[arms])


def last_epoch(signals: Signals) -> tuple[Tensor, Tensor]:
    """What the last epoch that counted gained in accuracy, pp [E], and lost in loss, nats [E]."""
    return signals.accuracy_delta, -signals.loss_delta
