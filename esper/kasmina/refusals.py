"""Why decisions are refused, action by action, and which are legal; rules and stages are read from tables."""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from esper.kasmina.alpha import targets
from esper.kasmina.legal_stages import OP_CAUSE
from esper.kasmina.quality_gates import CANDIDATE_GATES, GATES, failed_gate
from esper.kasmina.structure import Structure, seed_sizes
from esper.leyline.actions import NONE, TARGETS, Codec, Op
from esper.leyline.codes import Gate, Refusal
from esper.leyline.hypers import HyperParams
from esper.leyline.stages import Cause, edges
from esper.leyline.state import Slots
from esper.utils.masks import holds_nowhere

There = Callable[[Tensor], Tensor]
"""Values of slots [E, S] -> those at the slots of actions, [E, B]."""


def _gates(cause: Cause) -> set[Gate | None]:
    return {edge.gate for edge in edges(cause)}


BIDDING = {gate: [op for op, cause in OP_CAUSE.items() if gate in _gates(cause)] for gate in CANDIDATE_GATES}
"""Which operations must pass a gate that asks about a seed not there yet."""

GATED = {op: cause for op, cause in OP_CAUSE.items() if _gates(cause) & GATES.keys()}
"""Operations that must pass a gate which asks about the seed that is there."""


def refusals(
    structure: Structure, hypers: HyperParams, slots: Slots, actions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Why each action would be refused.

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
    if structure.config.num_slots == 0:
        none = torch.zeros_like(codec.op.expand(slots.batch_size[0], -1))
        return none, none
    op, at = codec.op, codec.slot.clamp(min=0)

    def there(values: Tensor) -> Tensor:
        return values[:, at] if actions is None else values.gather(1, at)

    failed = _failed_bids(hypers, op, _others(structure, slots, op, there), sizes)
    for each, cause in GATED.items():
        asked = op == int(each)
        if not holds_nowhere(asked):
            failed = torch.where(asked, there(failed_gate(hypers, slots, cause)), failed)
    refusal = torch.where(failed != 0, int(Refusal.GATE_FAILED), 0)
    for same, reason in _changes_nothing(hypers, slots, codec, there):
        refusal = torch.where(same, int(reason), refusal)
    by_stage = structure.stage_refusals[op, there(slots.stage)]
    refusal = torch.where(by_stage != int(Refusal.NONE), by_stage, refusal)
    return refusal, torch.where(refusal == int(Refusal.GATE_FAILED), failed, 0)


def legal(structure: Structure, hypers: HyperParams, slots: Slots) -> Tensor:
    """Which actions would not be refused, bool [E, A], in less time than the reasons of all take.

    Law: it holds where the refusal of ``refusals`` is 0.
    """
    codec = structure.codec
    op, at, count = codec.op, codec.slot.clamp(min=0), structure.config.num_slots
    if count == 0:
        return torch.ones_like(op.expand(slots.batch_size[0], -1), dtype=torch.bool)

    def there(values: Tensor) -> Tensor:
        return values[:, at]

    open_gates = torch.ones_like(slots.stage, dtype=torch.bool)
    gates = [failed_gate(hypers, slots, GATED[each]) == 0 if each in GATED else open_gates for each in sorted(Op)]
    by_stage = structure.stage_refusals[:, slots.stage] == int(Refusal.NONE)
    allowed = (by_stage.movedim(0, 1) & torch.stack(gates, 1)).flatten(1)[:, op * count + at]
    allowed = allowed & (_failed_bids(hypers, op, _others(structure, slots, op, there), structure.action_sizes) == 0)
    for same, _ in _changes_nothing(hypers, slots, codec, there):
        allowed = allowed & ~same
    return allowed


def _others(structure: Structure, slots: Slots, op: Tensor, there: There) -> Tensor:
    """Parameters in an environment's seeds but for the one that an action removes, int64 [E, B], or [E, 1]."""
    held = seed_sizes(structure, slots)
    total = held.sum(1, keepdim=True)
    if holds_nowhere(held != 0):
        return total
    return total - torch.where(op == int(Op.CHANGE_BLUEPRINT), there(held), 0)


def _failed_bids(hypers: HyperParams, op: Tensor, others: Tensor, sizes: Tensor) -> Tensor:
    """Checks that the seeds which actions would place fail, ``Check`` bits [E, B]."""
    bids = []
    for gate, ops in BIDDING.items():
        bidding = reduce(torch.logical_or, [op == int(each) for each in ops])
        bids.append(torch.where(bidding, CANDIDATE_GATES[gate](hypers, others, sizes), 0))
    return reduce(torch.bitwise_or, bids)


def _changes_nothing(hypers: HyperParams, slots: Slots, codec: Codec, there: There) -> list[tuple[Tensor, Refusal]]:
    """Actions that ask for what is so already, bool [E, B], and what is said of them."""
    same = (codec.op == int(Op.CHANGE_BLUEPRINT)) & (there(slots.blueprint) == codec.blueprint)
    found = [(same, Refusal.SAME_BLUEPRINT)]
    if Op.RETARGET in codec.ops:
        same = (codec.op == int(Op.RETARGET)) & (there(targets(hypers, slots)) == asked_targets(codec, slots))
        found.append((same, Refusal.SAME_TARGET))
    return found


def asked_targets(codec: Codec, slots: Slots) -> Tensor:
    """The weight that each action asks for, as ``codec.target`` is shaped; -1 where it asks for none."""
    asked = torch.full_like(codec.target, NONE, dtype=slots.alpha.dtype)  # filled in on the device: nothing is uploaded
    for number, target in enumerate(TARGETS):
        asked = asked.masked_fill(codec.target == number, target)
    return asked
