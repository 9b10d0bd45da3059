"""The way of the features through blocks and slots, and of their gradient back.

Going forward, every unit (a block, a group of seeds, a slot's gates, its blend) leaves the function that pulls a
gradient back through it; going back, this tape is read in reverse. A gradient that the life cycle stops is a pull whose
result is not used: the inner gradient stops there, while a derivative taken from outside passes through all of it,
since nothing was cut.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.slot import Place
from esper.kasmina.structure import Structure
from esper.leyline.streams import Stream
from esper.tezzeret.plan import SlotRows
from esper.tezzeret.units import Call, Pull, block_unit, gate_unit, mix_unit, per_row, seed_unit
from esper.utils import rng

Grown = tuple[Tensor, ...]
"""What the seeds of a slot give: features, and where gated blends are on offer the openings of their gates."""


class PassInputs(NamedTuple):
    """The numbers of a pass over L lanes, row by row."""

    blocks: tuple[Tensor, ...]  # per block [L, P_i]
    buffers: tuple[Tensor, ...]  # per block [L, N_i]
    seeds: tuple[Tensor, ...]  # per slot [n, W]
    seed_buffers: tuple[Tensor, ...]  # per slot [n, R]
    alphas: tuple[Tensor, ...]  # per slot [n]


class Flow(NamedTuple):
    """Features on their way."""

    h: Tensor  # [L, B, ...]
    saved: dict[int, Tensor]  # by point; what bypasses further on read


class Mode(NamedTuple):
    """How units are called."""

    train: bool
    call: Call
    key: Tensor | None = None  # int64 [L, 2]; of the minibatch
    since: int | None = None  # numbers are held constant, and features vary from this point on; None: numbers learn

    def flows(self, structure: Structure, point: int) -> bool:
        """Whether the features at a point have a gradient."""
        return structure.learns_before(point) if self.since is None else point >= self.since


class BlockRecord(NamedTuple):
    """What a block leaves on the tape."""

    buffers: Tensor
    pull: Pull | None


class SlotRecord(NamedTuple):
    """What a slot leaves on the tape."""

    before: Flow
    grown: Grown
    buffers: Tensor  # [n, R]
    pull_seeds: tuple[Pull | None, ...]  # per group
    pull_gate: Pull | None
    pull_mix: Pull | None


Tape = list[BlockRecord | SlotRecord]


def place_rows(listed: SlotRows, values: Tensor, elsewhere: Tensor) -> Tensor:
    """Values [n, ...] of a slot's rows, each at its lane; other lanes keep what they have, bit for bit."""
    rows = values.index_select(0, listed.row_of)
    return torch.where(per_row(listed.present, elsewhere), rows, elsewhere)


def depart(structure: Structure, inputs: Tensor) -> Flow:
    """The features before the first place, in the features' type; what all networks see stays one in memory."""
    kind = structure.config.precision.features
    if inputs.is_floating_point() and inputs.dtype != kind:
        shared = inputs.stride(0) == 0
        inputs = inputs[:1].to(kind).expand_as(inputs) if shared else inputs.to(kind)
    return Flow(inputs, {0: inputs} if 0 in structure.sources else {})


def arrive(structure: Structure, number: int, flow: Flow) -> Flow:
    """Keep the features of a point that is complete with this place, if a bypass reads them."""
    point = structure.point_after(number)
    return flow._replace(saved={**flow.saved, point: flow.h}) if point in structure.sources else flow


def take_lanes(flow: Flow, lanes: Tensor) -> Flow:
    """The features of some lanes."""
    saved = {point: features.index_select(0, lanes) for point, features in flow.saved.items()}
    return Flow(flow.h.index_select(0, lanes), saved)


def walk(
    structure: Structure, slots: Sequence[SlotRows], numbers: PassInputs, flow: Flow, places: range, mode: Mode
) -> tuple[Flow, Tape]:
    """Take the features along a part of the route.

    Args:
      structure: blocks, slots and the route.
      slots: per slot, its rows.
      numbers: of these rows.
      flow: features before the first of the places.
      places: of ``structure.route``, by number.
      mode: training or inference.

    Returns:
      the features behind the last place, and per place what it left on the tape.
    """
    tape: Tape = []
    record: BlockRecord | SlotRecord
    for number in places:
        place = structure.route[number]
        if place.is_slot:
            flow, record = _through_slot(structure, slots[place.number], numbers, flow, place, mode)
        else:
            flow, record = _through_block(structure, numbers, flow, place, mode)
        flow = arrive(structure, number, flow)
        tape.append(record)
    return flow, tape


def _wrt(mode: Mode, flows: bool) -> tuple[int, ...]:
    """Which of (numbers, features, ...) have a gradient."""
    return ((0,) if mode.since is None else ()) + ((1,) if flows else ())


def _fold(mode: Mode, stream: Stream, index: int) -> tuple[Tensor, ...]:
    """The key of one unit's draws in a minibatch."""
    return () if mode.key is None else (rng.fold_in(mode.key, int(stream), index),)


def _through_block(
    structure: Structure, numbers: PassInputs, flow: Flow, place: Place, mode: Mode
) -> tuple[Flow, BlockRecord]:
    index = place.number
    drawn = _fold(mode, Stream.BLOCK, index) if structure.host.blocks[index].draws else ()
    arguments = (numbers.blocks[index], flow.h, numbers.buffers[index], *drawn)
    wrt = _wrt(mode, mode.flows(structure, index))
    y, buffers, pull = mode.call(block_unit(structure, index, mode.train), arguments, wrt)
    return flow._replace(h=y), BlockRecord(buffers, pull)


