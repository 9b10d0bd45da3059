"""The lens task as a decision problem in plain Python: no tensor, nothing of Esper; solved by dynamic programming.

Written from the documented life cycle and the documented reward SHAPED, whose numbers are PRICES. In this task much is
known beforehand: a seed's contribution is CONTRIBUTION of its kind from its first epoch in the output on, its gates
open as soon as it has spent an epoch in its stage, and nothing depends on chance.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

HORIZON, GAMMA = 10, 0.995
PRICES = {
    "gamma": GAMMA,
    "shaping_weight": 0.3,
    "contribution_weight": 0.1,
    "contribution_cap": 10.0,
    "fossil_share": 1.0,
    "enough_contribution": 1.0,
    "ratio_limit": 5.0,
    "ratio_penalty": 0.3,
    "warning_base": 0.1,
    "warning_step": 0.05,
    "warning_cap": 0.4,
    "patience": 2,
    "rent_weight": 0.5,
    "rent_cap": 1.5,
    "rent_floor": 200,
    "germinate_cost": 0.02,
    "advance_cost": 0.01,
    "fossilize_cost": 0.01,
    "cull_cost": 0.005,
    "fossil_bonus": 0.5,
    "cull_age": 5,
    "cull_young": 0.3,
    "cull_helping": 0.3,
    "cull_helping_slope": 0.05,
    "terminal_accuracy": 0.05,
    "terminal_fossil": 3.0,
}
price = SimpleNamespace(**PRICES)

SPARK, LENS = 0, 1
CONTRIBUTION = (5.0, 10.0)  # pp
SIZE = (1, 50)  # parameters
BARE = 40.0  # pp; accuracy of the host alone

NEXT = {"training": "blending", "blending": "shadowing", "shadowing": "probation"}
LIVE = (*NEXT, "probation")
MERGED = ("blending", "shadowing", "probation", "fossil")
POTENTIAL = {"training": (2.0, 0.75), "blending": (3.5, 0.5), "shadowing": (4.5, 0.5), "probation": (5.5, 0.25)}
COST = {
    "wait": 0.0,
    "germinate": price.germinate_cost,
    "advance": price.advance_cost,
    "cull": price.cull_cost,
    "fossilize": price.fossilize_cost,
    "change": price.cull_cost + price.germinate_cost,
}


class LensSlot(NamedTuple):
    """A slot between two decisions; ages in epochs, the seed's counted up to the age at which a cull is free."""

    stage: str = "dormant"
    kind: int = -1
    age: int = 0
    stage_age: int = 0  # of a blocked slot: epochs until it is dormant
    birth: float = 0.0  # pp


class Move(NamedTuple):
    """A decision; slot and kind are -1 where it takes none."""

    op: str
    slot: int = -1
    kind: int = -1


class World(NamedTuple):
    """Everything that the future depends on."""

    epoch: int = 0
    accuracy: float = 0.0  # pp; of the last validation, 0 before the first
    slots: tuple[LensSlot, LensSlot] = (LensSlot(), LensSlot())


def moves(world: World) -> Iterator[Move]:
    """All legal decisions."""
    yield Move("wait")
    for index, slot in enumerate(world.slots):
        if slot.stage == "dormant":
            yield from (Move("germinate", index, kind) for kind in (SPARK, LENS))
        if slot.stage in NEXT and slot.stage_age > 0:
            yield Move("advance", index)
        if slot.stage == "probation":
            yield Move("fossilize", index)
        if slot.stage in LIVE:
            yield Move("cull", index)
            yield Move("change", index, 1 - slot.kind)


def decide(slot: LensSlot, move: Move, accuracy: float) -> LensSlot:
    """Carry out a decision on its slot."""
    if move.op in ("germinate", "change"):
        return LensSlot("germinated", move.kind, birth=accuracy)
    if move.op == "cull":
        return LensSlot("blocked", stage_age=7)
    return slot._replace(stage="fossil" if move.op == "fossilize" else NEXT[slot.stage], stage_age=0)


def pass_epoch(slot: LensSlot) -> LensSlot:
    """The clock: births, ages, the end of a blockade, and of a probation that lasted five epochs."""
    if slot.stage == "blocked":
        return slot._replace(stage_age=slot.stage_age - 1) if slot.stage_age > 1 else LensSlot()
    if slot.stage == "probation" and slot.stage_age == 4:
        return LensSlot("blocked", stage_age=7)
    if slot.stage == "germinated":
        return slot._replace(stage="training", age=1)
    if slot.stage in LIVE:
        return slot._replace(age=min(slot.age + 1, price.cull_age), stage_age=slot.stage_age + 1)
    return slot


def phi(slot: LensSlot) -> float:
    """Potential of a slot."""
    if slot.stage not in POTENTIAL:
        return 6.0 if slot.stage == "fossil" else 0.0
    level, most = POTENTIAL[slot.stage]
    return level + min(0.3 * slot.stage_age, most)


def credit(slot: LensSlot, accuracy: float) -> float:
    """What a merged seed's contribution is worth, pp: half where the birth preceded the first validation."""
    if slot.stage not in MERGED:
        return 0.0
    given, gain = CONTRIBUTION[slot.kind], max(accuracy - slot.birth, 0.0)
    if slot.birth == 0:
        return given / 2
    return given if gain >= given else math.sqrt(gain * given)


