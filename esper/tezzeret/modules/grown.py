"""One environment's network as a module: its host, the seeds that reach its output, their gates and weights."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from esper.kasmina import arena, gate
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host import HostBlock
from esper.kasmina.layout import Layout, Params
from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure
from esper.leyline.actions import BLENDS, Blend
from esper.leyline.config import ConfigError, Isolation
from esper.leyline.learners import learners_of
from esper.leyline.stages import ISOLATED, MERGED, Stage
from esper.leyline.state import State
from esper.tezzeret.modules.single import SingleNetwork
from esper.tezzeret.modules.tree import SITES, Entry, Role, place

Train = Callable[[Params, Params, Tensor, Tensor | None], tuple[Tensor, Params]]
Infer = Callable[[Params, Params, Tensor], Tensor]


class Names(NamedTuple):
    """What a block or a seed calls its tensors -> their names in the network."""

    params: dict[str, str]
    buffers: dict[str, str]
    held: dict[str, str] = {}  # noqa: RUF012 (a default that nobody writes to)


class Seed(NamedTuple):
    """A seed that reaches the output.

    Attributes:
      kind: its blueprint.
      names: its tensors; those of its gate, where it has one.
      alpha: name of its weight; None: 1, and it replaces the features.
      isolated: whether what it reads is held constant.
    """

    kind: Blueprint
    names: Names
    gate: dict[str, str]
    alpha: str | None
    isolated: bool


class SiteMark(nn.Module):
    """Where a slot may sit: the features as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        return x.view_as(x)


