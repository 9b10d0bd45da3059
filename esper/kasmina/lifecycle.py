"""The life cycle, element by element on [E, S]: decisions, the clock, and removal by the governor.

Only lifecycle fields change here; parameters follow in ``slots.sow``. Every edge taken is one of
``leyline.stages.TRANSITIONS``.
"""

import torch
from torch import Tensor

from esper.kasmina import gates
from esper.kasmina.alpha import ramp
from esper.kasmina.structure import Structure, seed_sizes
from esper.leyline.actions import NONE, Op
from esper.leyline.codes import Refusal
from esper.leyline.events import Deed, Life
from esper.leyline.hypers import HyperParams, over
from esper.leyline.stages import FAILURE, LIVE, Cause, Stage, is_in, sources
from esper.leyline.state import Slots

OP_CAUSE = {
    Op.GERMINATE: Cause.GERMINATE,
    Op.ADVANCE: Cause.ADVANCE,
    Op.CULL: Cause.CULL,
    Op.FOSSILIZE: Cause.FOSSILIZE,
    Op.CHANGE_BLUEPRINT: Cause.CHANGE_BLUEPRINT,
}


BLANK: dict[str, float | int | bool] = {
    "stage": int(Stage.DORMANT),
    "blueprint": NONE,
    "blend": NONE,
    **dict.fromkeys(("ramp", "age", "stage_age", "evaluations"), 0),
    **dict.fromkeys(("alpha", "contribution", "contribution_error", "prospect", "prospect_error"), 0.0),
    **dict.fromkeys(("birth_accuracy", "stage_accuracy", "improvement", "gradient_norm", "gradient_ratio"), 0.0),
    "measured": False,
    "banked": False,
    "healthy": True,
}
"""Every field of an empty slot."""


def empty_slots(num_envs: int, num_slots: int, dtype: torch.dtype, device: torch.device) -> Slots:
    """Slots in DORMANT, all numbers 0, batch [E, S]."""
    kinds = {float: dtype, int: torch.int64, bool: torch.bool}
    shape = (num_envs, num_slots)
    fields = {name: torch.full(shape, v, dtype=kinds[type(v)], device=device) for name, v in BLANK.items()}
    return Slots(**fields, batch_size=shape)


def _where(mask: Tensor, slots: Slots, **values: Tensor | float | int | bool) -> Slots:
    """Replace fields where ``mask`` [E, S] holds."""
    return slots.replace(**{name: torch.where(mask, value, slots[name]) for name, value in values.items()})


def _enter(slots: Slots, mask: Tensor, stage: Stage, accuracy: Tensor) -> Slots:
    """Move the slots in ``mask`` into ``stage``: its clock and baseline start anew."""
    return _where(
        mask,
        slots,
        stage=int(stage),
        stage_age=0,
        evaluations=0,
        stage_accuracy=accuracy.unsqueeze(1),
        improvement=0.0,
    )


def _clear(slots: Slots, mask: Tensor, stage: Stage) -> Slots:
    """Empty the slots in ``mask`` and put them into ``stage``."""
    return _where(mask, slots, **(BLANK | {"stage": int(stage)}))


def _germinate(slots: Slots, mask: Tensor, blueprint: Tensor, blend: Tensor, accuracy: Tensor) -> Slots:
    """Put a fresh seed into the slots in ``mask``; blueprint and blend are [E]."""
    slots = _enter(_clear(slots, mask, Stage.GERMINATED), mask, Stage.GERMINATED, accuracy)
    return _where(
        mask,
        slots,
        blueprint=blueprint.unsqueeze(1),
        blend=blend.unsqueeze(1),
        birth_accuracy=accuracy.unsqueeze(1),
    )


def _start_ramp(hypers: HyperParams, slots: Slots, mask: Tensor) -> Slots:
    """Take the first step of the alpha ramp, so that no epoch is spent in BLENDING at alpha 0."""
    return _step_ramp(hypers, _where(mask, slots, ramp=0), mask)


