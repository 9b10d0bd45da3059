"""A network whose units are programs: which of them can be, and how their tensors become the kernel's.

A unit that cannot be written down stays as it is.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.kasmina import gate
from esper.kasmina.host import Host, HostStage
from esper.kasmina.layers import RUNNING_MOMENTUM
from esper.kasmina.layout import Layout
from esper.kasmina.network import InferUnit, Network, SeedUnit, SlotUnit, TrainUnit, Units
from esper.kasmina.plan import SlotPlan
from esper.kasmina.tracing import NotTraceable, Shape, Trace, trace
from esper.kasmina.whole import Whole
from esper.kernels import chain, optimizer, program
from esper.kernels.chain import Chain, Link, SlotPrograms
from esper.kernels.program import Program, Rows, run

logger = logging.getLogger("esper")


class Written(NamedTuple):
    """A module as a program."""

    program: Program
    trace: Trace


def can_run(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether programs run there: in float32 on a CPU, if the kernels are built."""
    if dtype != torch.float32 or device.type != "cpu":
        return False
    return all(kernel.library() is not None for kernel in (program, chain, optimizer))


def write(function: Callable[..., Any], shape: Shape, layout: Layout, buffers: Layout | None = None) -> Written | None:
    """The program of a module, or None if it cannot be written down; arguments as ``tracing.trace``."""
    try:
        traced = trace(function, shape, layout, buffers)
    except NotTraceable as reason:
        logger.debug("esper: %s is no program: %s", function, reason)
        return None
    return Written(Program(traced.code), traced)


class Stage(NamedTuple):
    """A host stage in both forms."""

    train: Written
    infer: Written


def write_stage(stage: HostStage, shape: Shape) -> Stage | None:
    """A host stage whose input has this shape; None if either form cannot be written down."""
    layouts = (stage.reads, stage.buffer_layout)
    train, infer = write(stage.train, shape, *layouts), write(stage.infer, shape, *layouts)
    return Stage(train, infer) if train and infer else None


def write_stages(host: Host) -> tuple[Stage | None, ...]:
    """All stages; after one that cannot be written down the next begins at the site in between."""
    stages, shape = [], host.input_shape
    for stage in host.stages:
        found = write_stage(stage, shape) if shape else None
        shape = found.train.trace.shape if found else stage.site.shape if stage.site else ()
        stages.append(found)
    return tuple(stages)


