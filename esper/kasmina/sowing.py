"""Fresh rows of many seeds in one draw: the numbers that ``Layout.init`` draws tensor by tensor.

A row is put together from layouts side by side. What it holds before anything is drawn, and which of its columns are
drawn from which distribution, is known once the slots are; so a step that germinates a thousand seeds of ten kinds
derives all their keys at once, draws all their numbers at once, and writes them at once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper.kasmina.layout import Layout
from esper.kasmina.slot import Slot
from esper.leyline.streams import Stream
from esper.utils import rng

IntArray = NDArray[np.int64]

GATE_KEY, OWN_KEY = True, False
"""Which key the tensors of a layout are drawn from: the gate's, or the seed's own."""


class Piece(NamedTuple):
    """A layout in a row: where it begins, and by which key it is drawn."""

    layout: Layout
    start: int
    of_gate: bool


class Kinds(NamedTuple):
    """The rows of all kinds of seed at all slots, kind g = slot * K + blueprint.

    Attributes:
      first: int64 [G]; the arena's column a row begins at.
      widths: int64 [G]; its length, 0 where the blueprint does not fit.
      begins: int64 [G]; where its columns begin in ``before``.
      before: float64 [sum of widths]; what a row holds where nothing is drawn.
      tensor_begins, tensor_counts: int64 [G]; its drawn tensors among D.
      numbers: int64 [D]; a drawn tensor's number in its layout.
      of_gate: bool [D]; whether it is drawn by the gate's key.
      starts, sizes: int64 [D]; its columns in the row.
      low, high: float64 [D]; the bounds of a uniform one; of a normal one both are its standard deviation.
      normal: bool [D].
    """

    first: IntArray
    widths: IntArray
    begins: IntArray
    before: Tensor
    tensor_begins: IntArray
    tensor_counts: IntArray
    numbers: IntArray
    of_gate: NDArray[np.bool_]
    starts: IntArray
    sizes: IntArray
    low: Tensor
    high: Tensor
    normal: NDArray[np.bool_]


class FreshRows(NamedTuple):
    """All numbers of n seeds' rows, M of them; T tensors among them are drawn, of N numbers, the normal ones last.

    Attributes:
      envs, columns: int64 [M]; the environment and the arena's column of a number.
      known: int64 [M]; its place in ``Kinds.before``.
      seeds, tensors, numbers: int64 [T]; whose a drawn tensor is, which it is, and its number in its layout.
      of_gate: int64 [T]; 1: drawn by the gate's key.
      owners, counters: int64 [N]; a drawn number's tensor, and its place in it.
      at: int64 [N]; its place among all M.
      num_normal: normal ones among the N.
    """

    envs: Any
    columns: Any
    known: Any
    seeds: Any
    tensors: Any
    numbers: Any
    of_gate: Any
    owners: Any
    counters: Any
    at: Any
    num_normal: int


def param_kinds(slots: Sequence[Slot], device: torch.device) -> Kinds:
    """Rows of parameters: a blueprint's numbers first, the gate's last, zeros between."""
    rows = [
        (slot.start, slot.width, None if own is None else (_own(own), Piece(slot.gate, _gate_start(slot), GATE_KEY)))
        for slot in slots
        for own in slot.layouts
    ]
    return _kinds(rows, device)


def buffer_kinds(slots: Sequence[Slot], device: torch.device) -> Kinds:
    """Rows of buffers: a blueprint's first, zeros behind."""
    rows = [
        (slot.buffer_start, slot.buffer_width, None if own is None else (_own(own),))
        for slot in slots
        for own in slot.buffers
    ]
    return _kinds(rows, device)


def list_rows(kinds: Kinds, envs: IntArray, groups: IntArray) -> FreshRows:
    """What is to be drawn for n seeds of environments [n] and kinds g [n]; arrays of the host, to be uploaded."""
    widths, counts = kinds.widths[groups], kinds.tensor_counts[groups]
    seed, place = _ragged(widths)
    owner, number = _ragged(counts)
    tensors = kinds.tensor_begins[groups][owner] + number
    order = np.argsort(kinds.normal[tensors], kind="stable")
    owner, tensors = owner[order], tensors[order]
    tensor, counter = _ragged(kinds.sizes[tensors])
    begins = (np.cumsum(widths) - widths)[owner] + kinds.starts[tensors]
    return FreshRows(
        envs=envs[seed],
        columns=kinds.first[groups][seed] + place,
        known=kinds.begins[groups][seed] + place,
        seeds=owner,
        tensors=tensors,
        numbers=kinds.numbers[tensors],
        of_gate=kinds.of_gate[tensors].astype(np.int64),
        owners=tensor,
        counters=counter,
        at=begins[tensor] + counter,
        num_normal=int(kinds.sizes[tensors][kinds.normal[tensors]].sum()),
    )


