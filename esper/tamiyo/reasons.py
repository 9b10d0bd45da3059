"""Why: confidence, reason and intent of decisions, policy by policy."""

import torch
from torch import Tensor

from esper.leyline.actions import NONE, Codec, Op
from esper.leyline.decisions import Intent, Reason
from esper.leyline.stages import Stage
from esper.leyline.state import Slots, State
from esper.tamiyo.baselines import HeuristicConfig, Memory, conditions

SURE = 5.0
"""Epochs of a plateau, and points of improvement, that make the rule of thumb certain."""


def rule_reasons(config: HeuristicConfig, codec: Codec, memory: Memory, state: State, mask: Tensor) -> Tensor:
    """Why the rule of thumb waits or germinates, int64 [E]; the first condition that is not met.

    Args:
      config: numbers.
      codec: actions.
      memory: [E]; as the decision left it.
      state: [E]; what was decided on.
      mask: bool [E, A]; what was legal.
    """
    settled, rested, room, late = conditions(config, memory, state)
    place = (mask & (codec.op == int(Op.GERMINATE)) & (codec.blend == int(config.blend))).any(1)
    reason = torch.full_like(state.epoch, int(Reason.SETTLED))
    unmet = (
        (place, Reason.NO_PLACE),
        (settled, Reason.NOT_SETTLED),
        (late, Reason.TOO_EARLY),
        (rested, Reason.RESTING),
        (room, Reason.FULL),
    )
    for met, otherwise in unmet:
        reason = torch.where(met, reason, int(otherwise))
    return reason


def tending_reasons(codec: Codec, slots: Slots, action: Tensor, otherwise: Tensor) -> Tensor:
    """Why ``tend`` did what it did, int64 [E]; ``otherwise`` [E] where it germinated or waited."""
    op = codec.op[action]
    young = at_slot(codec, action, slots.stage, 0) != int(Stage.PROBATIONARY)
    reason = torch.where(op == int(Op.FOSSILIZE), int(Reason.CONTRIBUTES), otherwise)
    reason = torch.where(op == int(Op.ADVANCE), int(Reason.GATE_OPEN), reason)
    cull = torch.where(young, int(Reason.HARMFUL), int(Reason.NO_CONTRIBUTION))
    return torch.where(op == int(Op.CULL), cull, reason)


def rule_confidence(codec: Codec, state: State, action: Tensor) -> Tensor:
    """How sure the rule of thumb is, float32 [E] in [0, 1].

    Of a seed's slot: min(1, |improvement| / 5), with the contribution where it was measured, in place of the accuracy
    gained since the stage began. Else min(1, plateau / 5) of the host for a germination, and what is left of it for
    waiting.
    """
    slots, op = state.slots, codec.op[action]
    gained = torch.where(slots.measured, slots.contribution, slots.improvement)
    of_seed = (at_slot(codec, action, gained, 0.0).abs() / SURE).clamp(max=1).float()
    plateau = (state.signals.plateau / SURE).clamp(max=1).float()
    return torch.where(op == int(Op.WAIT), 1 - plateau, torch.where(op == int(Op.GERMINATE), plateau, of_seed))


def at_slot(codec: Codec, action: Tensor, values: Tensor, otherwise: float) -> Tensor:
    """A slot's value where an action names a slot: [E, S] to [E]."""
    if not values.shape[1]:
        return values.new_full(action.shape, otherwise)
    slot = codec.slot[action]
    return torch.where(slot == NONE, otherwise, values.gather(1, slot.clamp(min=0).unsqueeze(1)).squeeze(1))


def certainty(log_probs: Tensor) -> Tensor:
    """1 less the entropy of a distribution over that of the uniform one on what is legal, [E, A] to float32 [E].

    1 where only one action is legal.
    """
    legal = log_probs.isfinite()
    chance = log_probs.exp()
    entropy = -torch.where(legal, chance * torch.where(legal, log_probs, 0.0), 0.0).sum(1)
    most = legal.sum(1).clamp(min=1).to(entropy.dtype).log()
    share = torch.where(most > 0, entropy / most.clamp(min=1e-12), 0.0)
    return (1 - share).clamp(0, 1).float()


def drawn_intent(log_probs: Tensor, action: Tensor) -> Tensor:
    """EXPLOIT where the likeliest action was taken, else EXPLORE, int64 [E]."""
    likeliest = log_probs.gather(1, action.unsqueeze(1)).squeeze(1) >= log_probs.amax(1)
    return torch.where(likeliest, int(Intent.EXPLOIT), int(Intent.EXPLORE))
