"""Surgery on a batch of environments: from structure and state to others, between two steps.

An operation gives **all** environments of a state another structure. Who wants it for some takes these out first
(``esper.leyline.environments.select``): they go on as a batch of their own, with an engine of their own, and those that
stay behind keep structure and bits. Removing a fossil changes no structure: it is done in the environments that are
named, and the others keep their bits.
"""

import functools
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.lifecycle import vacate
from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure, build_structure
from esper.leyline.events import Performance
from esper.leyline.learners import Learners, Weights, learners_of, parts
from esper.leyline.stages import HELD, Stage, is_in
from esper.leyline.state import ParamState, Snapshot, State, lock
from esper.tezzeret.surgery import (
    Anatomy,
    Impossible,
    Log,
    Operated,
    Operation,
    Report,
    Samples,
    SurgeryRules,
    anatomy_of,
    host_of,
    learned_of,
    learners,
    surgery,
)
from esper.tezzeret.surgery.measure import Effect
from esper.tezzeret.surgery.operations import OPERATIONS
from esper.tezzeret.surgery.orders import RemoveFossil
from esper.tezzeret.surgery.reports import reason_of
from esper.tezzeret.surgery.rules import against


class Reshaped(NamedTuple):
    """What an operation gives.

    Attributes:
      structure, state: the new ones; the old ones themselves where nothing was done.
      report: what became of it.
    """

    structure: Structure
    state: State
    report: Report


@functools.lru_cache(maxsize=4)
def anatomy(structure: Structure) -> Anatomy:
    """The host of a structure as one graph; read once.

    Raises:
      Impossible: see ``anatomy_of``.
    """
    return anatomy_of(structure.host)


def operate(
    structure: Structure,
    state: State,
    op: Operation,
    samples: Samples,
    rules: SurgeryRules = SurgeryRules(),  # noqa: B008 (a value)
    log: Log = Log(),  # noqa: B008
) -> Reshaped:
    """Operate on the hosts of all environments.

    Slots stay where they are, with their seeds; a slot whose features change shape, or that features would pass by,
    must be empty. The snapshot of the governor begins anew: rolling back an operation is keeping the old values.

    Args:
      structure: what the networks are.
      state: [E].
      op: what is to be done.
      samples: tried on, such as some of the validation part.
      rules: constraints; an epoch is one of ``state.epoch``.
      log: reports of earlier operations.

    Returns:
      structure, state and report. It never raises.
    """
    began, epoch = time.perf_counter(), int(state.epoch.max())
    try:
        body, held = anatomy(structure), learners_of(state)
        outcome = surgery(body, learned_of(structure.host, held), op, samples, rules, log, epoch)
    except Impossible as reason:  # the host cannot be read
        return Reshaped(structure, state, refused(op, epoch, len(state.key), str(reason), began))
    if not outcome.report.done:
        return Reshaped(structure, state, outcome.report)
    try:
        other = _structure(structure, outcome.body, state)
        return Reshaped(other, _state(structure, other, state, outcome), outcome.report)
    except Exception as error:  # a training loop goes on, whatever happened
        report = outcome.report._replace(reason=reason_of(error), stage="structure", added=0, removed=0)
        return Reshaped(structure, state, report)


def refused(op: Operation, epoch: int, networks: int, reason: str, began: float) -> Report:
    """The report of what was not even begun."""
    seconds = time.perf_counter() - began
    return Report(
        op, OPERATIONS[type(op)].name, epoch, networks, reason, "before", 0, 0, (0, 0), None, None, None, seconds
    )


def _structure(old: Structure, body: Anatomy, state: State) -> Structure:
    """The structure of a new body; slots by the points that they had."""
    host = host_of(body)
    points = {"input": "input", "logits": "logits"}
    points |= {f"block{end.block}": f"block{number}" for number, end in enumerate(body.ends)}
    written = list[int | str]()
    for number, name in enumerate(old.slot_names):
        ends = name.split(":")
        lost = [point for point in ends if point not in points]
        if lost:
            raise Impossible(
                f"slot {number}: features would pass by {lost[0]}; expected an operation between its points"
            )
        named = [points[point] for point in ends]
        is_block = len(named) == 1 and named[0].startswith("block")
        written.append(int(named[0].removeprefix("block")) if is_block else ":".join(named))
    config = replace(old.config, slots=tuple(written))
    new = build_structure(config, host, old.blueprints, old.objective, old.sizes.device)
    for number, (before, after) in enumerate(zip(old.slots, new.slots, strict=True)):
        occupied = is_in(state.slots.stage[:, number], HELD)
        if not _fits(before, after) and bool(occupied.any()):
            raise Impossible(f"slot {number}: its features would change shape; expected an empty slot")
    return new


