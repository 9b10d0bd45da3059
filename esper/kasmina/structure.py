"""The structure of a host with slots: what the network *is*, bound once, frozen, the same under every backend.

Everything a shape or an offset can be derived from is here; what evolves is ``State``, and how it is computed is a
``Backend``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from esper.kasmina import gate
from esper.kasmina.augment import Augment
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host import Host, check_ties
from esper.kasmina.layout import Layout
from esper.kasmina.legal_stages import stage_refusals
from esper.kasmina.narrow import Part, find_wide
from esper.kasmina.objectives import Objective
from esper.kasmina.optimizers import Optimizer, decays, find_optimizer
from esper.kasmina.slot import Place, Slot
from esper.kasmina.sowing import Kinds, buffer_kinds, param_kinds
from esper.leyline.actions import BLENDS, NONE, Blend, Codec, build_codec
from esper.leyline.config import Config, ConfigError
from esper.leyline.state import Slots
from esper.utils.masks import holds_nowhere


@dataclass(frozen=True, eq=False)
class Structure:
    """A host with its slots, and what they learn by.

    Attributes:
      config: the run's structure.
      host: the network that learns the task.
      blueprints: K kinds of seed; position = number.
      slots: S places for seeds.
      codec: all actions.
      host_optimizer, seed_optimizer: how they learn.
      objective: what they learn.
      augment: the task's own augmentation; None: none.
      sizes: int64 [S, K]; parameters of each blueprint at each slot.
      gate_sizes: int64 [S]; parameters of each slot's gate.
      action_sizes: int64 [A]; parameters of the seed that each action places, 0 where it places none.
      stage_refusals: int64 [operations, stages]; what is said of an operation in a stage, 0 where it is legal.
      host_decays: bool [P]; which numbers of a host a decoupled decay shrinks.
      slot_of_column: int64 [Q]; the slot each column of the seed arena belongs to.
      slot_of_buffer: int64 [R]; the same of the seeds' buffers.
      param_kinds, buffer_kinds: what fresh rows of the seeds' arenas are made of.
      num_seed_params, num_seed_buffers: lengths Q and R of the seeds' arenas.
      draws: whether any module draws random numbers while it trains.
      route: the features' way: slots at the input, then block by block, each with the slots that act behind it.
      sources: points that a bypass reads.
      wide: where features have fewer bits than weights, the blocks ("block", i) and seeds ("seed", slot, k) that
        compute in the weights' type all the same, since they know nothing of it: with the reason.
    """

    config: Config
    host: Host
    blueprints: tuple[Blueprint, ...]
    slots: tuple[Slot, ...]
    codec: Codec
    host_optimizer: Optimizer
    seed_optimizer: Optimizer
    objective: Objective
    sizes: Tensor
    gate_sizes: Tensor
    action_sizes: Tensor
    stage_refusals: Tensor
    host_decays: Tensor
    slot_of_column: Tensor
    slot_of_buffer: Tensor
    augment: Augment | None = None

    param_kinds: Kinds = field(init=False)
    buffer_kinds: Kinds = field(init=False)
    num_seed_params: int = field(init=False)
    num_seed_buffers: int = field(init=False)
    draws: bool = field(init=False)
    route: tuple[Place, ...] = field(init=False)
    sources: frozenset[int] = field(init=False)
    wide: Mapping[Part, str] = field(init=False)

    def __post_init__(self) -> None:
        """Fill in what follows from the rest."""
        device = self.sizes.device
        derived = {
            "param_kinds": param_kinds(self.slots, device),
            "buffer_kinds": buffer_kinds(self.slots, device),
            "num_seed_params": sum(slot.width for slot in self.slots),
            "num_seed_buffers": sum(slot.buffer_width for slot in self.slots),
            "draws": any(module.draws for module in self.host.blocks) or any(kind.draws for kind in self.blueprints),
            "route": _route(self.host, self.slots),
            "sources": frozenset(slot.source for slot in self.slots if slot.is_bypass),
        }
        derived["wide"] = find_wide(self.config.precision, self.host, self.blueprints, self.slots)
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def learns_before(self, point: int) -> bool:
        """Whether anything that learns reaches the features at a point; block i reads point i."""
        return point > 0 or any(slot.target == 0 for slot in self.slots)

    def point_after(self, place: int) -> int | None:
        """The point that is complete after a place of the route: a block and all slots that act behind it."""
        blocks = sum(not step.is_slot for step in self.route[: place + 1])
        following = self.route[place + 1] if place + 1 < len(self.route) else None
        return None if following is not None and following.is_slot else blocks

    def slots_after(self, block: int) -> tuple[int, ...]:
        """Slots that act behind a block, in order."""
        return tuple(number for number, slot in enumerate(self.slots) if slot.target == block + 1)

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Per slot its point, such as ``block0``, or its source and target, such as ``input:logits``."""
        points = tuple(self.host.points)
        blocks = {_number(self.host, point): point for point in points}
        pairs = [(blocks[slot.source], blocks[slot.target]) for slot in self.slots]
        return tuple(source if source == target else f"{source}:{target}" for source, target in pairs)

    @property
    def computing(self) -> tuple[str, ...]:
        """Lines for people on what else than the plain way is computed: in which types, and what is recomputed."""
        precision, lines = self.config.precision, list[str]()
        if precision.is_mixed:
            lines.append(f"precision {precision.value}: features and matrix products; all that is kept is float32")
        for (kind, *numbers), reason in self.wide.items():
            name = f"block {numbers[0]}"
            if kind == "seed":
                name = f"{self.blueprints[int(numbers[1])].name} in slot {numbers[0]}"
            lines.append(f"float32 inside: {name}: {reason}")
        if self.config.recompute:
            lines.append("recompute: of blocks and seeds only the inputs are kept for gradients")
        return tuple(lines)


