"""Fresh rows of many seeds in one draw: the numbers that ``Layout.init`` draws tensor by tensor.

A row is put together from layouts side by side. What it holds before anything is drawn, and which of its columns are
drawn from which distribution, is known once the slots are; so a step that germinates a thousand seeds of ten kinds
derives all their keys at once, draws all their numbers at once, and writes them at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper.kasmina.layout import Layout
from esper.kasmina.slot import Slot
from esper.leyline.streams import Stream
from esper.utils import rng
from esper.utils.upload import upload

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


class Fresh(NamedTuple):
    """Numbers for an arena: n of them, and int64 [n] each the rows and the columns they belong in."""

    rows: Tensor
    columns: Tensor
    values: Tensor


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


def draw_rows(kinds: Kinds, rows: IntArray, groups: IntArray, keys: Tensor, dtype: torch.dtype) -> Fresh:
    """Fresh rows of n seeds.

    Args:
      kinds: of an arena.
      rows: int64 [n]; the seeds' environments.
      groups: int64 [n]; their kinds g.
      keys: int64 [n, 2].
      dtype: floating type.

    Returns:
      every number of their rows. Law: a row is what ``Layout.init`` makes of its pieces, bit for bit.
    """
    widths, counts = kinds.widths[groups], kinds.tensor_counts[groups]
    seeds, place = _ragged(widths)
    drawn_by, number = _ragged(counts)
    tensors = kinds.tensor_begins[groups][drawn_by] + number
    order = np.argsort(kinds.normal[tensors], kind="stable")
    drawn_by, tensors = drawn_by[order], tensors[order]
    of_tensor, counter = _ragged(kinds.sizes[tensors])
    row_begins = np.cumsum(widths) - widths
    at = (row_begins[drawn_by] + kinds.starts[tensors])[of_tensor] + counter
    all_numbers = rows[seeds], kinds.first[groups][seeds] + place, kinds.begins[groups][seeds] + place
    of_drawn = drawn_by, tensors, kinds.numbers[tensors], of_tensor, counter, at
    (env, columns, known), parts = upload((all_numbers, of_drawn), keys.device)
    drawn = _Drawn(*parts)
    values = kinds.before[known].to(dtype)
    if len(tensors):
        normals = int(kinds.sizes[tensors][kinds.normal[tensors]].sum())
        base = _keys_of(kinds, tensors, keys, drawn.seeds)
        numbers = _values(kinds, rng.fold_in(base, drawn.numbers), drawn, normals, dtype)
        values = values.index_copy(0, drawn.at, numbers)
    return Fresh(env, columns, values)


class _Drawn(NamedTuple):
    """Drawn tensors, T of them, and their N numbers.

    Attributes:
      seeds, tensors, numbers: [T]; whose they are, which, and their number in their layout.
      owners, counters: [N]; a number's tensor, and its place in it.
      at: [N]; its place among all numbers of all rows.
    """

    seeds: Tensor
    tensors: Tensor
    numbers: Tensor
    owners: Tensor
    counters: Tensor
    at: Tensor


def _keys_of(kinds: Kinds, tensors: IntArray, keys: Tensor, seeds: Tensor) -> Tensor:
    """The key that each drawn tensor's own key is derived from: [T, 2]."""
    of_gate = kinds.of_gate[tensors]
    if not of_gate.any():
        return keys[seeds]
    both = torch.stack((keys, rng.fold_in(keys, int(Stream.GATE))))
    return both[upload(of_gate.astype(np.int64), keys.device), seeds]


def _values(kinds: Kinds, keys: Tensor, drawn: _Drawn, normals: int, dtype: torch.dtype) -> Tensor:
    """All numbers drawn, uniform ones first: [N]."""
    owners, tensors = drawn.owners, drawn.tensors
    low, high = kinds.low[tensors][owners].to(dtype), kinds.high[tensors][owners].to(dtype)
    words = rng.bits_at(keys[owners], drawn.counters)
    split = words.shape[0] - normals
    return torch.cat(
        (
            rng.uniform_of(words[:split], low[:split], high[:split]),
            rng.normal_of(words[split:], dtype) * low[split:],
        )
    )


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