def draw_rows(kinds: Kinds, rows: FreshRows, keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Fresh rows of n seeds.

    Args:
      kinds: of an arena.
      rows: on the device.
      keys: int64 [n, 2].
      dtype: floating type.

    Returns:
      all numbers of their rows, [M]. Law: a row is what ``Layout.init`` makes of its pieces, bit for bit.
    """
    values = kinds.before[rows.known].to(dtype)
    if rows.at.shape[0] == 0:
        return values
    parents = torch.stack((keys, rng.fold_in(keys, int(Stream.GATE))))[rows.of_gate, rows.seeds]
    own = rng.fold_in(parents, rows.numbers)
    return values.index_copy(0, rows.at, _values(kinds, own, rows, dtype))


def _values(kinds: Kinds, keys: Tensor, rows: FreshRows, dtype: torch.dtype) -> Tensor:
    """All drawn numbers, by the keys [T, 2] of their tensors: [N]."""
    low, high = (each[rows.tensors][rows.owners].to(dtype) for each in (kinds.low, kinds.high))
    words = rng.bits_at(keys[rows.owners], rows.counters)
    split = words.shape[0] - rows.num_normal
    uniform = rng.uniform_of(words[:split], low[:split], high[:split])
    return torch.cat((uniform, rng.normal_of(words[split:], dtype) * low[split:]))


def _own(layout: Layout) -> Piece:
    return Piece(layout, 0, OWN_KEY)


def _gate_start(slot: Slot) -> int:
    return slot.width - slot.gate.size


def _kinds(rows: Sequence[tuple[int, int, tuple[Piece, ...] | None]], device: torch.device) -> Kinds:
    widths, before, counts = [], [], []
    drawn: list[tuple[float, ...]] = []
    for _, width, pieces in rows:
        row = np.zeros(width if pieces is not None else 0)
        found = [tensor for piece in pieces or () for tensor in _lay(piece, row)]
        widths.append(row.size)
        before.append(row)
        counts.append(len(found))
        drawn += found
    numbers, of_gate, starts, sizes, low, high, normal = np.array(drawn).reshape(-1, 7).T
    return Kinds(
        first=np.array([first for first, _, _ in rows], dtype=np.int64),
        widths=_int(widths),
        begins=_int(np.cumsum(widths) - widths),
        before=torch.from_numpy(np.concatenate([np.zeros(0), *before])).to(device),
        tensor_begins=_int(np.cumsum(counts) - counts),
        tensor_counts=_int(counts),
        numbers=_int(numbers),
        of_gate=of_gate.astype(bool),
        starts=_int(starts),
        sizes=_int(sizes),
        low=torch.from_numpy(low.copy()).to(device),
        high=torch.from_numpy(high.copy()).to(device),
        normal=normal.astype(bool),
    )


def _lay(piece: Piece, row: NDArray[np.float64]) -> list[tuple[float, ...]]:
    """Write a layout's constants into a row, and list what is drawn: number, key, start, size, bounds, normal."""
    drawn: list[tuple[float, ...]] = []
    start = piece.start
    for number, param in enumerate(piece.layout.params):
        if param.init == "constant":
            row[start : start + param.size] = param.scale
        else:
            low = -param.scale if param.init == "uniform" else param.scale if param.init == "normal" else 0.0
            drawn.append((number, piece.of_gate, start, param.size, low, param.scale, param.init == "normal"))
        start += param.size
    return drawn


def _int(values: object) -> IntArray:
    return np.asarray(values, dtype=np.int64)


def _ragged(lengths: IntArray) -> tuple[IntArray, IntArray]:
    """Lists of these lengths one behind the other: the list of each entry, and its place in it."""
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return owners, np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
