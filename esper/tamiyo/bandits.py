"""Bandits: policies that learn which seeds pay while they decide, and tend what grows as the rule of thumb does.

What they learn is kept from episode to episode, in the memory and beyond it (``ArmStatistics``); nothing is trained.
"""

from typing import NamedTuple

import torch
from tensordict import TypedTensorDict
from torch import Tensor

from esper.leyline.actions import NONE, Codec, Op
from esper.leyline.decisions import Intent, Reason
from esper.leyline.stages import LIVE, is_in
from esper.leyline.state import State
from esper.tamiyo.arms import (
    ArmStatistics,
    BanditConfig,
    arms_held,
    arms_of,
    last_epoch,
    no_statistics,
    pay,
    success_rate,
)
from esper.tamiyo.baselines import NEVER, HeuristicConfig, tend
from esper.tamiyo.logits import num_slots
from esper.tamiyo.policies import Account, Decision, Policy, PolicyInput
from esper.tamiyo.reasons import rule_confidence, tending_reasons
from esper.tamiyo.selection import STRATEGIES, Selected, Strategy, only, select


class Viability(NamedTuple):
    """What seeds cost, and what they may cost."""

    sizes: Tensor  # int64 [A]; parameters of the seed that an action places
    held: Tensor  # int64 [S, K]; parameters of each blueprint at each slot
    budget: Tensor  # [] or [E]; parameters in all seeds


class BanditMemory(TypedTensorDict):
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


def look_back(bandit: Bandit, memory: BanditMemory, state: State) -> BanditMemory:
    """Forget the last episode where one begins, and pay the arms that grew through the last epoch, if it counted.

    The first epoch of an episode gains nothing that could be measured, and one that was rolled back counts for none.
    """
    fresh = state.epoch == 0
    held = torch.where(fresh.unsqueeze(1), NONE, memory.held)
    seen = state.signals.epochs_seen
    counts = (seen > torch.where(fresh, 0, memory.seen)) & (seen > 1)
    paid = arms_held(bandit.codec, bandit.arms, held) & counts.unsqueeze(1)
    return memory.replace(
        statistics=pay(memory.statistics, paid, *last_epoch(state.signals)),
        held=held,
        germinated_at=torch.where(fresh, NEVER, memory.germinated_at),
        seen=seen,
    )