def _fits(before: Slot, after: Slot) -> bool:
    """Whether seeds of one slot can sit in the other."""
    return (before.reads, before.acts) == (after.reads, after.acts)


def _state(old: Structure, new: Structure, state: State, outcome: Operated) -> State:
    held = learners_of(state)
    moments = held.seeds.moments
    arenas = [_moved(old, new, table, "columns") for table in (held.seeds.params, moments)]
    seeds = Weights(arenas[0], arenas[1], held.seeds.steps)
    buffers = _moved(old, new, held.seed_buffers, "buffer_columns")
    given: Learners = learners(new.host, outcome.learned, seeds, buffers)
    batch = state.batch_size
    return lock(state.replace(**parts(given), snapshot=Snapshot(**parts(given), batch_size=batch).clone()))


def _moved(old: Structure, new: Structure, rows: Tensor, name: str) -> Tensor:
    """Seeds' rows [E, ..., Q] of the slots' new columns; zeros where a slot is of another shape."""
    pieces = [rows[..., :0]]
    for before, after in zip(old.slots, new.slots, strict=True):
        columns: slice = getattr(after, name)
        zeros = rows.new_zeros(*rows.shape[:-1], columns.stop - columns.start)
        pieces.append(rows[..., getattr(before, name)] if _fits(before, after) else zeros)
    return torch.cat(pieces, dim=-1)


def fossils(state: State, slot: int) -> Tensor:
    """Which environments have a fossil in a slot, bool [E]; none, where there is no such slot."""
    stage = state.slots.stage
    if not 0 <= slot < stage.shape[1]:
        return torch.zeros(len(stage), dtype=torch.bool, device=stage.device)
    return stage[:, slot] == int(Stage.FOSSILIZED)


def excise(
    structure: Structure,
    state: State,
    op: RemoveFossil,
    rows: Tensor,
    measured: tuple[Performance, Performance],
    rules: SurgeryRules = SurgeryRules(),  # noqa: B008
    log: Log = Log(),  # noqa: B008
) -> Reshaped:
    """Remove a fossilized seed from some environments; the others keep their bits.

    The table of transitions has no way out of FOSSILIZED: this is no transition, but an operation that is logged.

    Args:
      structure: what the networks are.
      state: [E].
      op: which slot.
      rows: bool [E]; in which environments, each with a fossil there.
      measured: loss and accuracy [E] as it is, and with the slot's alpha at 0.
      rules: constraints.
      log: reports of earlier operations.

    Returns:
      the same structure, the state with the slot empty in these environments, and the report.

    Raises:
      Impossible: the host cannot be read as a graph.
    """
    began, epoch, count = time.perf_counter(), int(state.epoch.max()), int(rows.sum())
    reason = against(rules, anatomy(structure), op, log, epoch)
    is_slot = 0 <= op.slot < len(structure.slots)
    if reason is None and not is_slot:
        reason = f"slot {op.slot}; expected one of 0 to {len(structure.slots) - 1}"
    if reason is None and (not count or bool((state.slots.stage[rows, op.slot] != int(Stage.FOSSILIZED)).any())):
        reason = f"slot {op.slot}: no fossil in some of the environments; expected one in each"
    effects = [Effect(float(each.loss[rows].mean()), float(each.accuracy[rows].mean())) for each in measured]
    lost = effects[0].accuracy - effects[1].accuracy
    if reason is None and lost > rules.accuracy_loss:
        reason = f"accuracy_loss = {rules.accuracy_loss:g}, {lost:.1f} points lost"
    if reason is not None:
        return Reshaped(structure, state, refused(op, epoch, count, reason, began))
    mask = torch.zeros_like(state.slots.stage, dtype=torch.bool)
    mask[:, op.slot] = rows
    sizes = structure.host.num_params + structure.sizes[op.slot, state.slots.blueprint[rows, op.slot]].max()
    params = int(sizes), structure.host.num_params
    report = refused(op, epoch, count, "", began)._replace(
        reason=None,
        stage="done",
        removed=1,
        params=params,
        before=effects[0],
        after=effects[1],
    )
    return Reshaped(structure, _without(structure, state, mask), report)


def _without(structure: Structure, state: State, mask: Tensor) -> State:
    """Empty slots [E, S], and zeros where their seeds lay."""
    lost, held, seeds = mask[:, structure.slot_of_column], mask[:, structure.slot_of_buffer], state.seeds
    emptied = ParamState(
        params=torch.where(lost, 0.0, seeds.params),
        moments=torch.where(lost.unsqueeze(1), 0.0, seeds.moments),
        steps=torch.where(mask, 0, seeds.steps),
        batch_size=seeds.batch_size,
    )
    buffers = torch.where(held, 0.0, state.seed_buffers)
    return lock(state.replace(slots=vacate(state.slots, mask), seeds=emptied, seed_buffers=buffers))