class Grown(nn.Module):
    """The network of one environment, computed by the functions of its blocks and seeds."""

    def __init__(self, structure: Structure, state: State, env: int) -> None:
        super().__init__()
        self.structure = structure
        self.blocks = [self._block_names(index) for index in range(len(structure.host.blocks))]
        self._take_host(state, env)
        self.seeds = {
            number: seed
            for number in range(len(structure.slots))
            if (seed := self._take_seed(state, env, number)) is not None
        }
        for index in structure.host.sites:
            place(self, f"{SITES}.block{index}", SiteMark())

    def _block_names(self, index: int) -> Names:
        block = self.structure.host.blocks[index]
        if block.draws and block.one is None:
            raise ConfigError(f"block {index} draws random numbers from keys; expected a host of a torch.nn.Module")
        prefix = "" if block.one is not None else f"block{index}."
        params = {param.name: f"{prefix}{param.name}" for param in block.params}
        for tie in block.ties:
            owner = self.structure.host.blocks[tie.block]
            params[tie.param.name] = f"{'' if owner.one is not None else f'block{tie.block}.'}{tie.param.name}"
        buffers = {param.name: f"{prefix}{param.name}" for param in block.buffers}
        held = {name: name for name in block.one.held} if block.one is not None else {}
        return Names(params, buffers, held)

    def _take_host(self, state: State, env: int) -> None:
        host, learners = self.structure.host, learners_of(state)
        rows = arena.split_blocks(host, learners.host.params[env : env + 1])
        held = arena.split_buffers(host, learners.buffers[env : env + 1])
        taken = set[str]()
        for block, names, row, buffers in zip(host.blocks, self.blocks, rows, held, strict=True):
            entries = [(names.params, block.reads, row, Role.PARAMETER)]
            entries += [(names.buffers, block.buffer_layout, buffers, Role.BUFFER)]
            for given, layout, values, role in entries:
                new = {name: full for name, full in given.items() if full not in taken}
                self._put(new, layout, values, role)
                taken |= set(new.values())
            self._hold(block, names, taken, row.dtype)

    def _hold(self, block: HostBlock, names: Names, taken: set[str], dtype: torch.dtype) -> None:
        """What all networks share; a parameter among it is frozen."""
        for name, value in (block.one.held if block.one is not None else {}).items():
            if name not in taken:
                own = value.detach().to(dtype if value.is_floating_point() else value.dtype).clone()
                role = Role.FROZEN if isinstance(value, nn.Parameter) else Role.BUFFER
                place(self, names.held[name], Entry(own, role))
                taken.add(name)

    def _put(self, names: dict[str, str], layout: Layout, row: Tensor, role: Role) -> None:
        views = layout.views(row)
        for param in layout.params:
            if param.name in names:
                value = views[param.name][0].reshape(param.shape).detach().clone()
                place(self, names[param.name], Entry(value, role))

    def _take_seed(self, state: State, env: int, number: int) -> Seed | None:
        structure, slot, slots = self.structure, self.structure.slots[number], state.slots
        stage, kind = Stage(int(slots.stage[env, number])), int(slots.blueprint[env, number])
        alpha = float(slots.alpha[env, number])
        if stage not in MERGED or alpha == 0:
            return None
        blueprint, learners = structure.blueprints[kind], learners_of(state)
        if blueprint.draws:
            raise ConfigError(
                f"blueprint {blueprint.name!r} draws random numbers from keys; expected one that does not"
            )
        prefix = self._free(f"slot{number}")
        params, buffers = slot.row(kind), slot.buffer_row(kind)
        names = Names(
            *({p.name: f"{prefix}.{blueprint.name}.{p.name}" for p in row.params} for row in (params, buffers))
        )
        row = learners.seeds.params[env : env + 1]
        self._put(names.params, params, row[:, slot.blueprint_columns(kind)], Role.PARAMETER)
        held = learners.seed_buffers[env : env + 1, slot.buffer_columns]
        self._put(names.buffers, buffers, held[:, : buffers.size], Role.BUFFER)
        gated = BLENDS[Blend(int(slots.blend[env, number]))].gated
        opening = {p.name: f"{prefix}.gate.{p.name}" for p in slot.gate.params} if gated else {}
        self._put(opening, slot.gate, row[:, slot.gate_columns], Role.PARAMETER)
        isolated = stage in ISOLATED and structure.config.isolation is not Isolation.NONE
        if alpha == 1 and not gated and not slot.is_bypass:
            return Seed(blueprint, names, opening, None, isolated)
        weight = slots.alpha[env, number].detach().clone()
        place(self, f"{prefix}.alpha", Entry(weight, Role.BUFFER))
        return Seed(blueprint, names, opening, f"{prefix}.alpha", isolated)

    def _free(self, name: str) -> str:
        """The name, or the first with a line behind it that no part of the host has: a host may have been grown."""
        while hasattr(self, name):
            name += "_"
        return name

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [B, ...] -> logits [B, C], or [B, T, C] from tokens. In training, statistics are updated."""
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        h, points = x, {0: x}
        with SingleNetwork():
            for number, step in enumerate(self.structure.route):
                run = self._slot if step.is_slot else self._block
                h = run(step.number, tensors, h, points)
                point = self.structure.point_after(number)
                if point is not None:
                    h = self._mark(point, h)
                    points[point] = h
        return h

    def _mark(self, point: int, h: Tensor) -> Tensor:
        known = point - 1 in self.structure.host.sites
        return self.get_submodule(f"{SITES}.block{point - 1}")(h) if known else h

    def _block(self, index: int, tensors: Params, x: Tensor, points: dict[int, Tensor]) -> Tensor:
        block, names = self.structure.host.blocks[index], self.blocks[index]
        if block.one is None:
            return self._many(block.train, block.infer, names, tensors, x)
        everything = {**names.params, **names.buffers, **names.held}
        own = {name: tensors[full] for name, full in everything.items()}
        if not self.training:
            return block.one.infer(own, x)
        y, new = block.one.train(own, x, None)
        self._keep(tensors, names, new)
        return y

    def _many(self, train: Train, infer: Infer, names: Names, tensors: Params, x: Tensor) -> Tensor:
        """What is written for many networks, with one."""
        params, buffers = (_rows(table, tensors) for table in names[:2])
        if not self.training:
            return infer(params, buffers, x.unsqueeze(0))[0]
        y, new = train(params, buffers, x.unsqueeze(0), None)
        self._keep(tensors, names, {name: value[0] for name, value in new.items()})
        return y[0]

    def _keep(self, tensors: Params, names: Names, new: Params) -> None:
        """Statistics after a batch."""
        for name, value in new.items():
            buffer = tensors[names.buffers[name]]
            value = value.detach() if value.requires_grad else value
            buffer.copy_(value.reshape(buffer.shape))

    def _slot(self, number: int, tensors: Params, h: Tensor, points: dict[int, Tensor]) -> Tensor:
        seed, slot = self.seeds.get(number), self.structure.slots[number]
        if seed is None:
            return h
        x = points[slot.source] if slot.is_bypass else h
        x = x.detach() if seed.isolated and self.training and x.is_floating_point() else x
        s = self._many(seed.kind.train, seed.kind.infer, seed.names, tensors, x)
        if seed.alpha is None:
            return s
        weight = self._weight(slot, seed, tensors, x, h)
        return h + weight * s if slot.is_bypass else torch.lerp(h, s, weight)

    def _weight(self, slot: Slot, seed: Seed, tensors: Params, x: Tensor, h: Tensor) -> Tensor:
        assert seed.alpha is not None
        alpha = tensors[seed.alpha]
        if not seed.gate:
            return alpha
        opening = gate.opening(slot.reads)(_rows(seed.gate, tensors), x.unsqueeze(0))[0]
        return (alpha * opening).reshape(*opening.shape, *(1,) * (h.dim() - opening.dim()))


def _rows(names: dict[str, str], tensors: Params) -> Params:
    """Tensors as rows of one network, [1, *shape]; a number is [1, 1]."""
    given = {name: tensors[full] for name, full in names.items()}
    return {name: value.unsqueeze(0) if value.dim() else value.reshape(1, 1) for name, value in given.items()}
