"""Players: every policy, learned or not, behind one signature."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ActorValueOperator

from esper.leyline.actions import Codec
from esper.leyline.state import State
from esper.tamiyo import baselines
from esper.tamiyo.interface import Translation
from esper.tamiyo.scripted import MaskPolicy
from esper.utils import rng


class Sight(NamedTuple):
    """What a player may look at before it decides."""

    state: State
    observation: Tensor  # float32 [E, O]
    mask: Tensor  # bool [E, A]; legal actions
    key: Tensor  # int64 [E, 2]; for this decision alone


class Thought(NamedTuple):
    """What a learned player thinks of a sight."""

    value: Tensor  # [E]; predicted discounted return-to-go
    log_probs: Tensor  # [E, A]; -inf where illegal


class Choice(NamedTuple):
    """A decision, with the thought behind it where there is one."""

    action: Tensor  # int64 [E]; always legal
    thought: Thought | None = None


class Player(NamedTuple):
    """A policy.

    Attributes:
      name: for tables.
      init: number of environments -> memory at the start of an episode.
      act: (memory, sight) -> (memory, choice).
    """

    name: str
    init: Callable[[int], Any]
    act: Callable[[Any, Sight], tuple[Any, Choice]]


def from_mask(name: str, policy: MaskPolicy) -> Player:
    """A player that looks at the mask alone, such as ``scripted.wait`` and ``scripted.grow``."""
    return Player(name, lambda num_envs: None, lambda memory, sight: (memory, Choice(policy(sight.mask))))


def random_player(codec: Codec) -> Player:
    """Draws a legal operation, then its arguments."""
    policy = baselines.random_legal(codec)
    return Player(
        "random", lambda num_envs: None, lambda memory, sight: (memory, Choice(policy(sight.mask, sight.key)))
    )


def heuristic_player(codec: Codec, config: baselines.HeuristicConfig | None = None) -> Player:
    """The rule of thumb."""
    numbers = baselines.HeuristicConfig() if config is None else config

    def act(memory: baselines.Memory, sight: Sight) -> tuple[baselines.Memory, Choice]:
        memory, action = baselines.heuristic(numbers, codec, memory, sight.state, sight.mask)
        return memory, Choice(action)

    return Player("heuristic", lambda num_envs: baselines.init_heuristic(codec, num_envs), act)


def learned_player(
    policy: ActorValueOperator, lstm: int, greedy: bool = False, translation: Translation | None = None
) -> Player:
    """A learned policy.

    Args:
      policy: from ``build_policy``.
      lstm: width of its memory.
      greedy: take the likeliest action instead of drawing one from the sight's key.
      translation: between the policy's interface and the task's; None where they are the same.
    """
    actor, critic = policy.get_policy_operator(), policy.get_value_head()

    def init(num_envs: int) -> dict[str, Tensor]:
        zero = torch.zeros(num_envs, 1, lstm)
        return {"recurrent_state_h": zero, "recurrent_state_c": zero.clone()}

    def act(memory: dict[str, Tensor], sight: Sight) -> tuple[dict[str, Tensor], Choice]:
        count = sight.mask.shape[0]
        start = torch.zeros(count, 1, dtype=torch.bool)
        observation, mask = sight.observation, sight.mask
        if translation is not None:
            observation, mask = translation.observation(observation), translation.mask(mask)
        seen = {"observation": observation, "action_mask": mask, "is_init": start, **memory}
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            out = critic(actor(TensorDict(seen, batch_size=[count])))
        log_probs = torch.where(mask, out["logits"], -torch.inf)
        log_probs = log_probs if translation is None else translation.log_probs(log_probs)
        action = log_probs.argmax(1) if greedy else rng.categorical(sight.key, log_probs)
        thought = Thought(out["state_value"].squeeze(1), log_probs)
        return {name: out["next", name] for name in memory}, Choice(action, thought)

    return Player("learned", init, act)
