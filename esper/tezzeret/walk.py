"""The way of the features through blocks and slots, and of their gradient back.

Going forward, every block and every group of seeds leaves the function that pulls a gradient back through it; going
back, this tape is read in reverse. A gradient that the life cycle stops is a pull whose result is not used: the inner
gradient stops there, while a derivative taken from outside passes through all of it, since nothing was cut.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn import functional as F

from esper.kasmina import arena, gate
from esper.kasmina.layout import Params
from esper.kasmina.structure import Place, Slot, Structure
from esper.leyline.streams import Stream
from esper.tezzeret.plan import SlotRows
from esper.utils import rng

Grown = tuple[Tensor, ...]
"""What the seeds of a slot give: features, and where gated blends are on offer the openings of their gates."""


class Numbers(NamedTuple):
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
    """How modules are called."""

    train: bool
    call: Callable[..., tuple[Any, Any, Any]]  # (function, *primals) -> (value, aux, pull)
    key: Tensor | None = None  # int64 [L, 2]; of the minibatch


class BlockRecord(NamedTuple):
    """What a block leaves on the tape."""

    buffers: Tensor
    pull: Any


class SlotRecord(NamedTuple):
    """What a slot leaves on the tape."""

    before: Flow
    grown: Grown
    buffers: Tensor  # [n, R]
    pull_seeds: tuple[Any, ...]  # per group
    pull_gate: Any
    pull_mix: Any


def plain(function: Callable[..., tuple[Any, Any]], *primals: Any) -> tuple[Any, Any, None]:
    """Call a function that returns (value, aux)."""
    value, aux = function(*primals)
    return value, aux, None


def pulled(function: Callable[..., tuple[Any, Any]], *primals: Any) -> tuple[Any, Any, Any]:
    """Call it, and get the function that pulls a gradient back through it; aux has none."""
    value, pull, aux = vjp(function, *primals, has_aux=True)
    return value, aux, pull


def per_row(vector: Tensor, like: Tensor) -> Tensor:
    """View [n], [n, B] or [n, B, T] so that it broadcasts against features [n, B, ...]."""
    return vector.reshape(vector.shape + (1,) * (like.dim() - vector.dim()))


def place_rows(listed: SlotRows, values: Tensor, elsewhere: Tensor) -> Tensor:
    """Values [n, ...] of a slot's rows, each at its lane; other lanes keep what they have, bit for bit."""
    rows = values.index_select(0, listed.index)
    return torch.where(per_row(listed.present, elsewhere), rows, elsewhere)


def walk(
    structure: Structure, slots: Sequence[SlotRows], numbers: Numbers, flow: Flow, places: range, mode: Mode
) -> tuple[Flow, list[BlockRecord | SlotRecord]]:
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
    tape: list[BlockRecord | SlotRecord] = []
    record: BlockRecord | SlotRecord
    for number in places:
        place = structure.route[number]
        if place.is_slot:
            flow, record = _through_slot(structure, slots[place.index], numbers, flow, place, mode)
        else:
            flow, record = _through_block(structure, numbers, flow, place, mode)
        flow = arrive(structure, number, flow)
        tape.append(record)
    return flow, tape


def arrive(structure: Structure, number: int, flow: Flow) -> Flow:
    """Keep the features of a point that is complete with this place, if a bypass reads them."""
    point = structure.point_after(number)
    return flow._replace(saved={**flow.saved, point: flow.h}) if point in structure.sources else flow


def depart(structure: Structure, inputs: Tensor) -> Flow:
    """The features before the first place."""
    return Flow(inputs, {0: inputs} if 0 in structure.sources else {})


