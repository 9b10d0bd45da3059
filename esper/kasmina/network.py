"""The network: the static structure of a host with slots, bound once at build time.

Everything a shape or an offset can be derived from is here; what evolves is ``State``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from esper.kasmina import gate
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host import Host, check_ties
from esper.kasmina.layout import Layout
from esper.kasmina.site import Site
from esper.leyline.actions import BLENDS, NONE, Blend, Codec, build_codec
from esper.leyline.config import Config, ConfigError
from esper.leyline.state import Slots

if TYPE_CHECKING:
    from esper.kasmina.plan import SlotPlan
    from esper.kasmina.whole import Whole

TrainUnit = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
InferUnit = Callable[[Tensor, Tensor, Tensor], Tensor]
SeedUnit = Callable[[Tensor, Tensor], Tensor]
SlotUnit = Callable[["SlotPlan", Tensor, Tensor, Tensor], Tensor]


class Units(NamedTuple):
    """The arithmetic of a network as functions of plain tensors, ready to be compiled one by one.

    Slots at equal sites share their units.

    Attributes:
      train: per host stage, (flat params, flat buffers, x) -> (y, flat buffers).
      infer: per host stage, (flat params, flat buffers, x) -> y.
      seeds: per slot, per blueprint (None where it does not fit), (flat params, x) -> y.
      gates: per slot, (flat params, x) -> weight [n, B], or [n, B, T] where the site has an axis of time.
      slots: per slot, (plan, rows of params [n, W], weight, features) -> features: all blueprints and the blend in one
        call. None: ``seeds`` one by one.
      whole: everything as one chain of programs. None: unit by unit.
    """

    train: tuple[TrainUnit, ...]
    infer: tuple[InferUnit, ...]
    seeds: tuple[tuple[SeedUnit | None, ...], ...]
    gates: tuple[SeedUnit, ...]
    slots: tuple[SlotUnit | None, ...]
    whole: "Whole | None"


class Network(NamedTuple):
    """Structure of a host with its slots.

    Attributes:
      config: the run's structure.
      host: the network that learns the task.
      blueprints: K kinds of seed; position = number.
      sites: per slot, what it sees.
      layouts: per slot, per blueprint, its row (None where it does not fit).
      gates: per slot, the row of its learned gate (empty if no gated blend is on offer).
      widths: per slot, length of its part of the seed arena: the widest blueprint, then the gate.
      codec: all actions.
      sizes: int64 [S, K]; parameters of each blueprint at each slot.
      gate_sizes: int64 [S]; parameters of each slot's gate.
      action_sizes: int64 [A]; parameters of the seed that each action places, 0 where it places none.
      units: the arithmetic.
    """

    config: Config
    host: Host
    blueprints: tuple[Blueprint, ...]
    sites: tuple[Site, ...]
    layouts: tuple[tuple[Layout | None, ...], ...]
    gates: tuple[Layout, ...]
    widths: tuple[int, ...]
    codec: Codec
    sizes: Tensor
    gate_sizes: Tensor
    action_sizes: Tensor
    units: Units

    @property
    def num_seed_params(self) -> int:
        """Length Q of the seed arena."""
        return sum(self.widths)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Per slot, where its part of the arena begins."""
        return tuple(sum(self.widths[:slot]) for slot in range(len(self.widths)))

    def slots_after(self, stage: int) -> tuple[int, ...]:
        """Slots that sit after a host stage, in order."""
        return tuple(slot for slot, at in enumerate(self.config.slots) if at == stage)

    def gate_offset(self, slot: int) -> int:
        """Where the gate of a slot begins in the arena."""
        return self.offsets[slot] + self.widths[slot] - self.gates[slot].size


