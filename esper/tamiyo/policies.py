"""Policies: every one, learned or not, behind one signature."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.modules import ActorValueOperator

from esper.leyline.actions import Codec
from esper.leyline.decisions import Reason
from esper.leyline.state import State
from esper.tamiyo import baselines
from esper.tamiyo.interface import Translation
from esper.tamiyo.reasons import certainty, drawn_intent, rule_confidence, rule_reasons, tending_reasons
from esper.tamiyo.scripted import MaskPolicy
from esper.tamiyo.tiles import Tiled, scored
from esper.utils import rng

LEARNED = "learned"
"""How names of learned policies begin."""


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


class Account(NamedTuple):
    """What a policy says of its decisions."""

    confidence: Tensor  # float [E], in [0, 1]
    reason: Tensor  # int64 [E]; Reason
    intent: Tensor | None = None  # int64 [E]; Intent; None: NEITHER throughout
    scores: Tensor | None = None  # float [E, A]; of actions, NaN where there is none


class Decision(NamedTuple):
    """One decision per environment, with a learned policy's diagnostics and the policy's account."""

    action: Tensor  # int64 [E]; always legal
    diagnostics: Diagnostics | None = None
    account: Account | None = None


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
    """A policy that looks at the mask alone, such as ``scripted.wait`` and ``scripted.grow``; it has no doubts."""

    def act(memory: None, seen: PolicyInput) -> tuple[None, Decision]:
        action = choose(seen.mask)
        sure = torch.ones(action.shape, device=action.device)
        return memory, Decision(action, account=Account(sure, torch.full_like(action, int(Reason.SCRIPT))))

    return Policy(name, lambda num_envs: None, act)


def random_policy(codec: Codec) -> Policy:
    """Draws a legal operation, then its arguments."""

    def act(memory: None, seen: PolicyInput) -> tuple[None, Decision]:
        log_probs = baselines.legal_log_probs(codec, seen.mask)
        action = rng.categorical(seen.key, log_probs)
        reason = torch.full_like(action, int(Reason.DRAWN))
        return memory, Decision(action, account=Account(certainty(log_probs), reason))

    return Policy("random", lambda num_envs: None, act)


def heuristic_policy(codec: Codec, config: baselines.HeuristicConfig | None = None) -> Policy:
    """The rule of thumb.

    Raises:
      ValueError: it names a blueprint or a blend that is not on offer.
    """
    numbers = baselines.HeuristicConfig() if config is None else config
    baselines.rotation_of(numbers, codec)

    def act(memory: baselines.Memory, seen: PolicyInput) -> tuple[baselines.Memory, Decision]:
        memory, action = baselines.heuristic(numbers, codec, memory, seen.state, seen.mask)
        otherwise = rule_reasons(numbers, codec, memory, seen.state, seen.mask)
        reason = tending_reasons(codec, seen.state.slots, action, otherwise)
        return memory, Decision(action, account=Account(rule_confidence(codec, seen.state, action), reason))

    return Policy("heuristic", lambda num_envs: baselines.init_heuristic(codec, num_envs, codec.op.device), act)


def learned_policy(
    actor_critic: ActorValueOperator,
    lstm: int,
    greedy: bool = False,
    translation: Translation | None = None,
    strict: bool = False,
) -> Policy:
    """A learned policy.

    Args:
      actor_critic: from ``build_actor_critic``, on the device of what it is shown.
      lstm: width of its memory.
      greedy: take the likeliest action instead of drawing one from the input's key.
      translation: between the policy's interface and the task's; None where they are the same.
      strict: decide by tiles of a fixed size, so that no decision's bits depend on how many others there are.
    """
    actor, critic = actor_critic.get_policy_operator(), actor_critic.get_value_head()
    whole = scored(lambda given: critic(actor(given)))
    run = Tiled(whole) if strict else whole

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
        out = run(TensorDict(given, batch_size=[count]))
        log_probs = torch.where(mask, out["logits"], -torch.inf)
        log_probs = log_probs if translation is None else translation.log_probs(log_probs)
        action = log_probs.argmax(1) if greedy else rng.categorical(seen.key, log_probs)
        diagnostics = Diagnostics(out["state_value"].squeeze(1), log_probs)
        reason = torch.full_like(action, int(Reason.LIKELIEST if greedy else Reason.DRAWN))
        account = Account(certainty(log_probs), reason, drawn_intent(log_probs, action))
        return {name: out["next", name] for name in memory}, Decision(action, diagnostics, account)

    return Policy(LEARNED, init, act)