def _apply(written: Written, params: Tensor, buffers: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    rows = Rows((written.program,), (params.shape[0],))
    y, aux = run(rows, _as_maps(x), params, buffers)
    return y.reshape(*x.shape[:2], *written.trace.shape), aux


def _as_maps(x: Tensor) -> Tensor:
    return x if x.dim() == 5 else x.reshape(*x.shape, *(1,) * (5 - x.dim()))


def train_unit(written: Written) -> TrainUnit:
    """Training form of a stage."""
    tracked = list(written.trace.tracked)

    def unit(params: Tensor, buffers: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y, aux = _apply(written, params, buffers, x)
        return y, torch.lerp(buffers, aux[:, tracked], RUNNING_MOMENTUM) if tracked else buffers

    return unit


def infer_unit(written: Written) -> InferUnit:
    """Inference form of a stage."""
    return lambda params, buffers, x: _apply(written, params, buffers, x)[0]


def module_unit(written: Written) -> SeedUnit:
    """A seed or a gate."""
    return lambda params, x: _apply(written, params, None, x)[0]


def slot_unit(programs: Sequence[Program | None]) -> SlotUnit:
    """All blueprints of a slot and the blend in one call; ``programs`` by blueprint."""

    def unit(plan: SlotPlan, params: Tensor, weight: Tensor, h: Tensor) -> Tensor:
        chosen = (programs[group.blueprint] for group in plan.groups)
        rows = Rows(
            programs=tuple(program for program in chosen if program),
            counts=tuple(group.rows.shape[0] for group in plan.groups),
            lanes=plan.lanes,
            training=plan.training,
            isolated=plan.isolated,
        )
        y, _ = run(rows, _as_maps(h), params, weight=weight.expand(-1, h.shape[1]))
        return y.reshape(h.shape)

    return unit


class Slot(NamedTuple):
    """What can sit at a site."""

    seeds: tuple[Written | None, ...]  # per blueprint; None where it does not fit or cannot be written down
    gate: Written | None  # None if there is none or it cannot be written down
    complete: bool  # whether all that fits is written down, each sample on its own

    @property
    def programs(self) -> tuple[Program | None, ...]:
        """Programs by blueprint."""
        return tuple(seed.program if seed else None for seed in self.seeds)


def write_slot(network: Network, slot: int) -> Slot:
    """Everything that fits a slot."""
    site, layouts, gates = network.sites[slot], network.layouts[slot], network.gates[slot]
    seeds = tuple(
        write(blueprint.apply, site.shape, layout) if layout else None
        for blueprint, layout in zip(network.blueprints, layouts, strict=True)
    )
    opening = write(gate.opening(site), site.shape, gates) if gates.size else None
    complete = all(
        seed and not seed.program.joins_samples for seed, layout in zip(seeds, layouts, strict=True) if layout
    )
    return Slot(seeds, opening, complete and (opening is not None or not gates.size))


def with_programs(network: Network) -> Network:
    """The same network, every unit that can be written down as a program, and all of them as a chain if they can."""
    units, stages = network.units, write_stages(network.host)
    sites = {site: write_slot(network, slot) for slot, site in enumerate(network.sites)}
    slots = tuple(sites[site] for site in network.sites)

    def seeds(slot: int) -> tuple[SeedUnit | None, ...]:
        return tuple(module_unit(w) if w else u for w, u in zip(slots[slot].seeds, units.seeds[slot], strict=True))

    fast = Units(
        train=tuple(train_unit(s.train) if s else u for s, u in zip(stages, units.train, strict=True)),
        infer=tuple(infer_unit(s.infer) if s else u for s, u in zip(stages, units.infer, strict=True)),
        seeds=tuple(seeds(slot) for slot in range(len(slots))),
        gates=tuple(module_unit(s.gate) if s.gate else u for s, u in zip(slots, units.gates, strict=True)),
        slots=tuple(slot_unit(slot.programs) if slot.complete else None for slot in slots),
        whole=_whole(network, stages, slots),
    )
    return network._replace(units=fast)


def _whole(network: Network, stages: tuple[Stage | None, ...], slots: tuple[Slot, ...]) -> Whole | None:
    written = [stage for stage in stages if stage]
    tied = any(stage.ties for stage in network.host.stages)
    joined = any(stage.infer.program.joins_samples for stage in written)
    if len(written) < len(stages) or tied or joined or not all(slot.complete for slot in slots):
        return None
    train = _chain(network, [stage.train for stage in written], slots)
    tracked = tuple(
        tuple(link.aux + place for place in stage.train.trace.tracked)
        for link, stage in zip(train.stages, written, strict=True)
    )
    return Whole(train, _chain(network, [stage.infer for stage in written], slots), tracked)


def _chain(network: Network, stages: Sequence[Written], slots: Sequence[Slot]) -> Chain:
    links, params, buffers, aux = [], 0, 0, 0
    for stage, host_stage in zip(stages, network.host.stages, strict=True):
        links.append(Link(stage.program, params, buffers, aux))
        params, buffers = params + host_stage.layout.size, buffers + host_stage.buffer_layout.size
        aux += stage.program.num_aux
    route = [step for i in range(len(links)) for step in (i, *(-1 - slot for slot in network.slots_after(i)))]
    rows = tuple(SlotPrograms(slot.programs, slot.gate.program if slot.gate else None) for slot in slots)
    return Chain(tuple(links), rows, tuple(route), aux)