def build_network(config: Config, host: Host, blueprints: tuple[Blueprint, ...], device: torch.device) -> Network:
    """Bind host, slots and blueprints.

    Raises:
      ConfigError: a tie to nothing, a slot after a stage without a site, two blueprints of one name, or a site that
        no blueprint fits.
    """
    check_ties(host)
    names = tuple(blueprint.name for blueprint in blueprints)
    if len(set(names)) != len(names):
        raise ConfigError(f"blueprints {list(names)}: expected distinct names")
    for slot, stage in enumerate(config.slots):
        if stage not in host.sites:
            raise ConfigError(f"config.slots[{slot}] = {stage}: {host.name} has sites after {list(host.sites)} only")
    sites = tuple(host.sites[stage] for stage in config.slots)
    layouts = tuple(tuple(b.layout(site) if site.kind in b.kinds else None for b in blueprints) for site in sites)
    for slot, row in enumerate(layouts):
        if not any(row):
            raise ConfigError(f"config.slots[{slot}]: no blueprint fits a {sites[slot].kind!r} site; have {names}")
    gated = any(BLENDS[blend].gated for blend in config.blends)
    gates = tuple(gate.layout(site) if gated else Layout(()) for site in sites)
    widths = tuple(max(layout.size for layout in row if layout) + g.size for row, g in zip(layouts, gates, strict=True))
    offers = tuple(tuple(k for k, layout in enumerate(row) if layout) for row in layouts)
    codec = build_codec(offers, config.blends, names)
    codec = codec._replace(**{f: getattr(codec, f).to(device) for f in ("op", "slot", "blueprint", "blend")})
    rows = [[layout.size if layout else 0 for layout in row] for row in layouts]
    sizes = torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(sites), len(blueprints))
    gate_sizes = torch.tensor([g.size for g in gates], dtype=torch.int64, device=device)
    return Network(
        config=config,
        host=host,
        blueprints=blueprints,
        sites=sites,
        layouts=layouts,
        gates=gates,
        widths=widths,
        codec=codec,
        sizes=sizes,
        gate_sizes=gate_sizes,
        action_sizes=_action_sizes(codec, rows, gates, device),
        units=_units(host, sites, blueprints, layouts),
    )


def _action_sizes(codec: Codec, rows: list[list[int]], gates: tuple[Layout, ...], device: torch.device) -> Tensor:
    sizes = [
        rows[a.slot][a.blueprint] + (gates[a.slot].size if BLENDS[Blend(a.blend)].gated else 0)
        if a.blueprint != NONE
        else 0
        for a in codec.actions
    ]
    return torch.tensor(sizes, dtype=torch.int64, device=device)


def _units(
    host: Host,
    sites: tuple[Site, ...],
    blueprints: tuple[Blueprint, ...],
    layouts: tuple[tuple[Layout | None, ...], ...],
) -> Units:
    """Functions of flat rows: each splits its row into named views and calls the named form."""

    def train(index: int) -> TrainUnit:
        stage = host.stages[index]
        layout, buffer_layout = stage.reads, stage.buffer_layout

        def unit(params: Tensor, buffers: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            y, new = stage.train(layout.views(params), buffer_layout.views(buffers), x)
            flat = [new[p.name].flatten(1) for p in buffer_layout.params]
            return y, torch.cat(flat, dim=1) if flat else buffers

        return unit

    def infer(index: int) -> InferUnit:
        stage = host.stages[index]
        layout, buffer_layout = stage.reads, stage.buffer_layout
        return lambda params, buffers, x: stage.infer(layout.views(params), buffer_layout.views(buffers), x)

    def seed(blueprint: Blueprint, layout: Layout) -> SeedUnit:
        return lambda params, x: blueprint.apply(layout.views(params), x)

    distinct = dict(zip(sites, layouts, strict=True))
    seeds = {
        site: tuple(seed(b, layout) if layout else None for b, layout in zip(blueprints, row, strict=True))
        for site, row in distinct.items()
    }
    gates = {site: gate.unit(site) for site in distinct}
    stages = range(len(host.stages))
    return Units(
        train=tuple(train(i) for i in stages),
        infer=tuple(infer(i) for i in stages),
        seeds=tuple(seeds[site] for site in sites),
        gates=tuple(gates[site] for site in sites),
        slots=(None,) * len(sites),
        whole=None,
    )


def is_gated(blend: Tensor) -> Tensor:
    """Elementwise: does this blend have a learned gate? int64 [...] -> bool [...]."""
    gated = torch.zeros_like(blend, dtype=torch.bool)
    for each, rule in BLENDS.items():
        if rule.gated:
            gated = gated | (blend == int(each))
    return gated


def seed_sizes(network: Network, slots: Slots) -> Tensor:
    """Parameters each slot's seed adds, its gate included; 0 where empty. int64 [E, S]."""
    rows = torch.arange(network.config.num_slots, device=slots.stage.device)
    size = network.sizes[rows, slots.blueprint.clamp(min=0)]
    size = size + torch.where(is_gated(slots.blend), network.gate_sizes, 0)
    return torch.where(slots.blueprint == NONE, 0, size)
