"""Orchestration: what to do with all slots of a host together, as a plan of decisions that are legal now.

Four strategies with the formulas and numbers of the sources. Each is a pure function of a state and keys; what it wants
of a slot is said exactly (``SlotPlan.alpha``), and done as near as actions allow (``TARGETS``).

| strategy | what | gain | risk |
|---|---|---|---|
| REPLACE | the worst seed, if its score is below 0.3, becomes another kind | 0.3 | 0.3 |
| DIVERSIFY | two slots that are empty or below 0.3, lowest first, get kinds by turns, at alpha 0.3 | 0.2 each | 0.3 |
| SPECIALIZE | the best max(1, n // 2) of n seeds gain 0.2 of alpha, up to 0.8; the others go | 0.2 each kept | 0.4 |
| ENSEMBLE | every slot gets a seed, and all of them alpha 1 / n | 0.15 n | 0.2 |

Seeds are those that are alive: what is fossilized stays as it is, and a slot that is blocked is left alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.actions import TARGETS, Blend, Codec, Op
from esper.leyline.stages import LIVE, Stage, is_in
from esper.leyline.state import State
from esper.tamiyo.logits import num_slots
from esper.tamiyo.slot_scores import ranks, scores
from esper.utils import rng


class SlotStrategy(Enum):
    """What is done with the slots."""

    REPLACE = "replace"
    DIVERSIFY = "diversify"
    SPECIALIZE = "specialize"
    ENSEMBLE = "ensemble"


class Worth(NamedTuple):
    """What the sources expect of a strategy: its gain, as a whole or for each slot it works on, and its risk."""

    gain: float
    each: bool
    risk: float


WORTH = {
    SlotStrategy.REPLACE: Worth(0.3, False, 0.3),
    SlotStrategy.DIVERSIFY: Worth(0.2, True, 0.3),
    SlotStrategy.SPECIALIZE: Worth(0.2, True, 0.4),
    SlotStrategy.ENSEMBLE: Worth(0.15, True, 0.2),
}

TRIGGERS = {
    "add_seed": SlotStrategy.DIVERSIFY,
    "remove_seed": SlotStrategy.SPECIALIZE,
    "modify_architecture": SlotStrategy.ENSEMBLE,
    "optimize_parameters": SlotStrategy.REPLACE,
}
"""What the sources call for by the kind of an adaptation."""


@dataclass(frozen=True)
class OrchestrationConfig:
    """Numbers of the strategies.

    Attributes:
      least: score below which a seed performs too badly.
      seeds: slots that DIVERSIFY works on.
      categories: kinds that it takes by turns.
      start: alpha that its seeds get.
      step, most: what SPECIALIZE adds to alpha, and up to what.
      cool_down: epochs between two plans.
      unit: pp of contribution that lift the accuracy's part of a score by 1/2.
      blend: how seeds are blended in.
    """

    least: float = 0.3
    seeds: int = 2
    categories: int = 3
    start: float = 0.3
    step: float = 0.2
    most: float = 0.8
    cool_down: int = 5
    unit: float = 10.0
    blend: Blend = Blend.SIGMOID


class Orchestrator(NamedTuple):
    """What is fixed: numbers, the host's sizes, and where decisions are in the action space.

    Attributes:
      config: numbers.
      codec: actions.
      growth: state -> [E, S]; parameters of a slot's seed over those of its host.
      germinate, change: int64 [S, K]; the action that places a kind, -1 where there is none.
      cull: int64 [S].
      retarget: int64 [S, 5]; -1 where the action space has no RETARGET.
    """

    config: OrchestrationConfig
    codec: Codec
    growth: Callable[[State], Tensor]
    germinate: Tensor
    change: Tensor
    cull: Tensor
    retarget: Tensor


class SlotPlan(NamedTuple):
    """What a strategy does, slot by slot.

    Attributes:
      action: int64 [E, S]; legal decisions, WAIT where there is none to be taken now.
      rank: int64 [E, S]; their order, the lowest first.
      alpha: float64 [E, S]; the weight that a seed shall have, NaN where none is asked for.
      asked: bool [E, S]; slots of which something is wanted.
      possible: bool [E, S]; those of which it can be had.
      gain: float64 [E]; what the sources expect.
      risk: likewise.
    """

    action: Tensor
    rank: Tensor
    alpha: Tensor
    asked: Tensor
    possible: Tensor
    gain: Tensor
    risk: float

    @property
    def succeeds(self) -> Tensor:
        """Whether at least half of what is wanted can be had, bool [E]; not where nothing is wanted."""
        return self.asked.any(1) & (2 * self.possible.sum(1) >= self.asked.sum(1))


def build_orchestrator(
    codec: Codec, growth: Callable[[State], Tensor], config: OrchestrationConfig | None = None
) -> Orchestrator:
    """The fixed parts for an action space; the first blend on offer is taken where the configured one is not."""
    config = config or OrchestrationConfig()
    slots, kinds, device = num_slots(codec), len(codec.blueprint_names), codec.op.device
    blends = sorted({action.blend for action in codec.actions if action.blueprint >= 0})
    blend = int(config.blend) if int(config.blend) in blends or not blends else blends[0]
    table = {op: torch.full((slots, size), -1, device=device) for op, size in _widths(kinds).items()}
    for index, action in enumerate(codec.actions):
        if action.op in table and (action.blueprint < 0 or action.blend == blend):
            table[action.op][action.slot, max(action.blueprint, action.target, 0)] = index
    cull = table[Op.CULL].squeeze(1)
    return Orchestrator(
        config, codec, growth, table[Op.GERMINATE], table[Op.CHANGE_BLUEPRINT], cull, table[Op.RETARGET]
    )


def _widths(kinds: int) -> dict[Op, int]:
    return {Op.GERMINATE: kinds, Op.CHANGE_BLUEPRINT: kinds, Op.CULL: 1, Op.RETARGET: len(TARGETS)}


class _Wish(NamedTuple):
    """What a strategy wants, before it is known what is legal: bool [E, S] and float64 [E, S]."""

    place: Tensor
    cull: Tensor
    alpha: Tensor
    rank: Tensor
    works_on: Tensor


def _wish(orchestrator: Orchestrator, strategy: SlotStrategy, state: State) -> _Wish:
    config, stage = orchestrator.config, state.slots.stage
    score, live, empty = (
        scores(state, orchestrator.growth(state), config.unit),
        is_in(stage, LIVE),
        stage == int(Stage.DORMANT),
    )
    never, no_alpha = torch.zeros_like(live), torch.full_like(score, torch.nan)
    if strategy is SlotStrategy.REPLACE:
        rank = ranks(score, live)
        worst = live & (rank == 0) & (score < config.least)
        return _Wish(worst, never, no_alpha, rank, worst.any(1).long())
    if strategy is SlotStrategy.DIVERSIFY:
        open_ = empty | (live & (score < config.least))
        rank = ranks(score, open_)
        chosen = open_ & (rank < config.seeds)
        return _Wish(chosen, never, torch.where(chosen, config.start, torch.nan), rank, chosen.sum(1))
    if strategy is SlotStrategy.SPECIALIZE:
        rank = ranks(-score, live)
        kept = live & (rank < (live.sum(1) // 2).clamp(min=1).unsqueeze(1))
        raised = (state.slots.alpha.double() + config.step).clamp(max=config.most)
        return _Wish(never, live & ~kept, torch.where(kept, raised, torch.nan), rank, kept.sum(1))
    every = live | empty
    count = every.sum(1)
    share = (1 / count.clamp(min=1).double()).unsqueeze(1)
    return _Wish(empty, never, torch.where(every, share, torch.nan), ranks(score, every), count)


def plan(orchestrator: Orchestrator, strategy: SlotStrategy, state: State, mask: Tensor, key: Tensor) -> SlotPlan:
    """What a strategy would do.

    Args:
      orchestrator: what is fixed.
      strategy: which.
      state: [E].
      mask: bool [E, A]; legal actions.
      key: int64 [E, 2]; for this draw alone: the kinds that REPLACE and ENSEMBLE take.

    Returns:
      the plan. Laws: every action is legal under the mask, at most one for each slot; environments do not influence
      each other; the same arguments give the same bits.
    """
    wish = _wish(orchestrator, strategy, state)
    live = is_in(state.slots.stage, LIVE).unsqueeze(2)
    offered = torch.where(live, orchestrator.change, orchestrator.germinate)  # [E, S, K]
    placing = _choose(orchestrator, strategy, wish.rank, offered, (mask, key))
    place = torch.where(wish.place, placing, 0)
    cull = torch.where(wish.cull, _legal(orchestrator.cull.expand_as(place), mask), 0)
    weighing, can = weigh(orchestrator, wish.alpha, mask)
    weigh_only = ~wish.alpha.isnan() & ~wish.place
    asked = wish.place | wish.cull | weigh_only
    possible = (place > 0) | (cull > 0) | (weigh_only & can)
    action = place + cull + torch.where(weigh_only, weighing, 0)  # of one slot at most one is not 0
    alpha = wish.alpha.masked_fill(wish.place & (place == 0), torch.nan)
    worth = WORTH[strategy]
    gain = worth.gain * (wish.works_on.double() if worth.each else (wish.works_on > 0).double())
    return SlotPlan(action, wish.rank, alpha, asked, possible, gain, worth.risk)


def nearest(alpha: Tensor) -> Tensor:
    """Number of the nearest of ``TARGETS``, the lower one of two; int64 as ``alpha``. NaN: 0."""
    distance = (alpha.nan_to_num(0.0).unsqueeze(-1) - alpha.new_tensor(TARGETS)).abs()
    return distance.argmin(-1)


def weigh(orchestrator: Orchestrator, alpha: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The decisions that give seeds their weights.

    Args:
      orchestrator: what is fixed.
      alpha: float64 [E, S]; NaN where none is asked for.
      mask: bool [E, A].

    Returns:
      int64 [E, S], legal now, WAIT where there is none; and whether there is such an operation at all, bool [E, S]: a
      seed that does not reach the output yet gets its weight later.
    """
    index = orchestrator.retarget.expand(*alpha.shape, -1).gather(2, nearest(alpha).unsqueeze(2)).squeeze(2)
    return torch.where(alpha.isnan(), 0, _legal(index, mask)), index >= 0


def _legal(index: Tensor, mask: Tensor) -> Tensor:
    """Actions [E, ...] that are legal; WAIT in place of others, and of -1."""
    wanted = index.clamp(min=0)
    allowed = mask.gather(1, wanted.flatten(1)).view_as(wanted)
    return torch.where(allowed & (index >= 0), wanted, 0)


def _choose(
    orchestrator: Orchestrator, strategy: SlotStrategy, rank: Tensor, offered: Tensor, given: tuple[Tensor, Tensor]
) -> Tensor:
    """The action that places a kind in each slot, int64 [E, S]; WAIT where no kind is legal."""
    mask, key = given
    legal = _legal(offered, mask)
    if strategy is SlotStrategy.DIVERSIFY:
        known = orchestrator.germinate >= 0
        turn, count = (known.cumsum(1) - 1), known.sum(1, keepdim=True).clamp(min=1)
        start = (rank % orchestrator.config.categories).unsqueeze(2)
        preference = -((turn - start) % count).double()
    else:
        preference = rng.uniform(key, tuple(offered.shape[1:]))
    best = torch.where(legal > 0, preference.double(), -torch.inf).argmax(2, keepdim=True)
    return legal.gather(2, best).squeeze(2)