def warning(epochs: int) -> float:
    """A linear warning."""
    return min(price.warning_base + price.warning_step * epochs, price.warning_cap)


def removal(before: LensSlot, accuracy: float) -> float:
    """Culling: the last credit is given back, and it costs for youth and for help."""
    helped = CONTRIBUTION[before.kind] if before.stage in MERGED else 0.0
    cost = price.cull_young * max(1 - before.age / price.cull_age, 0.0)
    if helped:
        cost += price.cull_helping + price.cull_helping_slope * helped
    return -price.contribution_weight * credit(before, accuracy) - cost


def fossilization(before: LensSlot, gain: float) -> float:
    """The bonus grows over two epochs of probation; worse than at birth is punished."""
    if gain < 0:
        return -0.5 - min(-0.2 * gain, 1.0) - (0.3 if gain < -0.2 else 0.0)
    bonus = price.fossil_bonus + price.contribution_weight * CONTRIBUTION[before.kind]
    return bonus * min(before.stage_age / price.patience, 1.0)


def dependence(slot: LensSlot, gain: float) -> float:
    """The ratio penalty, and the warning of a blend that hurts."""
    if gain < 0:
        return -warning(slot.stage_age) if slot.stage == "blending" else 0.0
    given, most = CONTRIBUTION[slot.kind], price.ratio_penalty
    return -min(0.02 * max(given / gain - price.ratio_limit, 0.0), most) if gain > 0.1 else -most * min(given / 10, 1.0)


def shaping(before: World, after: World) -> float:
    """By how much the discounted potential rises; it is 0 at the horizon."""
    left = 0.0 if after.epoch == HORIZON else sum(map(phi, after.slots))
    return GAMMA * left - sum(map(phi, before.slots))


def slot_reward(world: World, move: Move, index: int, after: LensSlot, accuracy: float) -> float:
    """What one slot earns in a step, without shaping."""
    before, own = world.slots[index], move.slot == index
    gain, total = accuracy - after.birth, 0.0
    if own and move.op in ("cull", "change"):
        return removal(before, world.accuracy)
    total += price.contribution_weight * credit(after, accuracy)
    if own and move.op == "fossilize":
        total += fossilization(before, gain)
    if after.stage in LIVE and after.stage in MERGED:
        total += dependence(after, gain)
    late = before.stage == after.stage == "probation" and before.stage_age >= price.patience
    if late and move.op == "wait" and credit(before, world.accuracy) > 0:
        total -= warning(before.stage_age - price.patience)
    return total


def step(world: World, move: Move, shaping_weight: float = price.shaping_weight) -> tuple[World, float]:
    """One decision and one epoch: the next world and the reward."""
    decided = tuple(decide(s, move, world.accuracy) if i == move.slot else s for i, s in enumerate(world.slots))
    accuracy = BARE + sum(CONTRIBUTION[slot.kind] for slot in decided if slot.stage in MERGED)
    after = World(world.epoch + 1, accuracy, tuple(map(pass_epoch, decided)))
    total = shaping_weight * shaping(world, after) - COST[move.op]
    total += sum(slot_reward(world, move, i, slot, accuracy) for i, slot in enumerate(after.slots))
    total -= price.rent_weight * math.log1p(sum(SIZE[s.kind] for s in after.slots if s.kind >= 0) / price.rent_floor)
    if after.epoch == HORIZON:
        fossils = sum(slot.stage == "fossil" for slot in after.slots)
        total += price.terminal_accuracy * accuracy + price.terminal_fossil * fossils
    return after, total


def solve(
    combine: Callable[[list[float]], float],
    kinds: tuple[int, ...] = (SPARK, LENS),
    shaping_weight: float = price.shaping_weight,
) -> Callable[[World], float]:
    """The discounted return that is to come, as a function of the world.

    Args:
      combine: ``max`` for the best play; the mean for uniform legal play.
      kinds: those that may be grown.
      shaping_weight: of the potential.
    """

    def worth(world: World) -> float:
        first, second = world.slots
        return 0.0 if world.epoch == HORIZON else value(world._replace(slots=(min(first, second), max(first, second))))

    @cache
    def value(world: World) -> float:
        allowed = [move for move in moves(world) if move.kind < 0 or move.kind in kinds]
        return combine(
            [reward + GAMMA * worth(after) for after, reward in (step(world, m, shaping_weight) for m in allowed)]
        )

    return worth


def best_script(worth: Callable[[World], float]) -> list[Move]:
    """A best sequence of decisions from the start, the first of equals in the order of ``moves``."""
    world, script = World(), []
    while world.epoch < HORIZON:
        outcomes = [(move, *step(world, move)) for move in moves(world)]
        values = [reward + GAMMA * worth(after) for _, after, reward in outcomes]
        move, world, _ = outcomes[max(range(len(values)), key=lambda i: round(values[i], 9))]
        script.append(move)
    return script


def discounted(rewards: list[float]) -> float:
    """Sum of gamma^t r_t."""
    return sum(GAMMA**t * reward for t, reward in enumerate(rewards))
