"""Orchestration strategies as policies: a plan is a macro-action, carried out one decision an epoch."""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.decisions import Reason
from esper.leyline.stages import FAILURE, LIVE, TERMINAL, is_in
from esper.leyline.state import State
from esper.tamiyo.orchestration import Orchestrator, SlotPlan, SlotStrategy, plan, weigh
from esper.tamiyo.policies import Account, Decision, Policy, PolicyInput
from esper.tamiyo.scripted import finish

LONG_AGO = -(2**31)
"""Epoch of a plan that there never was."""


class Agenda(NamedTuple):
    """What of the last plan is left to be done, and when it was made.

    Attributes:
      action, rank: int64 [E, S]; as in ``SlotPlan``.
      alpha: float64 [E, S]; weights that seeds get as soon as they reach the output, NaN where none is asked for.
      begun: int64 [E]; epoch of the plan.
    """

    action: Tensor
    rank: Tensor
    alpha: Tensor
    begun: Tensor


def empty_agenda(num_envs: int, num_slots: int, device: torch.device) -> Agenda:
    """Nothing to be done, [E]."""
    zero = torch.zeros(num_envs, num_slots, dtype=torch.int64, device=device)
    alpha = torch.full(zero.shape, torch.nan, dtype=torch.float64, device=device)
    return Agenda(zero, zero, alpha, torch.full((num_envs,), LONG_AGO, dtype=torch.int64, device=device))


def begin(orchestrator: Orchestrator, strategy: SlotStrategy, agenda: Agenda, seen: PolicyInput) -> Agenda:
    """Make a plan where the last one is done and ``cool_down`` epochs old; where nothing lives that REPLACE or
    SPECIALIZE could work on, it is DIVERSIFY's.

    Args:
      orchestrator: what is fixed.
      strategy: which.
      agenda: [E].
      seen: what there is.
    """
    state = seen.state
    rested = state.epoch - agenda.begun >= orchestrator.config.cool_down
    due = rested & (agenda.action == 0).all(1)
    made = plan(orchestrator, strategy, state, seen.mask, seen.key)
    if strategy in (SlotStrategy.REPLACE, SlotStrategy.SPECIALIZE):
        bare = ~is_in(state.slots.stage, LIVE).any(1)
        first = plan(orchestrator, SlotStrategy.DIVERSIFY, state, seen.mask, seen.key)
        made = _where(bare, first, made)
    due = (due & ((made.action > 0) | ~made.alpha.isnan()).any(1)).unsqueeze(1)
    return Agenda(
        torch.where(due, made.action, agenda.action),
        torch.where(due, made.rank, agenda.rank),
        torch.where(due & ~made.alpha.isnan(), made.alpha, agenda.alpha),
        torch.where(due.squeeze(1), state.epoch, agenda.begun),
    )


def _where(which: Tensor, one: SlotPlan, other: SlotPlan) -> SlotPlan:
    """What is to be done by one plan in some environments, and by another in the others."""
    here = which.unsqueeze(1)
    return other._replace(
        action=torch.where(here, one.action, other.action),
        rank=torch.where(here, one.rank, other.rank),
        alpha=torch.where(here, one.alpha, other.alpha),
    )


def carry_out(orchestrator: Orchestrator, agenda: Agenda, state: State, mask: Tensor) -> tuple[Agenda, Tensor]:
    """The next decision of a plan.

    Args:
      orchestrator: what is fixed.
      agenda: [E].
      state: [E].
      mask: bool [E, A].

    Returns:
      what is left, and int64 [E]: the first decision that is legal by now (those that are not are dropped), else a
      weight for a seed that has come to reach the output, else WAIT.
    """
    queued = torch.where(mask.gather(1, agenda.action), agenda.action, 0)
    first = torch.where(queued > 0, agenda.rank, queued.shape[1]).argmin(1, keepdim=True)
    action = queued.gather(1, first).squeeze(1)
    stage = state.slots.stage
    alpha = torch.where(is_in(stage, (*FAILURE, *TERMINAL)), torch.nan, agenda.alpha)
    weighing, _ = weigh(orchestrator, alpha, mask)
    later = (weighing > 0).long().argmax(1, keepdim=True)
    free = action == 0
    action = torch.where(free, weighing.gather(1, later).squeeze(1), action)
    slots = torch.arange(queued.shape[1], device=queued.device)
    done = (slots == first) & ~free.unsqueeze(1)
    return agenda._replace(action=queued.masked_fill(done, 0), alpha=alpha), action


def orchestration_policy(strategy: SlotStrategy, orchestrator: Orchestrator) -> Policy:
    """A strategy as a policy: its plans, and between them what is ready is fossilized or advanced.

    Args:
      strategy: which; the policy has its name.
      orchestrator: what is fixed.
    """
    finishing = finish(orchestrator.codec)
    slots, device = orchestrator.cull.shape[0], orchestrator.codec.op.device

    def act(agenda: Agenda, seen: PolicyInput) -> tuple[Agenda, Decision]:
        agenda = begin(orchestrator, strategy, agenda, seen)
        agenda, action = carry_out(orchestrator, agenda, seen.state, seen.mask)
        planned = action > 0
        action = torch.where(planned, action, finishing(seen.mask))
        reason = torch.where(planned, int(Reason.STRATEGY), int(Reason.SCRIPT))
        return agenda, Decision(action, account=Account(torch.ones(action.shape, device=action.device), reason))

    return Policy(strategy.value, lambda num_envs: empty_agenda(num_envs, slots, device), act)