def _step_ramp(hypers: HyperParams, slots: Slots, mask: Tensor) -> Slots:
    done = slots.ramp + 1
    alpha = ramp(slots.blend, done, over(hypers.blend_epochs, 1), over(hypers.alpha_target, 1))
    return _where(mask, slots, ramp=done, alpha=torch.maximum(alpha, slots.alpha))


def _advance(hypers: HyperParams, slots: Slots, mask: Tensor, accuracy: Tensor) -> Slots:
    """Take the slots in ``mask`` one stage further; their gates are open.

    SHADOWING is passed straight through where no evaluation is asked of it.
    """
    stage = slots.stage
    blending = mask & (stage == int(Stage.TRAINING))
    shadowing = mask & (stage == int(Stage.BLENDING))
    through = shadowing & (over(hypers.shadowing_epochs, 1) <= 0)
    probation = (mask & (stage == int(Stage.SHADOWING))) | through
    slots = _start_ramp(hypers, _enter(slots, blending, Stage.BLENDING, accuracy), blending)
    slots = _enter(slots, shadowing, Stage.SHADOWING, accuracy)
    slots = _where(shadowing, slots, alpha=over(hypers.alpha_target, 1))
    return _enter(slots, probation, Stage.PROBATIONARY, accuracy)


def refusals(structure: Structure, hypers: HyperParams, slots: Slots) -> tuple[Tensor, Tensor]:
    """Why each action would be refused: the exact mask, and the reasons behind it.

    Args:
      structure: for the codec and the seeds' sizes.
      hypers: thresholds of the gates.
      slots: [E, S].

    Returns:
      refusal int64 [E, A] (``Refusal``; 0 = legal; WAIT is always 0) and failed int64 [E, A] (``Check`` bits, where
      the refusal is GATE_FAILED).
    """
    codec = structure.codec
    at = codec.slot.clamp(min=0)
    op = codec.op.expand(slots.batch_size[0], -1)
    if structure.config.num_slots == 0:
        return torch.zeros_like(op), torch.zeros_like(op)
    stage, held = slots.stage[:, at], seed_sizes(structure, slots)
    places_seed = (op == int(Op.GERMINATE)) | (op == int(Op.CHANGE_BLUEPRINT))
    replaced = torch.where(op == int(Op.CHANGE_BLUEPRINT), held[:, at], 0)
    budget = gates.germination_gate(hypers, held.sum(1, keepdim=True) - replaced, structure.action_sizes)
    failed = torch.where(places_seed, budget, 0)
    failed = torch.where(op == int(Op.ADVANCE), gates.advance_gate(hypers, slots)[:, at], failed)
    failed = torch.where(op == int(Op.FOSSILIZE), gates.fossilization_gate(hypers, slots)[:, at], failed)

    refusal = torch.where(failed != 0, int(Refusal.GATE_FAILED), 0)
    same = (op == int(Op.CHANGE_BLUEPRINT)) & (slots.blueprint[:, at] == codec.blueprint)
    refusal = torch.where(same, int(Refusal.SAME_BLUEPRINT), refusal)
    for each, cause in OP_CAUSE.items():
        allowed = is_in(stage, sources(cause))
        refusal = torch.where((op == int(each)) & ~allowed, _stage_refusal(each, stage), refusal)
    refusal = torch.where(op == int(Op.WAIT), int(Refusal.NONE), refusal)
    return refusal, torch.where(refusal == int(Refusal.GATE_FAILED), failed, 0)


def _stage_refusal(op: Op, stage: Tensor) -> Tensor:
    """What to say of an operation in a stage from which it may take no transition."""
    live = Refusal.OCCUPIED if op is Op.GERMINATE else Refusal.WRONG_STAGE
    reason = torch.full_like(stage, int(live))
    reason = torch.where(stage == int(Stage.DORMANT), int(Refusal.EMPTY), reason)
    reason = torch.where(is_in(stage, FAILURE), int(Refusal.BLOCKED), reason)
    return torch.where(stage == int(Stage.FOSSILIZED), int(Refusal.PERMANENT), reason)


