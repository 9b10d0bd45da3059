"""Rewards: one table of named terms; a mode is the set of terms that count in it, and its reward is their sum.

All terms have one scale: a slot's contribution, shaping, warnings and costs are of the order of 1 per step, terms at
the horizon of the order of an episode of them. A reward sees the state before the decision and the state after the
epoch that followed it, so a decision's own outcome is in it. Terms and numbers start from esper-lite's (December
2025). What is otherwise here, and why:

- UTILITY is J of ``utility`` on the validation samples, nothing else; the other modes guess at what leads there.
- Shaping is computed from states: F = weight (gamma Phi(after) - Phi(before)) over all slots, always (Ng, Harada &
  Russell 1999), so that entering a stage is paid and a cull forfeits it; at the horizon Phi is 0, and all is paid back:
  over an episode shaping adds nothing. Progress within a stage ends at half of the
  step to the next stage: with a cap of 2.0, advancing after a few epochs and fossilizing would *lower* the potential.
- Germination has no bonus of its own: it *is* the shaping of that stage entry, which would be paid twice.
- Attribution counts all merged seeds, not the slot of the sampled action; 0.05 per pp and at most 50 pp per slot.
  A cap of 10 pp would make a seed worth 3 pp to the final network earn what one worth 30 does, once the network leans
  on both. Improvement since birth is the one baseline; the discount of a falling network is "no credit without
  progress".
- Fossilized seeds keep earning (``fossil_share``). Otherwise keeping a seed on probation, or growing and culling seeds
  in turn, would pay more than finishing one, and a fossil would cost rent for nothing.
- A seed that is not merged earns nothing: a share of the network's gain would credit the host's own learning.
- The sign flip of CULL takes back the seed's last credit, which was paid one step before; it does not touch the ratio
  penalty, a term of its own. Culling a harmful seed has no bonus: with the flip, growing harmful seeds and culling
  them would earn. "Too young" is below 5 epochs, and the price of culling a helping seed rises from 0.
  CHANGE_BLUEPRINT is treated as the cull it contains.
- Waiting on probation costs linearly, only where FOSSILIZE was open, and from the epoch on in which the bonus of
  fossilizing is full: an exponential warning would dwarf everything else, and one that begins before the full bonus
  would punish whoever waits for it.
- The bonus of fossilizing uses the contribution measured *after* the decision: not the noise it was selected by.
- Illegal actions cost a little: masks exclude them. A rollback costs 2. Rent is 0.1 per unit of log growth, at most
  1.5, and a host counts at least 200 parameters: hosts here are tiny, growth by a factor of ten is what helps them,
  and must not cost more per step than any accuracy could earn.
- Final accuracy earns 0.2 per pp: at 0.05 it would be a twentieth of an episode's other terms.
- A contributing fossil at the horizon is one whose measured contribution is enough *then*.
- SIMPLIFIED uses the terms of SHAPED. SPARSE pays for ln(1 + extra/host): a fixed 1/500,000 per parameter would be
  nothing for small hosts. LOSS has positive ``loss_delta`` = improvement, weight 1, and the common shaping. Terms that
  reward a measurement are 0 in an epoch that was rolled back.

Limit: credit for accuracy a merged seed delivered in earlier epochs is kept when it is culled. A seed culled before
it merges, or one that never had a positive credit, earns nothing, discounted or not.
"""

from collections.abc import Callable
from enum import Enum
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.structure import Structure
from esper.leyline.actions import Op
from esper.leyline.config import Config
from esper.leyline.events import Transition
from esper.leyline.hypers import build_leaves, over
from esper.leyline.stages import Stage
from esper.leyline.state import State
from esper.simic import reward_terms as terms
from esper.simic.reward_shaping import POTENTIAL, potential, shaping, utility, utility_shaping
from esper.simic.reward_terms import EnvStep, RewardParams, growth

__all__ = (
    "DEFAULT_REWARD",
    "TERMS",
    "Reward",
    "RewardMode",
    "RewardParams",
    "bound",
    "build_reward_params",
    "potential",
    "reward",
)


class RewardMode(Enum):
    """What is rewarded; the terms of each are in ``TERMS``."""

    SHAPED = "shaped"
    SIMPLIFIED = "simplified"
    SPARSE = "sparse"
    MINIMAL = "minimal"
    LOSS = "loss"
    UTILITY = "utility"


DEFAULT_REWARD = RewardMode.UTILITY
"""Of policies trained for each of them, UTILITY's have the highest J, which is what growing is for."""


class Reward(NamedTuple):
    """A reward and what it is made of."""

    terms: dict[str, Tensor]  # name -> [E], in the table's order
    total: Tensor  # [E]; their sum


