"""Terms that are potential-based: they change no decision, only how soon it is paid (Ng, Harada & Russell 1999).

Two potentials, functions of the state: that of every slot's stage, and J so far. Both are 0 at the horizon.
"""

from itertools import pairwise

import torch
from torch import Tensor

from esper.kasmina.structure import seed_sizes
from esper.leyline.stages import STAGES
from esper.leyline.state import Slots, State, validated
from esper.simic.reward_terms import EnvStep
from esper.simic.utility import own_price
from esper.simic.utility import utility as utility_of

POTENTIAL = {stage: row.potential for stage, row in STAGES.items() if row.potential > 0}
"""Potential of a stage on entering it, in the order of life; 0 in all others."""

PROGRESS = 0.3
"""Potential gained per epoch in a stage, until half of the step to the next stage."""


def potential(slots: Slots) -> Tensor:
    """Potential of every slot, [E, S], from 0 to that of the last stage; a function of stage and stage age, so nothing
    of it is stored.

    Laws: 0 where there is no seed; it grows with time in a stage, and every next stage is worth more than any time
    spent in the one before.
    """
    levels = list(POTENTIAL.values())
    gaps = [(high - low) / 2 for low, high in pairwise(levels)] + [0.0]
    age = slots.stage_age.to(slots.alpha.dtype)
    value = torch.zeros_like(age)
    for (stage, level), most in zip(POTENTIAL.items(), gaps, strict=True):
        value = torch.where(slots.stage == int(stage), level + (PROGRESS * age).clamp(0.0, most), value)
    return value


def shaped(step: EnvStep, before: Tensor, after: Tensor) -> Tensor:
    """Gamma Phi(after) - Phi(before), [E], where Phi is 0 at the horizon.

    Nothing follows the horizon for the learner, so that a potential left there would be a reward of its own (Grzes
    2017). With it at 0 the discounted sum over an episode is -Phi of its first state, whatever was done.
    """
    return step.params.gamma * torch.where(step.ends, 0.0, after) - before


def shaping(step: EnvStep) -> Tensor:
    """Potential-based, of every slot's stage: paid on entering it, forfeited by a cull, taken back at the horizon."""
    stages = (potential(state.slots).sum(1) for state in (step.before, step.after))
    return step.params.shaping_weight * shaped(step, *stages)


def worth(step: EnvStep, state: State) -> Tensor:
    """J of a state on the validation samples, [E], pp; 0 before the first validation."""
    accuracy, _ = validated(state.signals)
    added = seed_sizes(step.structure, state.slots).sum(1)
    value = utility_of(accuracy, added, step.structure.host.num_params, own_price(step.params.price, state))
    return torch.where(accuracy.isnan(), 0.0, value)


def utility(step: EnvStep) -> Tensor:
    """At the horizon: J on the validation samples."""
    return torch.where(step.ends, worth(step, step.after), 0.0)


def utility_shaping(step: EnvStep) -> Tensor:
    """Potential-based, of J so far: with ``utility``, every epoch earns what J rose by in it."""
    return shaped(step, worth(step, step.before), worth(step, step.after))