def _route(host: Host, slots: tuple[Slot, ...]) -> tuple[Place, ...]:
    at: dict[int, list[Place]] = {point: [] for point in range(len(host.blocks) + 1)}
    for number, slot in enumerate(slots):
        at[slot.target].append(Place(True, number))
    blocks = [place for i in range(len(host.blocks)) for place in (Place(False, i), *at[i + 1])]
    return (*at[0], *blocks)


def build_structure(
    config: Config,
    host: Host,
    blueprints: tuple[Blueprint, ...],
    objective: Objective,
    device: torch.device,
    augment: Augment | None = None,
) -> Structure:
    """Bind host, slots and blueprints.

    Raises:
      ConfigError: a tie to nothing, a slot at no point of the host, two blueprints of one name, or a slot that no
        blueprint fits.
    """
    check_ties(host)
    names = tuple(blueprint.name for blueprint in blueprints)
    if len(set(names)) != len(names):
        raise ConfigError(f"blueprints {list(names)}: expected distinct names")
    slots = _slots(config, host, blueprints, device)
    codec = build_codec(tuple(slot.offers for slot in slots), config.blends, names, config.retarget).to(device)
    rows = [[layout.size if layout else 0 for layout in slot.layouts] for slot in slots]

    def table(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Structure(
        config=config,
        host=host,
        blueprints=blueprints,
        slots=slots,
        codec=codec,
        host_optimizer=find_optimizer(config.host_optimizer, "config.host_optimizer"),
        seed_optimizer=find_optimizer(config.seed_optimizer, "config.seed_optimizer"),
        objective=objective,
        sizes=table([size for row in rows for size in row]).reshape(len(slots), len(blueprints)),
        gate_sizes=table([slot.gate.size for slot in slots]),
        action_sizes=table(_action_sizes(codec, rows, slots)),
        stage_refusals=torch.tensor(stage_refusals(), device=device),
        host_decays=decays(host.layout).to(device),
        slot_of_column=table([number for number, slot in enumerate(slots) for _ in range(slot.width)]),
        slot_of_buffer=table([number for number, slot in enumerate(slots) for _ in range(slot.buffer_width)]),
        augment=augment,
    )


def _slots(config: Config, host: Host, blueprints: tuple[Blueprint, ...], device: torch.device) -> tuple[Slot, ...]:
    gated, slots = any(BLENDS[blend].gated for blend in config.blends), list[Slot]()
    starts = [0, 0]
    for number, written in enumerate(config.slots):
        source, target = find_points(host, number, written)
        sites = list(host.points.values())
        order = list(host.points)
        reads, acts = sites[order.index(source)], sites[order.index(target)]
        fitting = [blueprint.suits(reads, acts, source != target) for blueprint in blueprints]
        if not any(fitting):
            found = f"a {reads.kind!r} site" if source == target else f"{reads.kind!r} to {acts.kind!r}"
            raise ConfigError(f"config.slots[{number}]: no blueprint fits {found}; have {_names(blueprints)}")
        layouts = tuple(b.layout(reads, acts) if fits else None for b, fits in zip(blueprints, fitting, strict=True))
        buffers = tuple(
            b.buffer_layout(reads, acts) if fits else None for b, fits in zip(blueprints, fitting, strict=True)
        )
        if gated and not gate.can_weigh(reads, acts):
            raise ConfigError(
                f"config.slots[{number}] = {written!r}: no gate can weigh {acts.kind!r} by {reads.kind!r}; expected "
                "blends without a gate"
            )
        opening = gate.layout(reads) if gated else Layout(())
        width = max(layout.size for layout in layouts if layout) + opening.size
        buffer_width = max(layout.size for layout in buffers if layout is not None)
        shrinks = tuple(_decays(layout, opening, width).to(device) for layout in layouts)
        where = (_number(host, source), _number(host, target), reads, acts)
        slots.append(Slot(*where, layouts, buffers, opening, shrinks, starts[0], width, starts[1], buffer_width))
        starts = [starts[0] + width, starts[1] + buffer_width]
    return tuple(slots)


def _decays(layout: Layout | None, opening: Layout, width: int) -> Tensor:
    own = decays(layout or Layout(()))
    return torch.cat((own, own.new_zeros(width - own.shape[0] - opening.size), decays(opening)))


def _names(blueprints: tuple[Blueprint, ...]) -> tuple[str, ...]:
    return tuple(blueprint.name for blueprint in blueprints)


def _number(host: Host, point: str) -> int:
    fixed = {"input": 0, "logits": len(host.blocks)}
    return fixed[point] if point in fixed else int(point.removeprefix("block")) + 1


def find_points(host: Host, number: int, written: int | str) -> tuple[str, str]:
    """Source and target of a slot: a block's number, or two points such as ``input:logits``.

    Raises:
      ConfigError: no such point, or a source behind its target.
    """
    place = f"config.slots[{number}] = {written!r}"
    points = list(host.points)
    if isinstance(written, int):
        if f"block{written}" not in points:
            raise ConfigError(f"{place}: {host.name} has sites after {list(host.sites)} only")
        return f"block{written}", f"block{written}"
    source, colon, target = written.partition(":")
    target = target if colon else source
    for point in (source, target):
        if point not in points:
            raise ConfigError(f"{place}: {host.name} has no point {point!r}; expected {', '.join(points)}")
    if points.index(source) > points.index(target):
        raise ConfigError(f"{place}: the source lies behind the target; expected it before")
    return source, target


def _action_sizes(codec: Codec, rows: list[list[int]], slots: tuple[Slot, ...]) -> list[int]:
    return [
        rows[a.slot][a.blueprint] + (slots[a.slot].gate.size if BLENDS[Blend(a.blend)].gated else 0)
        if a.blueprint != NONE
        else 0
        for a in codec.actions
    ]


def is_gated(blend: Tensor) -> Tensor:
    """Elementwise: does this blend have a learned gate? int64 [...] -> bool [...]."""
    gated = torch.zeros_like(blend, dtype=torch.bool)
    for each, rule in BLENDS.items():
        if rule.gated:
            gated = gated | (blend == int(each))
    return gated


def seed_sizes(structure: Structure, slots: Slots) -> Tensor:
    """Parameters each slot's seed adds, its gate included; 0 where empty. int64 [E, S]."""
    held = slots.blueprint != NONE
    if holds_nowhere(held):
        return torch.zeros_like(slots.blueprint)
    rows = torch.arange(structure.config.num_slots, device=slots.stage.device)
    size = structure.sizes[rows, slots.blueprint.clamp(min=0)]
    size = size + torch.where(is_gated(slots.blend), structure.gate_sizes, 0)
    return torch.where(held, size, 0)