OwnReward = Callable[[EnvStep], dict[str, Tensor]]
"""A reward of one's own: a step -> its terms by name, [E] each. The reward is their sum."""


class Term(NamedTuple):
    """One row of the table.

    Attributes:
      value: EnvStep -> [E].
      modes: in which it counts.
      bounds: (params, number of slots S) -> least and greatest value, [] or [E] or a number.
    """

    value: Callable[[EnvStep], Tensor]
    modes: tuple[RewardMode, ...]
    bounds: Callable[[RewardParams, int], tuple[Tensor | float, Tensor | float]]

    @property
    def doc(self) -> str:
        """One line."""
        return (self.value.__doc__ or "").partition("\n")[0]


def sparse(step: EnvStep) -> Tensor:
    """At the horizon: best accuracy of the episode less the parameters, in [-1, 1]."""
    params, after = step.params, step.after
    worth = after.signals.best_accuracy / 100 - params.sparse_rent * growth(params, step.structure, after.slots)
    return torch.where(step.ends, (params.sparse_scale * worth).clamp(-1.0, 1.0), 0.0)


def hasty_cull(step: EnvStep) -> Tensor:
    """Removing a seed younger than ``cull_age``."""
    young = step.before.slots.age < over(step.params.cull_age, 1)
    hasty = (step.done_to(Op.CULL, Op.CHANGE_BLUEPRINT) & young).any(1)
    return torch.where(hasty, -step.params.minimal_cull, 0.0)


def loss(step: EnvStep) -> Tensor:
    """Fall of the validation loss (positive = better) in ``loss_scale``, clipped to +-5; a rise counts half."""
    x = (step.after.signals.loss_delta / step.params.loss_scale).clamp(-5.0, 5.0)
    return torch.where(step.sane, step.params.loss_weight * torch.where(x < 0, x / 2, x), 0.0)


def loss_rent(step: EnvStep) -> Tensor:
    """Parameters of the seeds past their grace, logarithmically, up to the cap."""
    params, slots = step.params, step.after.slots
    counted = (slots.age >= over(params.loss_grace, 1)) | (slots.stage == int(Stage.FOSSILIZED))
    return -torch.minimum(params.loss_rent * growth(params, step.structure, slots, counted), params.rent_cap)


def loss_terminal(step: EnvStep) -> Tensor:
    """At the horizon: how far the loss came from random guessing to the target, in [0, 1]."""
    signals, target = step.after.signals, step.params.loss_target
    guess = torch.full_like(signals.val_loss, step.structure.host.num_outputs).log()
    way = ((guess - signals.val_loss) / (guess - target).clamp(min=1e-6)).clamp(0.0, 1.0)
    return torch.where(step.ends & (signals.epochs_seen > 0), step.params.loss_terminal * way, 0.0)


_SHAPED = (RewardMode.SHAPED,)
_STAGED = (RewardMode.SHAPED, RewardMode.SIMPLIFIED)
_PUNISHED = (RewardMode.SHAPED, RewardMode.SIMPLIFIED, RewardMode.LOSS)
_GUIDED = (*_PUNISHED, RewardMode.UTILITY)
_SPARSE = (RewardMode.SPARSE, RewardMode.MINIMAL)
_LOSS = (RewardMode.LOSS,)
_UTILITY = (RewardMode.UTILITY,)
_TOP = max(POTENTIAL.values())

MOST_GROWTH = 44.0
"""ln(1 + added / host) of as many parameters as an int64 can count."""


def _contribution_bounds(p: RewardParams, slots: int) -> tuple[Tensor, Tensor]:
    most = p.contribution_weight * p.contribution_cap * slots
    return -most, most


def _utility_bounds(p: RewardParams, slots: int) -> tuple[Tensor, Tensor]:
    del slots
    return -MOST_GROWTH * p.price, 100 + 0 * p.price


def _utility_change_bounds(p: RewardParams, slots: int) -> tuple[Tensor, Tensor]:
    least, most = _utility_bounds(p, slots)
    return least - most, most - least


def _culling_least(p: RewardParams) -> Tensor:
    return -(p.cull_young + p.cull_helping + p.cull_helping_slope * p.contribution_cap)


def _intervention_least(p: RewardParams) -> Tensor:
    return -torch.maximum(torch.maximum(p.advance_cost, p.fossilize_cost), p.cull_cost + p.germinate_cost)


