"""Why decisions are refused: for every action the rules that it would break, from the tables of ``leyline.stages``."""

from collections.abc import Callable

import torch
from torch import Tensor

from esper.kasmina.alpha import targets
from esper.kasmina.quality_gates import CANDIDATE_GATES, GATES, failed_gate
from esper.kasmina.structure import Structure, seed_sizes
from esper.leyline.actions import NONE, TARGETS, Codec, Op
from esper.leyline.codes import Refusal
from esper.leyline.hypers import HyperParams
from esper.leyline.stages import FAILURE, TERMINAL, WEIGHED, Cause, Gate, edges, is_in, routes, sources
from esper.leyline.state import Slots

OP_CAUSE = {op: Cause[op.name] for op in Op if op.name in Cause.__members__}
"""Operations that move a seed from stage to stage, and what they are called in the table of transitions."""

FROM = {op: sources(cause) for op, cause in OP_CAUSE.items()} | {Op.RETARGET: WEIGHED}
"""The stages in which an operation may be carried out; WAIT may in all."""

(EMPTY,) = routes(Cause.INIT)
"""The stage in which slots begin."""


def refusals(
    structure: Structure, hypers: HyperParams, slots: Slots, actions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Why each action would be refused: the exact mask, and the reasons behind it.

    Args:
      structure: for the codec and the seeds' sizes.
      hypers: thresholds of the gates.
      slots: [E, S].
      actions: int64 [E, B], indices into the codec, which alone are asked about; None: all, B = A.

    Returns:
      refusal int64 [E, B] (``Refusal``; 0 = legal; WAIT is always 0) and failed int64 [E, B] (``Check`` bits, where
      the refusal is GATE_FAILED). Law: an action's columns are the same whatever else is asked about.
    """
    codec, sizes = structure.codec, structure.action_sizes
    if actions is not None:
        codec, sizes = codec.at(actions), sizes[actions]
    op = codec.op.expand(slots.batch_size[0], -1)
    if structure.config.num_slots == 0:
        return torch.zeros_like(op), torch.zeros_like(op)
    at = codec.slot.clamp(min=0)

    def there(values: Tensor) -> Tensor:
        """Values of slots [E, S] at the actions' slots [E, B]."""
        return values[:, at] if actions is None else values.gather(1, at)

    held = seed_sizes(structure, slots)
    others = held.sum(1, keepdim=True) - torch.where(op == int(Op.CHANGE_BLUEPRINT), there(held), 0)
    bids = {gate: asks(hypers, others, sizes) for gate, asks in CANDIDATE_GATES.items()}
    failed = _failed(hypers, slots, op, bids, there)
    refusal = torch.where(failed != 0, int(Refusal.GATE_FAILED), 0)
    same = (op == int(Op.CHANGE_BLUEPRINT)) & (there(slots.blueprint) == codec.blueprint)
    refusal = torch.where(same, int(Refusal.SAME_BLUEPRINT), refusal)
    if Op.RETARGET in codec.ops:
        same = (op == int(Op.RETARGET)) & (there(targets(hypers, slots)) == asked_targets(codec, slots))
        refusal = torch.where(same, int(Refusal.SAME_TARGET), refusal)
    stage = there(slots.stage)
    for each in codec.ops[1:]:
        allowed = is_in(stage, FROM[each])
        refusal = torch.where((op == int(each)) & ~allowed, _stage_refusal(each, stage), refusal)
    refusal = torch.where(op == int(Op.WAIT), int(Refusal.NONE), refusal)
    return refusal, torch.where(refusal == int(Refusal.GATE_FAILED), failed, 0)


def _failed(
    hypers: HyperParams, slots: Slots, op: Tensor, bids: dict[Gate, Tensor], there: Callable[[Tensor], Tensor]
) -> Tensor:
    """Checks that actions fail at the gates that they would pass, ``Check`` bits [E, B]; ``bids`` are of candidates."""
    failed = torch.zeros_like(op)
    for each, cause in OP_CAUSE.items():
        gates = {edge.gate for edge in edges(cause)}
        for gate, bits in bids.items():
            failed = torch.where(op == int(each), failed | bits, failed) if gate in gates else failed
        if gates & GATES.keys():
            failed = torch.where(op == int(each), there(failed_gate(hypers, slots, cause)), failed)
    return failed


def asked_targets(codec: Codec, slots: Slots) -> Tensor:
    """The weight that each action asks for, as ``codec.target`` is shaped; -1 where it asks for none."""
    asked = torch.full_like(codec.target, NONE, dtype=slots.alpha.dtype)  # filled in on the device: nothing is uploaded
    for number, target in enumerate(TARGETS):
        asked = asked.masked_fill(codec.target == number, target)
    return asked


def _stage_refusal(op: Op, stage: Tensor) -> Tensor:
    """What to say of an operation in a stage from which it may take no transition."""
    other = Refusal.OCCUPIED if op is Op.GERMINATE else Refusal.WRONG_STAGE
    reason = torch.full_like(stage, int(other))
    for stages, told in ((EMPTY,), Refusal.EMPTY), (FAILURE, Refusal.BLOCKED), (TERMINAL, Refusal.PERMANENT):
        reason = torch.where(is_in(stage, stages), int(told), reason)
    return reason