def viable_arms(bandit: Bandit, memory: BanditMemory, state: State, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which arms may be taken, bool [E, N], and why none, int64 [E]: the first limit that leaves none.

    Fewer than ``max_active`` seeds grow; the last germination is ``cool_down`` epochs ago or more; all seeds with the
    new one have at most ``memory_share`` of the budget of parameters.
    """
    config, limits, slots = bandit.config, bandit.limits, state.slots
    legal = mask[:, bandit.arms]
    rows = torch.arange(slots.blueprint.shape[1], device=mask.device)
    used = torch.where(slots.blueprint == NONE, 0, limits.held[rows, slots.blueprint.clamp(min=0)]).sum(1)
    budget = config.memory_share * limits.budget
    fits = (used.unsqueeze(1) + limits.sizes[bandit.arms]) <= budget.reshape(-1, 1)
    room = (is_in(slots.stage, LIVE).sum(1) < config.max_active).unsqueeze(1)
    rested = (state.epoch - memory.germinated_at >= config.cool_down).unsqueeze(1)
    viable, reason = legal, torch.full_like(state.epoch, int(Reason.NO_PLACE))
    for allowed, otherwise in ((room, Reason.FULL), (rested, Reason.RESTING), (fits, Reason.NO_MEMORY)):
        reason = torch.where(viable.any(1), int(otherwise), reason)
        viable = viable & allowed
    return viable, reason


def decide(bandit: Bandit, memory: BanditMemory, seen: PolicyInput) -> tuple[BanditMemory, Decision]:
    """One decision per environment: an arm where one is viable and nothing that grows asks for a decision.

    Args:
      bandit: fixed parts; N >= 1 arms.
      memory: [E].
      seen: what there is.

    Returns:
      memory and decision. Laws: legal under the mask; environments do not influence each other; the same arguments
      give the same bits; a memory's statistics may be taken into another episode.
    """
    state, codec = seen.state, bandit.codec
    memory = look_back(bandit, memory, state)
    viable, waiting = viable_arms(bandit, memory, state, seen.mask)
    taken = select(bandit.strategy, bandit.config, memory.statistics, viable, state.epoch, seen.key)
    actions = torch.arange(codec.size, device=seen.mask.device)
    place = (actions == bandit.arms[taken.arm].unsqueeze(1)) & viable.any(1, keepdim=True)
    action = tend(bandit.rule, codec, state.slots, seen.mask, place)
    planted = codec.op[action] == int(Op.GERMINATE)
    taken = taken._replace(scores=torch.where(viable, taken.scores, torch.nan))
    account = _account(bandit, memory, state, taken, (action, planted, waiting))
    chosen = torch.arange(len(bandit.arms), device=action.device) == taken.arm.unsqueeze(1)
    statistics = memory.statistics
    memory = memory.replace(
        statistics=statistics.replace(chosen=statistics.chosen + (chosen & planted.unsqueeze(1))),
        held=_held_next(codec, state, action),
        germinated_at=torch.where(planted, state.epoch, memory.germinated_at),
    )
    return memory, Decision(action, account=account)


def _held_next(codec: Codec, state: State, action: Tensor) -> Tensor:
    """Blueprints of the seeds that grow through the epoch to come, int64 [E, S]."""
    stage, blueprint = state.slots.stage, state.slots.blueprint
    slots = torch.arange(stage.shape[1], device=stage.device)
    here = codec.slot[action].unsqueeze(1) == slots
    op = codec.op[action].unsqueeze(1)
    gone = here & ((op == int(Op.CULL)) | (op == int(Op.FOSSILIZE)))
    held = torch.where(is_in(stage, LIVE) & ~gone, blueprint, NONE)
    return torch.where(here & (op == int(Op.GERMINATE)), codec.blueprint[action].unsqueeze(1), held)


def _account(
    bandit: Bandit, memory: BanditMemory, state: State, taken: Selected, done: tuple[Tensor, Tensor, Tensor]
) -> Account:
    """Confidence, reason, intent and scores; ``done`` is the action, whether it germinates, and why not.

    A germination's confidence is the arm's ``success_rate``; waiting for want of an arm is certain.
    """
    action, planted, waiting = done
    codec, waits = bandit.codec, bandit.codec.op[action] == int(Op.WAIT)
    rate = success_rate(bandit.config, memory.statistics).gather(1, taken.arm.unsqueeze(1)).squeeze(1).float()
    confidence = torch.where(planted, rate, rule_confidence(codec, state, action))
    scores = torch.full((action.shape[0], codec.size), torch.nan, dtype=torch.float64, device=action.device)
    scores[:, bandit.arms] = torch.where(planted.unsqueeze(1), taken.scores, torch.nan)
    return Account(
        confidence=torch.where(waits, 1.0, confidence),
        reason=tending_reasons(codec, state.slots, action, torch.where(planted, taken.reason, waiting)),
        intent=torch.where(planted, taken.intent, int(Intent.NEITHER)),
        scores=scores,
    )


def bandit_policy(name: str, bandit: Bandit, start: ArmStatistics | None = None) -> Policy:
    """A bandit as a policy.

    Args:
      name: for tables.
      bandit: fixed parts.
      start: statistics of earlier episodes, [E]; None = none.

    Raises:
      ValueError: there is no arm.
    """
    if not len(bandit.arms):
        raise ValueError(f"{name}: no seed can be germinated with blend {bandit.rule.blend.name}; expected an arm")
    return Policy(
        name,
        lambda num_envs: init_bandit(bandit, num_envs, start),
        lambda memory, seen: decide(bandit, memory, seen),
    )


def build_bandit(strategy: str, codec: Codec, limits: Viability, config: BanditConfig, rule: HeuristicConfig) -> Bandit:
    """A bandit over all arms of the rule's blend, by the name of its strategy (``STRATEGIES``)."""
    return Bandit(STRATEGIES[strategy], config, rule, codec, arms_of(codec, rule.blend), limits)


def always(bandit: Bandit, arm: int) -> Bandit:
    """The same with one arm alone, the ``arm``-th: what a selector is held against."""
    return bandit._replace(strategy=only, arms=bandit.arms[arm : arm + 1])
