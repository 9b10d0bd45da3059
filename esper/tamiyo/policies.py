"""Policies: every one, learned or not, behind one signature."""

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


class PolicyInput(NamedTuple):
    """What a policy may look at before it decides."""

    state: State
    observation: Tensor  # float32 [E, O]
    mask: Tensor  # bool [E, A]; legal actions
    key: Tensor  # int64 [E, 2]; for this decision alone


class Diagnostics(NamedTuple):
    """What a learned policy computed on the way to its decisions."""

    value: Tensor  # [E]; predicted discounted return-to-go
    log_probs: Tensor  # [E, A]; -inf where illegal


class Decision(NamedTuple):
    """One decision per environment, with a learned policy's diagnostics."""

    action: Tensor  # int64 [E]; always legal
    diagnostics: Diagnostics | None = None


class Policy(NamedTuple):
    """A policy.

    Attributes:
      name: for tables.
      init: number of environments -> memory at the start of an episode.
      act: (memory, input) -> (memory, decision).
    """

    name: str
    init: Callable[[int], Any]
    act: Callable[[Any, PolicyInput], tuple[Any, Decision]]


def from_mask(name: str, choose: MaskPolicy) -> Policy:
    """A policy that looks at the mask alone, such as ``scripted.wait`` and ``scripted.grow``."""
    return Policy(name, lambda num_envs: None, lambda memory, seen: (memory, Decision(choose(seen.mask))))


def random_policy(codec: Codec) -> Policy:
    """Draws a legal operation, then its arguments."""
    choose = baselines.random_legal(codec)
    return Policy("random", lambda num_envs: None, lambda memory, seen: (memory, Decision(choose(seen.mask, seen.key))))


def heuristic_policy(codec: Codec, config: baselines.HeuristicConfig | None = None) -> Policy:
    """The rule of thumb.

    Raises:
      ValueError: it names a blueprint or a blend that is not on offer.
    """
    numbers = baselines.HeuristicConfig() if config is None else config
    baselines.rotation_of(numbers, codec)

    def act(memory: baselines.Memory, seen: PolicyInput) -> tuple[baselines.Memory, Decision]:
        memory, action = baselines.heuristic(numbers, codec, memory, seen.state, seen.mask)
        return memory, Decision(action)

    return Policy("heuristic", lambda num_envs: baselines.init_heuristic(codec, num_envs, codec.op.device), act)


def learned_policy(
    actor_critic: ActorValueOperator, lstm: int, greedy: bool = False, translation: Translation | None = None
) -> Policy:
    """A learned policy.

    Args:
      actor_critic: from ``build_actor_critic``, on the device of what it is shown.
      lstm: width of its memory.
      greedy: take the likeliest action instead of drawing one from the input's key.
      translation: between the policy's interface and the task's; None where they are the same.
    """
    actor, critic = actor_critic.get_policy_operator(), actor_critic.get_value_head()

    def init(num_envs: int) -> dict[str, Tensor]:
        zero = next(actor.parameters()).new_zeros(num_envs, 1, lstm)
        return {"recurrent_state_h": zero, "recurrent_state_c": zero.clone()}

    def act(memory: dict[str, Tensor], seen: PolicyInput) -> tuple[dict[str, Tensor], Decision]:
        count = seen.mask.shape[0]
        start = torch.zeros(count, 1, dtype=torch.bool, device=seen.mask.device)
        observation, mask = seen.observation, seen.mask
        if translation is not None:
            observation, mask = translation.observation(observation), translation.mask(mask)
        given = {"observation": observation, "action_mask": mask, "is_init": start, **memory}
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            out = critic(actor(TensorDict(given, batch_size=[count])))
        log_probs = torch.where(mask, out["logits"], -torch.inf)
        log_probs = log_probs if translation is None else translation.log_probs(log_probs)
        action = log_probs.argmax(1) if greedy else rng.categorical(seen.key, log_probs)
        diagnostics = Diagnostics(out["state_value"].squeeze(1), log_probs)
        return {name: out["next", name] for name in memory}, Decision(action, diagnostics)

    return Policy("learned", init, act)