def _through_block(
    structure: Structure, numbers: Numbers, flow: Flow, place: Place, mode: Mode
) -> tuple[Flow, BlockRecord]:
    block, held = structure.host.blocks[place.index], numbers.buffers[place.index]
    key = fold(mode.key, Stream.BLOCK, place.index) if block.draws and mode.key is not None else None

    def run(row: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        named, buffers = block.reads.views(row), block.buffer_layout.views(held)
        if not mode.train:
            return block.infer(named, buffers, x), held
        y, new = block.train(named, buffers, x, key)
        return y, _flat(block.buffer_layout.params, new, held)

    row = numbers.blocks[place.index]
    if structure.learns_before(place.index):
        y, buffers, pull = mode.call(run, row, flow.h)
    else:
        y, buffers, pull = mode.call(partial(_with_input, run, flow.h), row)
    return flow._replace(h=y), BlockRecord(buffers, pull)


def _with_input(run: Callable[[Tensor, Tensor], Any], x: Tensor, row: Tensor) -> Any:
    return run(row, x)


def _flat(params: Sequence[Any], named: Params, held: Tensor) -> Tensor:
    return torch.cat([named[param.name].flatten(1) for param in params], dim=1) if params else held


def fold(key: Tensor, stream: Stream, index: int) -> Tensor:
    """The key of one module's draws in a minibatch."""
    return rng.fold_in(key, int(stream), index)


def _through_slot(
    structure: Structure, listed: SlotRows, numbers: Numbers, flow: Flow, place: Place, mode: Mode
) -> tuple[Flow, SlotRecord]:
    slot, held = structure.slots[place.index], numbers.seed_buffers[place.index]
    if listed.parents is not None:
        flow = take_lanes(flow, listed.parents)
    if not listed.groups:
        return flow, SlotRecord(flow, (), held, (), None, None)
    h = flow.h.index_select(0, listed.lanes)
    x = flow.saved[slot.source].index_select(0, listed.lanes) if slot.is_bypass else h
    s, buffers, pull_seeds = _grow(structure, place.index, listed, numbers, x, mode)
    opening, pull_gate = _open(structure, slot, numbers.seeds[place.index], x, mode)
    grown = (s, *opening)
    out, _, pull_mix = mode.call(partial(_mix, slot, numbers.alphas[place.index], listed.gated), h, grown)
    record = SlotRecord(flow, grown, buffers, pull_seeds, pull_gate, pull_mix)
    return flow._replace(h=place_rows(listed, out, flow.h)), record


def take_lanes(flow: Flow, lanes: Tensor) -> Flow:
    """The features of some lanes."""
    saved = {point: features.index_select(0, lanes) for point, features in flow.saved.items()}
    return Flow(flow.h.index_select(0, lanes), saved)


def _grow(
    structure: Structure, number: int, listed: SlotRows, numbers: Numbers, x: Tensor, mode: Mode
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """The seeds of a slot, group by group: features [n, B, ...], new buffers [n, R], and the pulls."""
    slot, flows = structure.slots[number], structure.learns_before(structure.slots[number].source)
    key = None
    if structure.draws and mode.key is not None:
        key = fold(mode.key.index_select(0, listed.lanes), Stream.SEED, number)
    parts = [numbers.seeds[number], numbers.seed_buffers[number], x, *([] if key is None else [key])]
    chunks = zip(*(part.split(listed.sizes) for part in parts), strict=True)
    features, buffers, pulls = [], [], []
    for group, (row, held, seen, *drawn) in zip(listed.groups, chunks, strict=True):
        seed = _seed(structure, slot, group.blueprint, held, drawn[0] if drawn else None, mode.train)
        own = row[:, : slot.row(group.blueprint).size]
        s, new, pull = mode.call(seed, own, seen) if flows else mode.call(partial(_with_input, seed, seen), own)
        features.append(s)
        buffers.append(new)
        pulls.append(pull)
    return torch.cat(features), torch.cat(buffers), tuple(pulls)


def _seed(
    structure: Structure, slot: Slot, kind: int, held: Tensor, key: Tensor | None, train: bool
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What the seeds of a group compute: (rows [n, P_k], x) -> (features, new buffers [n, R])."""
    blueprint, layout, buffers = structure.blueprints[kind], slot.row(kind), slot.buffer_row(kind)

    def run(row: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        named, before = layout.views(row), buffers.views(held[:, : buffers.size])
        if not train:
            return blueprint.infer(named, before, x), held
        s, new = blueprint.train(named, before, x, key if blueprint.draws else None)
        return s, arena.pad_buffers(slot, _flat(buffers.params, new, held[:, :0]))

    return run


def _open(structure: Structure, slot: Slot, rows: Tensor, x: Tensor, mode: Mode) -> tuple[Grown, Any]:
    """The openings of a slot's gates, if it has any, and the pull."""
    if not slot.gate.size:
        return (), None

    def run(row: Tensor, seen: Tensor) -> tuple[Tensor, tuple[()]]:
        return gate.opening(slot.reads)(slot.gate.views(row), seen), ()

    row = rows[:, rows.shape[1] - slot.gate.size :]
    if structure.learns_before(slot.source):
        opening, _, pull = mode.call(run, row, x)
    else:
        opening, _, pull = mode.call(partial(_with_input, run, x), row)
    return (opening,), pull


def _mix(slot: Slot, alpha: Tensor, gated: Tensor, h: Tensor, grown: Grown) -> tuple[Tensor, tuple[()]]:
    """``mix`` as a function that can be pulled through."""
    return mix(slot, alpha, gated, h, grown), ()


def mix(slot: Slot, alpha: Tensor, gated: Tensor, h: Tensor, grown: Grown) -> Tensor:
    """What the network sees of a slot: ``lerp(h, s, w)``, or of a bypass ``h + w s``.

    Args:
      slot: which form.
      alpha: [n]; the weight w, times the gate's opening where ``gated`` [n] holds.
      gated: bool [n].
      h: [n, B, ...]; the features at the target.
      grown: the seeds' features, and openings [n, B] or [n, B, T] of their gates.

    Returns:
      like h. Where alpha is 0 it is h, whatever the seed gives: a seed that is not finite is not seen before its time.
    """
    s, weight = grown[0], alpha
    if len(grown) == 2:
        opening, full = grown[1], per_row(alpha, grown[1])
        opening = torch.where((full == 0) & ~torch.isfinite(opening), 0.0, opening)
        weight = torch.where(per_row(gated, opening), full * opening, full)
    hidden = (per_row(alpha, s) == 0) & ~torch.isfinite(s)
    if slot.is_bypass:
        return h + per_row(weight, h) * torch.where(hidden, 0.0, s)
    return torch.lerp(h, torch.where(hidden, h, s), per_row(weight, h))


def back_through_block(
    structure: Structure, place: Place, record: BlockRecord, grad: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradients of a block's row, and of its input if anything learns before it."""
    pulled_back = record.pull(grad)
    return pulled_back[0], pulled_back[1] if structure.learns_before(place.index) else None


class SlotGradients(NamedTuple):
    """What comes back through a slot."""

    rows: Tensor  # [n, W]
    h: Tensor  # [L, B, ...]; of the features at the target
    source: Tensor | None  # likewise at the source of a bypass, if anything learns before it


def back_through_slot(
    structure: Structure,
    place: Place,
    listed: SlotRows,
    record: SlotRecord,
    grad: Tensor,
    heed: Callable[[Tensor, Grown], Grown],
) -> SlotGradients:
    """Gradients of a slot's seeds and of what they read.

    Args:
      structure, place, listed, record: the slot.
      grad: [L, B, ...]; of its output.
      heed: (gradient of the output's rows, gradient of what the seeds gave) -> the gradient that they learn by: what
        the life cycle puts in place of the network's own for seeds in TRAINING.
    """
    slot = structure.slots[place.index]
    out = grad.index_select(0, listed.lanes)
    h, grown = record.pull_mix(out)
    rows, x = _back_through_seeds(structure, slot, listed, record, heed(out, grown))
    if x is None:
        return SlotGradients(rows, place_rows(listed, h, grad), None)
    x = torch.where(per_row(listed.isolated, x), 0.0, x)
    if not slot.is_bypass:
        return SlotGradients(rows, place_rows(listed, h + x, grad), None)
    source = place_rows(listed, x, torch.zeros_like(record.before.saved[slot.source]))
    return SlotGradients(rows, place_rows(listed, h, grad), source)


def _back_through_seeds(
    structure: Structure, slot: Slot, listed: SlotRows, record: SlotRecord, grown: Grown
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the rows [n, W], and of what the seeds read if anything learns before it."""
    parts = zip(record.pull_seeds, grown[0].split(listed.sizes), strict=True)
    pulled_back = [pull(part) for pull, part in parts]
    flows, width = structure.learns_before(slot.source), slot.width - slot.gate.size
    rows = torch.cat([F.pad(part[0], (0, width - part[0].shape[1])) for part in pulled_back])
    x = torch.cat([part[1] for part in pulled_back]) if flows else None
    if record.pull_gate is None:
        return rows, x
    of_gate = record.pull_gate(grown[1])
    return torch.cat((rows, of_gate[0]), dim=1), None if x is None else x + of_gate[1]
