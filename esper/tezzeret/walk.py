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

from esper.kasmina import gate
from esper.kasmina.layout import Params
from esper.kasmina.structure import Place, Slot, Structure
from esper.leyline.streams import Stream
from esper.tezzeret.plan import Group, SlotRows
from esper.utils import rng

Grown = tuple[Tensor, ...]
"""What a group of seeds gives: features, and where gated blends are on offer the openings of its gates."""


class Numbers(NamedTuple):
    """The numbers of a pass over L lanes, row by row."""

    blocks: tuple[Tensor, ...]  # per block [L, P_i]
    buffers: tuple[Tensor, ...]  # per block [L, N_i]
    seeds: tuple[tuple[Tensor, ...], ...]  # per slot and group [n, P_k + G]
    seed_buffers: tuple[tuple[Tensor, ...], ...]  # per slot and group [n, R_k]
    alphas: tuple[tuple[Tensor, ...], ...]  # per slot and group [n]


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


class GroupRecord(NamedTuple):
    """What a group of seeds leaves on the tape."""

    grown: Grown
    buffers: Tensor
    pull_seed: Any
    pull_mix: Any


class SlotRecord(NamedTuple):
    """What a slot leaves on the tape."""

    before: Flow
    groups: tuple[GroupRecord, ...]


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


def place_rows(listed: SlotRows, values: Sequence[Tensor], elsewhere: Tensor) -> Tensor:
    """Rows of all groups, each at its lane; other lanes keep what they have, bit for bit."""
    rows = torch.cat(tuple(values)).index_select(0, listed.index)
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
    slot = structure.slots[place.index]
    if listed.parents is not None:
        flow = take_lanes(flow, listed.parents)
    records, outputs = [], []
    for number, group in enumerate(listed.groups):
        h = flow.h.index_select(0, group.lanes)
        x = flow.saved[slot.source].index_select(0, group.lanes) if slot.is_bypass else h
        seed = _seed(structure, place.index, number, listed, numbers, mode)
        row = numbers.seeds[place.index][number]
        if structure.learns_before(slot.source):
            grown, buffers, pull_seed = mode.call(seed, row, x)
        else:
            grown, buffers, pull_seed = mode.call(partial(_with_input, seed, x), row)
        blend = partial(_mix, slot, numbers.alphas[place.index][number], group.gated)
        out, _, pull_mix = mode.call(blend, h, grown)
        outputs.append(out)
        records.append(GroupRecord(grown, buffers, pull_seed, pull_mix))
    record = SlotRecord(flow, tuple(records))
    return flow._replace(h=place_rows(listed, outputs, flow.h)) if outputs else flow, record


def take_lanes(flow: Flow, lanes: Tensor) -> Flow:
    """The features of some lanes."""
    saved = {point: features.index_select(0, lanes) for point, features in flow.saved.items()}
    return Flow(flow.h.index_select(0, lanes), saved)


def _seed(
    structure: Structure, slot: int, number: int, listed: SlotRows, numbers: Numbers, mode: Mode
) -> Callable[[Tensor, Tensor], tuple[Grown, Tensor]]:
    """What the seeds of a group compute: (rows, x) -> (what they give, new buffers)."""
    place, group = structure.slots[slot], listed.groups[number]
    blueprint, layout = structure.blueprints[group.blueprint], place.row(group.blueprint)
    held, buffer_layout = numbers.seed_buffers[slot][number], place.buffer_row(group.blueprint)
    key = None
    if blueprint.draws and mode.key is not None:
        key = fold(mode.key.index_select(0, group.lanes), Stream.SEED, slot)

    def run(row: Tensor, x: Tensor) -> "tuple[Grown, Tensor]":
        named, buffers = layout.views(row[:, : layout.size]), buffer_layout.views(held)
        if mode.train:
            s, new = blueprint.train(named, buffers, x, key)
            after = _flat(buffer_layout.params, new, held)
        else:
            s, after = blueprint.infer(named, buffers, x), held
        if not place.gate.size:
            return (s,), after
        opening = gate.opening(place.reads)(place.gate.views(row[:, layout.size :]), x)
        return (s, opening), after

    return run


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

    rows: tuple[Tensor, ...]  # per group [n, P_k + G]
    h: Tensor  # [L, B, ...]; of the features at the target
    source: Tensor | None  # likewise at the source of a bypass, if anything learns before it


def back_through_slot(
    structure: Structure,
    place: Place,
    listed: SlotRows,
    record: SlotRecord,
    grad: Tensor,
    heed: Callable[[int, Group, Grown, Tensor, Grown], Grown],
) -> SlotGradients:
    """Gradients of a slot's seeds and of what they read.

    Args:
      structure, place, listed, record: the slot.
      grad: [L, B, ...]; of its output.
      heed: (number, group, what it gave, gradient of the output, gradient of what it gave) -> the gradient that the
        group learns by: what the life cycle puts in place of the network's own for seeds in TRAINING.
    """
    slot = structure.slots[place.index]
    flows = structure.learns_before(slot.source)
    rows, targets, sources = [], [], []
    for number, (group, kept) in enumerate(zip(listed.groups, record.groups, strict=True)):
        out = grad.index_select(0, group.lanes)
        h, grown = kept.pull_mix(out)
        own = kept.pull_seed(heed(number, group, kept.grown, out, grown))
        rows.append(own[0])
        x = torch.where(per_row(group.isolated, own[1]), 0.0, own[1]) if flows else None
        if x is not None and slot.is_bypass:
            sources.append(x)
        targets.append(h if x is None or slot.is_bypass else h + x)
    if not rows:
        return SlotGradients((), grad, None)
    source = None
    if sources:
        source = place_rows(listed, sources, torch.zeros_like(record.before.saved[slot.source]))
    return SlotGradients(tuple(rows), place_rows(listed, targets, grad), source)
