"""The life cycle, element by element on [E, S]: decisions, the clock, and removal by the governor.

Only lifecycle fields change here; parameters follow in ``arena.init_seeds``. What happens is read from the tables of
``leyline.stages``: code loops over edges and asks stages for their traits; it names none. What would happen to no slot
is left out where that is known without asking a device.
"""

import torch
from torch import Tensor

from esper.kasmina.alpha import ramp, targets
from esper.kasmina.legal_stages import EMPTY, OP_CAUSE
from esper.kasmina.quality_gates import CANDIDATE_GATES, is_due, is_open
from esper.kasmina.refusals import asked_targets, refusals
from esper.kasmina.structure import Structure
from esper.leyline.actions import NONE, Op
from esper.leyline.codes import Refusal
from esper.leyline.config import Config
from esper.leyline.events import ActionResult, Life
from esper.leyline.hypers import HyperParams, over
from esper.leyline.stages import (
    CLIMBING,
    FAILURE,
    HELD,
    LIVE,
    STAGES,
    TRANSITIONS,
    Alpha,
    Cause,
    Stage,
    edges,
    is_in,
    routes,
)
from esper.leyline.state import Slots
from esper.utils.masks import holds_nowhere

PLACING = tuple(op for op, cause in OP_CAUSE.items() if any(edge.gate in CANDIDATE_GATES for edge in edges(cause)))
"""Operations that place a fresh seed."""

BLANK: dict[str, float | int | bool] = {
    "stage": int(EMPTY),
    "blueprint": NONE,
    "blend": NONE,
    **dict.fromkeys(("ramp", "age", "stage_age", "evaluations"), 0),
    **dict.fromkeys(("alpha", "contribution", "contribution_error", "prospect", "prospect_error"), 0.0),
    **dict.fromkeys(("birth_accuracy", "stage_accuracy", "improvement", "gradient_norm", "gradient_ratio"), 0.0),
    "measured": False,
    "in_snapshot": False,
    "target": float(NONE),
    "healthy": True,
}
"""Every field of an empty slot."""


def empty_slots(num_envs: int, num_slots: int, dtype: torch.dtype, device: torch.device) -> Slots:
    """Slots without a seed, all numbers 0, batch [E, S]."""
    kinds = {float: dtype, int: torch.int64, bool: torch.bool}
    shape = (num_envs, num_slots)
    fields = {name: torch.full(shape, v, dtype=kinds[type(v)], device=device) for name, v in BLANK.items()}
    return Slots(**fields, batch_size=shape)


def _where(mask: Tensor, slots: Slots, **values: Tensor | float | int | bool) -> Slots:
    """Replace fields where ``mask`` [E, S] holds."""
    if holds_nowhere(mask):
        return slots
    return slots.replace(**{name: torch.where(mask, value, slots[name]) for name, value in values.items()})


def _begun(stage: Stage, accuracy: Tensor) -> dict[str, Tensor | float | int | bool]:
    """What entering ``stage`` sets: its clock and baseline start anew."""
    baseline = accuracy.unsqueeze(1)
    return {"stage": int(stage), "stage_age": 0, "evaluations": 0, "stage_accuracy": baseline, "improvement": 0.0}


def _enter(slots: Slots, mask: Tensor, stage: Stage, accuracy: Tensor) -> Slots:
    """Move the slots in ``mask`` into ``stage``."""
    return _where(mask, slots, **_begun(stage, accuracy))


def _clear(slots: Slots, mask: Tensor, stage: Tensor | int) -> Slots:
    """Empty the slots in ``mask`` and put them into ``stage``."""
    return _where(mask, slots, **(BLANK | {"stage": stage}))


def _germinate(slots: Slots, mask: Tensor, blueprint: Tensor, blend: Tensor, accuracy: Tensor) -> Slots:
    """Put a fresh seed into the slots in ``mask``; blueprint and blend are [E]."""
    (stage,) = routes(Cause.GERMINATE)
    drawn = {"blueprint": blueprint.unsqueeze(1), "blend": blend.unsqueeze(1), "birth_accuracy": accuracy.unsqueeze(1)}
    return _where(mask, slots, **(BLANK | _begun(stage, accuracy) | drawn))


def _step_ramp(hypers: HyperParams, slots: Slots, mask: Tensor) -> Slots:
    if holds_nowhere(mask):
        return slots
    done = slots.ramp + 1
    total, target = over(hypers.blend_epochs, 1), targets(hypers, slots)
    alpha = ramp(slots.blend, done, total, target, over(hypers.sigmoid_steepness, 1))
    return _where(mask, slots, ramp=done, alpha=torch.maximum(alpha, slots.alpha))


def _arrive(hypers: HyperParams, slots: Slots, mask: Tensor, stage: Stage, accuracy: Tensor) -> Slots:
    """Move the slots in ``mask`` into ``stage``, and do what its row asks for.

    Where a ramp begins, alpha takes its first step at once, so that no epoch is spent at alpha 0. A straight edge out
    of the stage is followed where its gate is open.
    """
    if stage not in HELD:
        return _clear(slots, mask, int(stage))
    slots = _enter(slots, mask, stage, accuracy)
    if STAGES[stage].alpha is Alpha.RAMP:
        slots = _step_ramp(hypers, _where(mask, slots, ramp=0), mask)
    elif STAGES[stage].alpha is Alpha.FULL:
        slots = _where(mask, slots, alpha=targets(hypers, slots))
    for edge in TRANSITIONS:
        if edge.source is stage and edge.straight:
            slots = _arrive(hypers, slots, mask & is_open(hypers, slots, edge), edge.target, accuracy)
    return slots


