"""The oracle's network: every blueprint for every environment, then a choice; a gradient stops where it is detached."""

from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina import gate
from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure, is_gated
from esper.leyline.config import Isolation
from esper.leyline.stages import ACTIVE, ISOLATED, Stage, is_in
from esper.leyline.streams import Stream
from esper.utils import rng


class SlotContents(NamedTuple):
    """Stage, blueprint and blend of n networks' slots, int64 [n, S] each."""

    stage: Tensor
    blueprint: Tensor
    blend: Tensor


class NetworkParams(NamedTuple):
    """The numbers of n networks."""

    host: Tensor  # [n, P]
    buffers: Tensor  # [n, N]
    seeds: Tensor  # [n, Q]
    seed_buffers: Tensor  # [n, R]
    alphas: Tensor  # [n, S]


def _rowwise(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(vector.shape + (1,) * (like.dim() - vector.dim()))


class NetworkPass:
    """One pass of n networks, block by block.

    ``own`` names a slot whose seeds in TRAINING are on, all else given; their objective is differentiated exactly,
    through later seeds too.
    """

    def __init__(
        self, structure: Structure, held: SlotContents, rows: NetworkParams, train: bool, key: Tensor | None
    ) -> None:
        self.structure, self.held, self.rows, self.train, self.key = structure, held, rows, train, key
        self.buffers: list[Tensor] = []
        self.seed_buffers: list[Tensor] = [rows.seed_buffers[:, slot.buffer_columns] for slot in structure.slots]

    def run(self, inputs: Tensor, own: int | None = None) -> Tensor:
        """Inputs [n, B, ...] -> outputs [n, B, ..., C]."""
        h, points = inputs, dict[int, Tensor]()
        for index in range(len(self.structure.host.blocks) + 1):
            if index:
                h = self._block(index - 1, h)
            for number, slot in enumerate(self.structure.slots):
                if slot.target == index:
                    h = self._slot(number, slot, points[slot.source] if slot.is_bypass else h, h, own)
            points[index] = h
        return h

    def _block(self, index: int, x: Tensor) -> Tensor:
        blocks = self.structure.host.blocks
        block, named = blocks[index], dict[str, Tensor]()
        sizes, buffer_sizes = [b.layout.size for b in blocks], [b.buffer_layout.size for b in blocks]
        rows, buffers = self.rows.host.split(sizes, 1), self.rows.buffers.split(buffer_sizes, 1)
        named |= block.layout.views(rows[index])
        for tie in block.ties:
            named[tie.param.name] = blocks[tie.block].layout.views(rows[tie.block])[tie.param.name]
        held = block.buffer_layout.views(buffers[index])
        if not self.train:
            return block.infer(named, held, x)
        key = rng.fold_in(self.key, int(Stream.BLOCK), index) if block.draws and self.key is not None else None
        y, new = block.train(named, held, x, key)
        self.buffers.append(torch.cat([new[p.name].flatten(1) for p in block.buffers], 1) if new else buffers[index])
        return y

    def _slot(self, number: int, slot: Slot, x: Tensor, h: Tensor, own: int | None) -> Tensor:
        stage, kind = self.held.stage[:, number], self.held.blueprint[:, number]
        active = is_in(stage, ACTIVE)
        isolated = is_in(stage, ISOLATED) if own is None else torch.zeros_like(active)
        constant = isolated & (self.structure.config.isolation is not Isolation.NONE)
        seen = x if not x.is_floating_point() else torch.where(_rowwise(constant, x), x.detach(), x)
        s = self._features(number, slot, kind, active, seen, h)
        alpha = self.rows.alphas[:, number]
        weight, gated = alpha.unsqueeze(1), is_gated(self.held.blend[:, number])
        if slot.gate.size:
            opening = gate.opening(slot.reads)(slot.gate.views(self.rows.seeds[:, slot.gate_columns]), seen)
            full = _rowwise(alpha, opening)
            weight = torch.where(_rowwise(gated & (alpha != 0), opening), full * opening, full)
        mixed = h + _rowwise(weight, h) * s if slot.is_bypass else torch.lerp(h, s, _rowwise(weight, h))
        out = torch.where(_rowwise(active & (alpha != 0), h), mixed, h)
        training = active & (stage == int(Stage.TRAINING))
        if own is None and self.train and self.structure.config.isolation is not Isolation.OBJECTIVE:
            echo = torch.where(torch.isfinite(s), s - s.detach(), 0.0)
            out = torch.where(_rowwise(training, h), h + echo, out)
        return out

    def _features(self, number: int, slot: Slot, kind: Tensor, active: Tensor, x: Tensor, h: Tensor) -> Tensor:
        """What the seeds give: every blueprint for all, then each network's own."""
        s, arena = torch.zeros_like(h), self.rows.seeds
        held = self.rows.seed_buffers[:, slot.buffer_columns]
        key = rng.fold_in(self.key, int(Stream.SEED), number) if self.key is not None else None
        for k in slot.offers:
            blueprint, mine = self.structure.blueprints[k], active & (kind == k)
            named, layout = slot.row(k).views(arena[:, slot.blueprint_columns(k)]), slot.buffer_row(k)
            before = layout.views(held[:, : layout.size])
            if not self.train:
                y = blueprint.infer(named, before, x)
            else:
                y, new = blueprint.train(named, before, x, key if blueprint.draws else None)
                for param in layout.params:
                    columns = layout.columns(param.name)
                    old = self.seed_buffers[number]
                    moved = torch.where(mine.unsqueeze(1), new[param.name].flatten(1), old[:, columns])
                    self.seed_buffers[number] = torch.cat((old[:, : columns.start], moved, old[:, columns.stop :]), 1)
            s = torch.where(_rowwise(mine, h), y, s)
        return s
