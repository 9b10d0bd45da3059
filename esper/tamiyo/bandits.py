"""Bandits: policies that learn which seeds pay while they decide, and tend what grows as the rule of thumb does.

What they learn is kept from episode to episode, in the memory and beyond it (``ArmStatistics``); nothing is trained.
"""

import torch
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
    pay,
    success_rate,
)
from esper.tamiyo.bandit_arrays import decide_on_arrays
from esper.tamiyo.bandit_parts import Bandit, BanditMemory, Viability, init_bandit
from esper.tamiyo.baselines import NEVER, HeuristicConfig, tend
from esper.tamiyo.policies import Account, Decision, Policy, PolicyInput
from esper.tamiyo.reasons import rule_confidence, tending_reasons
from esper.tamiyo.selection import STRATEGIES, Selected, only, select
from esper.utils.torch_private import is_plain

FEW = 128
"""Environments up to which decisions are taken on arrays."""


def look_back(bandit: Bandit, memory: BanditMemory, state: State) -> BanditMemory:
    """Forget the last episode where one begins, and pay the arms that grew through the last epoch, if it counted.

    The first epoch of an episode gains nothing that could be measured, and one that was rolled back counts for none.
    """
    fresh = state.epoch == 0
    held = memory.held.masked_fill(fresh.unsqueeze(1), NONE)
    seen = state.signals.epochs_seen
    counts = (seen > memory.seen.masked_fill(fresh, 0)) & (seen > 1)
    paid = arms_held(bandit.codec, bandit.arms, held) & counts.unsqueeze(1)
    return memory.replace(
        statistics=pay(memory.statistics, paid, *last_epoch(state.signals)),
        held=held,
        germinated_at=memory.germinated_at.masked_fill(fresh, NEVER),
        seen=seen,
    )


def viable_arms(
    bandit: Bandit, memory: BanditMemory, state: State, mask: Tensor, live: Tensor
) -> tuple[Tensor, Tensor]:
    """Which arms may be taken, bool [E, N], and why none, int64 [E]: the first limit that leaves none.

    Fewer than ``max_active`` seeds grow; the last germination is ``cool_down`` epochs ago or more; all seeds with the
    new one have at most ``memory_share`` of the budget of parameters; ``live``, bool [E, S], says which slots' grow.
    """
    config, limits, slots = bandit.config, bandit.limits, state.slots
    legal = mask[:, bandit.arms]
    rows = torch.arange(slots.blueprint.shape[1], device=mask.device)
    used = limits.held[rows, slots.blueprint.clamp(min=0)].masked_fill(slots.blueprint == NONE, 0).sum(1)
    budget = config.memory_share * limits.budget
    fits = (used.unsqueeze(1) + limits.sizes[bandit.arms]) <= budget.reshape(-1, 1)
    room = (live.sum(1) < config.max_active).unsqueeze(1)
    rested = (state.epoch - memory.germinated_at >= config.cool_down).unsqueeze(1)
    viable, reason = legal, torch.full_like(state.epoch, int(Reason.NO_PLACE))
    for allowed, otherwise in ((room, Reason.FULL), (rested, Reason.RESTING), (fits, Reason.NO_MEMORY)):
        reason = reason.masked_fill(viable.any(1), int(otherwise))
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
      give the same bits; a memory's statistics may be taken into another episode; few environments on the CPU are
      decided on arrays, which gives the bits of tensors in less time.
    """
    if seen.mask.shape[0] <= FEW and is_plain(seen.mask):
        return decide_on_arrays(bandit, memory, seen)
    return decide_on_tensors(bandit, memory, seen)


def decide_on_tensors(bandit: Bandit, memory: BanditMemory, seen: PolicyInput) -> tuple[BanditMemory, Decision]:
    """``decide``, on every device."""
    state, codec = seen.state, bandit.codec
    memory = look_back(bandit, memory, state)
    live = is_in(state.slots.stage, LIVE)
    viable, waiting = viable_arms(bandit, memory, state, seen.mask, live)
    taken = select(bandit.strategy, bandit.config, memory.statistics, viable, state.epoch, seen.key)
    actions = torch.arange(codec.size, device=seen.mask.device)
    place = (actions == bandit.arms[taken.arm].unsqueeze(1)) & viable.any(1, keepdim=True)
    action = tend(bandit.rule, codec, state.slots, seen.mask, place)
    planted = codec.op[action] == int(Op.GERMINATE)
    taken = taken._replace(scores=taken.scores.masked_fill(~(viable & planted.unsqueeze(1)), torch.nan))
    account = _account(bandit, memory, state, taken, (action, planted, waiting))
    chosen = torch.arange(len(bandit.arms), device=action.device) == taken.arm.unsqueeze(1)
    statistics = memory.statistics
    memory = memory.replace(
        statistics=statistics.replace(chosen=statistics.chosen + (chosen & planted.unsqueeze(1))),
        held=_held_next(codec, state.slots.blueprint.masked_fill(~live, NONE), action),
        germinated_at=torch.where(planted, state.epoch, memory.germinated_at),
    )
    return memory, Decision(action, account=account)


def _held_next(codec: Codec, growing: Tensor, action: Tensor) -> Tensor:
    """Blueprints of the seeds that grow through the epoch to come, int64 [E, S], from those that grow now."""
    slots = torch.arange(growing.shape[1], device=growing.device)
    here = codec.slot[action].unsqueeze(1) == slots
    op = codec.op[action].unsqueeze(1)
    gone = here & ((op == int(Op.CULL)) | (op == int(Op.FOSSILIZE)))
    kept = growing.masked_fill(gone, NONE)
    return torch.where(here & (op == int(Op.GERMINATE)), codec.blueprint[action].unsqueeze(1), kept)


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
    scores[:, bandit.arms] = taken.scores
    return Account(
        confidence=confidence.masked_fill(waits, 1.0),
        reason=tending_reasons(codec, state.slots, action, torch.where(planted, taken.reason, waiting)),
        intent=taken.intent.masked_fill(~planted, int(Intent.NEITHER)),
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