def _through_slot(
    structure: Structure, listed: SlotRows, numbers: PassInputs, flow: Flow, place: Place, mode: Mode
) -> tuple[Flow, SlotRecord]:
    slot, held = structure.slots[place.number], numbers.seed_buffers[place.number]
    if listed.parents is not None:
        flow = take_lanes(flow, listed.parents)
    if not listed.groups:
        return flow, SlotRecord(flow, (), held, (), None, None)
    h = flow.h.index_select(0, listed.lanes)
    x = flow.saved[slot.source].index_select(0, listed.lanes) if slot.is_bypass else h
    wrt = _wrt(mode, mode.flows(structure, slot.source))
    s, buffers, pull_seeds = _grow(structure, place.number, listed, numbers, x, mode)
    grown: Grown = (s,)
    pull_gate = None
    if slot.gate.size:
        row = numbers.seeds[place.number][:, slot.width - slot.gate.size :]
        opening, _, pull_gate = mode.call(gate_unit(slot), (row, x), wrt)
        grown = (s, opening)
    arguments = (h, *grown, numbers.alphas[place.number], listed.gated)
    out, _, pull_mix = mode.call(mix_unit(slot), arguments, tuple(range(1 + len(grown))))
    record = SlotRecord(flow, grown, buffers, pull_seeds, pull_gate, pull_mix)
    return flow._replace(h=place_rows(listed, out, flow.h)), record


def _grow(
    structure: Structure, number: int, listed: SlotRows, numbers: PassInputs, x: Tensor, mode: Mode
) -> tuple[Tensor, Tensor, tuple[Pull | None, ...]]:
    """The seeds of a slot, group by group: features [n, B, ...], new buffers [n, R], and the pulls."""
    slot = structure.slots[number]
    drawn = _fold(mode, Stream.SEED, number) if structure.draws else ()
    parts = [numbers.seeds[number], x, numbers.seed_buffers[number], *(k.index_select(0, listed.lanes) for k in drawn)]
    chunks = zip(*(part.split(listed.sizes) for part in parts), strict=True)
    wrt = _wrt(mode, mode.flows(structure, slot.source))
    features, buffers, pulls = [], [], []
    for group, (row, seen, held, *keys) in zip(listed.groups, chunks, strict=True):
        own = row[:, : slot.row(group.blueprint).size]
        keys = keys if structure.blueprints[group.blueprint].draws else []
        s, new, pull = mode.call(
            seed_unit(structure, number, group.blueprint, mode.train), (own, seen, held, *keys), wrt
        )
        features.append(s)
        buffers.append(new)
        pulls.append(pull)
    return torch.cat(features), torch.cat(buffers), tuple(pulls)


class SlotBackward(NamedTuple):
    """What comes back through a slot."""

    rows: Tensor | None  # [n, W]; None where numbers are held constant
    h: Tensor  # [L, B, ...]; of the features at the target
    source: Tensor | None  # likewise at the source of a bypass, if anything learns before it


def back_through_slot(
    structure: Structure,
    place: Place,
    listed: SlotRows,
    record: SlotRecord,
    grad: Tensor,
    heed: Callable[[Tensor, Grown], Grown] | None,
) -> SlotBackward:
    """Gradients of a slot's seeds and of what they read.

    Args:
      structure, place, listed, record: the slot.
      grad: [L, B, ...]; of its output.
      heed: (gradient of the output's rows, gradient of what the seeds gave) -> the gradient that they learn by: what
        the life cycle puts in place of the network's own for seeds in TRAINING. None: the exact gradient, with nothing
        held constant.
    """
    slot = structure.slots[place.number]
    assert record.pull_mix is not None
    out = grad.index_select(0, listed.lanes)
    pulled = record.pull_mix(out)
    h, grown = pulled[0], tuple(pulled[1 + part] for part in range(len(record.grown)))
    rows, x = _back_through_seeds(structure, place.number, listed, record, heed(out, grown) if heed else grown)
    if x is None:
        return SlotBackward(rows, place_rows(listed, h, grad), None)
    x = torch.where(per_row(listed.isolated, x), 0.0, x) if heed else x
    if not slot.is_bypass:
        return SlotBackward(rows, place_rows(listed, h + x, grad), None)
    source = place_rows(listed, x, torch.zeros_like(record.before.saved[slot.source]))
    return SlotBackward(rows, place_rows(listed, h, grad), source)


def _back_through_seeds(
    structure: Structure, number: int, listed: SlotRows, record: SlotRecord, grown: Grown
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the rows [n, W] if they learn, and of what the seeds read if anything learns before it."""
    slot = structure.slots[number]
    parts = zip(record.pull_seeds, grown[0].split(listed.sizes), strict=True)
    pulled = [pull(part) for pull, part in parts if pull is not None]
    if not pulled:
        return None, None
    gate = record.pull_gate(grown[1]) if record.pull_gate is not None else {}
    rows = x = None
    if 0 in pulled[0]:
        width = slot.width - slot.gate.size
        padded = [torch.cat((p[0], p[0].new_zeros(p[0].shape[0], width - p[0].shape[1])), 1) for p in pulled]
        rows = torch.cat(padded) if 0 not in gate else torch.cat((torch.cat(padded), gate[0]), 1)
    if 1 in pulled[0]:
        x = torch.cat([part[1] for part in pulled])
        x = x + gate[1] if 1 in gate else x
    return rows, x