def apply_action(
    structure: Structure, hypers: HyperParams, slots: Slots, action: Tensor, accuracy: Tensor
) -> tuple[Slots, Deed]:
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
    refusal, failed = (table.gather(1, index.unsqueeze(1)).squeeze(1) for table in refusals(structure, hypers, slots))
    refusal = torch.where(inside, refusal, int(Refusal.OUT_OF_RANGE))
    op = torch.where(refusal == 0, codec.op[index], int(Op.WAIT))
    slot = torch.where(op == int(Op.WAIT), NONE, codec.slot[index])
    here = torch.arange(structure.config.num_slots, device=action.device) == slot.unsqueeze(1)

    def chosen(which: Op) -> Tensor:
        return here & (op == int(which)).unsqueeze(1)

    sown = chosen(Op.GERMINATE) | chosen(Op.CHANGE_BLUEPRINT)
    slots = _germinate(slots, sown, codec.blueprint[index], codec.blend[index], accuracy)
    slots = _advance(hypers, slots, chosen(Op.ADVANCE), accuracy)
    slots = _clear(slots, chosen(Op.CULL), Stage.CULLED)
    slots = _enter(slots, chosen(Op.FOSSILIZE), Stage.FOSSILIZED, accuracy)
    return slots, Deed(action, op, slot, refusal, failed)


def tick(structure: Structure, hypers: HyperParams, slots: Slots, accuracy: Tensor) -> tuple[Slots, Life]:
    """Let one epoch pass in every slot.

    Ages grow, alpha takes one step of its ramp, and the transitions that need no decision happen: GERMINATED begins
    to train, gates open if ``auto_advance``, a useless or overdue seed in PROBATIONARY is culled, and a culled slot
    passes through its embargo.

    Args:
      structure: for ``auto_advance`` and the horizon.
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
    slots = _step_ramp(hypers, slots, before == int(Stage.BLENDING))

    awake = gates.training_gate(slots) == 0
    ready = torch.zeros_like(alive)
    if structure.config.auto_advance:
        ready = is_in(before, sources(Cause.ADVANCE)) & (gates.advance_gate(hypers, slots) == 0)
    limit = torch.clamp(torch.floor(hypers.probation_fraction * structure.config.horizon), min=0)
    overdue = slots.stage_age >= over(torch.maximum(hypers.probation_epochs, limit), 1)
    useless = slots.measured & (slots.contribution <= 0)
    doomed = (before == int(Stage.PROBATIONARY)) & (useless | overdue)
    served = (before == int(Stage.EMBARGOED)) & (slots.stage_age >= over(hypers.embargo_epochs, 1))

    slots = _enter(slots, awake, Stage.TRAINING, accuracy)
    slots = _advance(hypers, slots, ready, accuracy)
    slots = _clear(slots, doomed, Stage.CULLED)
    for moving, stage in (
        (before == int(Stage.CULLED), Stage.EMBARGOED),
        (served, Stage.RESETTING),
        (before == int(Stage.RESETTING), Stage.DORMANT),
    ):
        slots = _where(moving, slots, stage=int(stage), stage_age=0)
    return slots, Life(before, slots.stage)


def cull_live(slots: Slots, mask: Tensor) -> tuple[Slots, Tensor]:
    """Remove every live seed of the environments in ``mask`` (the governor's edge).

    Args:
      slots: [E, S].
      mask: bool [E].

    Returns:
      slots, and which seeds were removed, bool [E, S].
    """
    removed = is_in(slots.stage, LIVE) & mask.unsqueeze(1)
    return _clear(slots, removed, Stage.CULLED), removed