def _follow(hypers: HyperParams, slots: Slots, mask: Tensor, cause: Cause, accuracy: Tensor) -> Slots:
    """Move the slots in ``mask`` where ``cause`` leads from their stages; their gates are open."""
    if holds_nowhere(mask):
        return slots
    before = slots.stage
    for target, stages in routes(cause).items():
        slots = _arrive(hypers, slots, mask & is_in(before, stages), target, accuracy)
    return slots


def _retarget(slots: Slots, mask: Tensor, target: Tensor) -> Slots:
    """Give the slots in ``mask`` another target, [E]. Where alpha climbs, it goes on to it; elsewhere, and where alpha
    is above it, it is there at once.
    """
    if holds_nowhere(mask):
        return slots
    asked = target.unsqueeze(1)
    climbing = is_in(slots.stage, CLIMBING)
    return _where(mask, slots, target=asked, alpha=torch.where(climbing, torch.minimum(slots.alpha, asked), asked))


def apply_action(
    structure: Structure, hypers: HyperParams, slots: Slots, action: Tensor, accuracy: Tensor
) -> tuple[Slots, ActionResult]:
    """Carry out one decision per environment.

    Args:
      structure: codec and sizes.
      hypers: thresholds of the gates, alpha target.
      slots: [E, S].
      action: int64 [E]; indices into the codec.
      accuracy: [E], pp; the latest validation accuracy, the baseline of a stage that begins now.

    Returns:
      slots, and what became of each decision. Law: an illegal action is the identity plus a code.
    """
    codec = structure.codec
    inside = (action >= 0) & (action < codec.size)
    index = torch.where(inside, action, 0)
    refusal, failed = (each.squeeze(1) for each in refusals(structure, hypers, slots, index.unsqueeze(1)))
    refusal = torch.where(inside, refusal, int(Refusal.OUT_OF_RANGE))
    op = torch.where(refusal == 0, codec.op[index], int(Op.WAIT))
    slot = torch.where(op == int(Op.WAIT), NONE, codec.slot[index])
    here = torch.arange(structure.config.num_slots, device=action.device) == slot.unsqueeze(1)

    def chosen(which: Op) -> Tensor:
        return here & (op == int(which)).unsqueeze(1)

    placed = torch.zeros_like(here)
    for each in PLACING:
        placed = placed | chosen(each)
    slots = _germinate(slots, placed, codec.blueprint[index], codec.blend[index], accuracy)
    for each, cause in OP_CAUSE.items():
        if each not in PLACING:
            slots = _follow(hypers, slots, chosen(each), cause, accuracy)
    if Op.RETARGET in codec.ops:
        slots = _retarget(slots, chosen(Op.RETARGET), asked_targets(codec, slots)[index])
    return slots, ActionResult(action, op, slot, refusal, failed)


def tick(config: Config, hypers: HyperParams, slots: Slots, accuracy: Tensor) -> tuple[Slots, Life]:
    """Let one epoch pass in every slot.

    Ages grow, alpha takes one step of its ramp, and the clock's edges are taken where their gates are open and their
    timers have run out; those that a decision may take too, only under ``auto_advance``.

    Args:
      config: for ``auto_advance`` and the horizon.
      hypers: lengths and thresholds.
      slots: [E, S].
      accuracy: [E], pp; validation accuracy of this epoch.

    Returns:
      slots, and the stages before and after. Laws: only edges of TRANSITIONS (two of them in one tick where SHADOWING
      is passed straight through); alpha stays in [0, 1] and never falls within a ramp; FOSSILIZED and DORMANT slots
      keep their bits. A slot culled by a decision is DORMANT again after max(embargo, 1) + 2 ticks.
    """
    before = slots.stage
    alive, blocked = is_in(before, LIVE), is_in(before, FAILURE)
    slots = _where(alive, slots, age=slots.age + 1)
    slots = _where(alive | blocked, slots, stage_age=slots.stage_age + 1)
    slots = aged = _step_ramp(hypers, slots, is_in(before, CLIMBING))
    emptied = before
    for edge in edges(Cause.CLOCK):
        if Cause.ADVANCE in edge.causes and not config.auto_advance:
            continue
        due = is_due(config.horizon, hypers, aged, edge)
        if edge.target in HELD:
            slots = _arrive(hypers, slots, due, edge.target, accuracy)
        else:
            emptied = torch.where(due, int(edge.target), emptied)
    slots = _clear(slots, emptied != before, emptied)
    return slots, Life(before, slots.stage)


def cull_live(slots: Slots, mask: Tensor) -> tuple[Slots, Tensor]:
    """Remove every live seed of the environments in ``mask`` (the governor's edges).

    Args:
      slots: [E, S].
      mask: bool [E].

    Returns:
      slots, and which seeds were removed, bool [E, S].
    """
    ((target, stages),) = routes(Cause.GOVERNOR).items()
    removed = is_in(slots.stage, stages) & mask.unsqueeze(1)
    return _clear(slots, removed, int(target)), removed


def vacate(slots: Slots, mask: Tensor) -> Slots:
    """Slots, empty where ``mask`` [E, S], whatever sat there: by surgery, which is no edge of the life cycle."""
    return _clear(slots, mask, EMPTY)