TERMS: dict[str, Term] = {
    "attribution": Term(terms.attribution, _SHAPED, _contribution_bounds),
    "ratio_penalty": Term(terms.ratio_penalty, _SHAPED, lambda p, s: (-p.ratio_penalty * s, 0.0)),
    "blending_warning": Term(terms.blending_warning, _SHAPED, lambda p, s: (-p.warning_cap * s, 0.0)),
    "probation_warning": Term(terms.probation_warning, _SHAPED, lambda p, s: (-p.warning_cap * s, 0.0)),
    "shaping": Term(
        shaping, _GUIDED, lambda p, s: (-p.shaping_weight * _TOP * s, p.shaping_weight * p.gamma * _TOP * s)
    ),
    "rent": Term(terms.rent, _SHAPED, lambda p, s: (-p.rent_cap, 0.0)),
    "intervention": Term(terms.intervention, _STAGED, lambda p, s: (_intervention_least(p), 0.0)),
    "refusal": Term(terms.refusal, _STAGED, lambda p, s: (-p.refusal_cost, 0.0)),
    "culling": Term(terms.culling, _SHAPED, lambda p, s: (_culling_least(p), 0.0)),
    "fossilization": Term(
        terms.fossilization, _SHAPED, lambda p, s: (-1.8, p.fossil_bonus + p.contribution_weight * p.contribution_cap)
    ),
    "rollback": Term(terms.rollback, _PUNISHED, lambda p, s: (-p.rollback_penalty, 0.0)),
    "terminal_accuracy": Term(terms.terminal_accuracy, _STAGED, lambda p, s: (0.0, 100 * p.terminal_accuracy)),
    "terminal_fossils": Term(terms.terminal_fossils, _STAGED, lambda p, s: (0.0, p.terminal_fossil * s)),
    "sparse": Term(sparse, _SPARSE, lambda p, s: (-1.0, 1.0)),
    "hasty_cull": Term(hasty_cull, (RewardMode.MINIMAL,), lambda p, s: (-p.minimal_cull, 0.0)),
    "loss": Term(loss, _LOSS, lambda p, s: (-2.5 * p.loss_weight, 5 * p.loss_weight)),
    "loss_rent": Term(loss_rent, _LOSS, lambda p, s: (-p.rent_cap, 0.0)),
    "loss_terminal": Term(loss_terminal, _LOSS, lambda p, s: (0.0, p.loss_terminal)),
    "utility": Term(utility, _UTILITY, _utility_bounds),
    "utility_shaping": Term(utility_shaping, _UTILITY, _utility_change_bounds),
}
"""Every term by name: its function, the modes in which it counts, its bounds."""


def build_reward_params(
    overrides: dict[str, float | Tensor], config: Config, device: torch.device | str = "cpu"
) -> RewardParams:
    """The rewards' numbers: defaults with overrides.

    Args:
      overrides: name -> number, [] tensor or [E] tensor.
      config: for E and the precision.
      device: where the leaves live.

    Raises:
      ConfigError: unknown name, wrong shape or out of range; one line.
    """
    leaves = build_leaves(
        RewardParams, "rewards", overrides, config.num_envs, config.precision.dtype, torch.device(device)
    )
    return RewardParams(**leaves, batch_size=[])


def reward(
    mode: RewardMode | OwnReward,
    params: RewardParams,
    structure: Structure,
    before: State,
    after: State,
    event: Transition,
) -> Reward:
    """Reward of one environment step.

    Args:
      mode: which terms count; or a reward of one's own, of which none of the laws is known.
      params: numbers.
      structure: horizon, sizes of host and seeds.
      before: state before the decision.
      after: state after the step.
      event: what the step reported.

    Returns:
      the mode's terms and their sum, [E]. Laws: finite; within ``bound``; the discounted sums of shaping and of
      utility_shaping over a whole episode are 0, whatever was done, so that of UTILITY is gamma^(T - 1) J.
    """
    step = EnvStep(params, structure, before, after, event)
    if isinstance(mode, RewardMode):
        values = {name: term.value(step) for name, term in TERMS.items() if mode in term.modes}
    else:
        values = mode(step)
    return Reward(values, reduce(torch.add, values.values()))  # term by term: the order of torch's sum depends on E


def bound(mode: RewardMode, params: RewardParams, num_slots: int) -> tuple[Tensor, Tensor]:
    """Least and greatest reward of any step, [] or [E]: the sums of the terms' bounds (accuracies in [0, 100]).

    Where environments draw prices of their own, ``params.price`` is to be theirs.

    With the defaults and S slots: SHAPED [-8.445 - 5.4 S, 23 + 7.291 S], SIMPLIFIED [-2.045 - 1.8 S, 20 + 4.791 S],
    SPARSE [-1, 1], MINIMAL [-1.1, 1], LOSS [-6 - 1.8 S, 6 + 1.791 S], UTILITY [-188 - 1.8 S, 244 + 1.791 S].
    """
    low = high = torch.zeros_like(params.gamma)
    for term in TERMS.values():
        if mode in term.modes:
            least, most = term.bounds(params, num_slots)
            low, high = low + least, high + most
    return low, high
