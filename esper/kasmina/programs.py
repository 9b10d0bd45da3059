"""A network whose units are programs: which of them can be, and how their tensors become the kernel's.

A unit that cannot be written down stays as it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.kasmina import gate
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host import HostStage
from esper.kasmina.layers import RUNNING_MOMENTUM
from esper.kasmina.layout import Layout
from esper.kasmina.network import InferUnit, Network, SeedUnit, SlotUnit, TrainUnit
from esper.kasmina.plan import SlotPlan
from esper.kasmina.site import Site
from esper.kasmina.tracing import NotTraceable, Shape, Trace, trace
from esper.kernels.program import Program, Rows, library, run


class Written(NamedTuple):
    """A module as a program."""

    program: Program
    trace: Trace


def can_run(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether programs run there: in float32 on a CPU, if the kernel is built."""
    return dtype == torch.float32 and device.type == "cpu" and library() is not None


def write(function: Callable[..., Any], shape: Shape, layout: Layout, buffers: Layout | None = None) -> Written | None:
    """The program of a module, or None if it cannot be written down; arguments as ``tracing.trace``."""
    try:
        traced = trace(function, shape, layout, buffers)
    except NotTraceable:
        return None
    return Written(Program(traced.code), traced)


def stage_units(stage: HostStage, shape: Shape) -> tuple[TrainUnit, InferUnit, Shape] | None:
    """Units of a host stage, and the shape of what it gives; None if either form cannot be written down."""
    layouts = (stage.reads, stage.buffer_layout)
    train, infer = write(stage.train, shape, *layouts), write(stage.infer, shape, *layouts)
    if train is None or infer is None:
        return None
    return _train_unit(train, stage.buffer_layout.size), _infer_unit(infer), train.trace.shape


def _apply(written: Written, params: Tensor, buffers: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    rows = Rows((written.program,), (params.shape[0],))
    y, aux = run(rows, _as_maps(x), params, buffers)
    return y.reshape(*x.shape[:2], *written.trace.shape), aux


def _as_maps(x: Tensor) -> Tensor:
    return x if x.dim() == 5 else x.reshape(*x.shape, *(1,) * (5 - x.dim()))


def _train_unit(written: Written, num_buffers: int) -> TrainUnit:
    tracked = written.trace.tracked
    in_order = tracked == tuple(range(num_buffers))

    def unit(params: Tensor, buffers: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y, aux = _apply(written, params, buffers, x)
        if not tracked:
            return y, buffers
        return y, torch.lerp(buffers, aux if in_order else aux[:, list(tracked)], RUNNING_MOMENTUM)

    return unit


def _infer_unit(written: Written) -> InferUnit:
    return lambda params, buffers, x: _apply(written, params, buffers, x)[0]


def seed_unit(blueprint: Blueprint, site: Site) -> tuple[SeedUnit, Program] | None:
    """Unit of a blueprint at a site, and its program."""
    return _module_unit(blueprint.apply, site, blueprint.layout(site))


def gate_unit(site: Site) -> SeedUnit | None:
    """Unit of the gate at a site."""
    found = _module_unit(gate.opening(site), site, gate.layout(site))
    return found[0] if found else None


def _module_unit(apply: Callable[..., Any], site: Site, layout: Layout) -> tuple[SeedUnit, Program] | None:
    written = write(apply, site.shape, layout)
    if written is None:
        return None

    def unit(params: Tensor, x: Tensor) -> Tensor:
        return _apply(written, params, None, x)[0]

    return unit, written.program


def slot_unit(programs: dict[int, Program]) -> SlotUnit:
    """All blueprints of a slot and the blend in one call; ``programs`` by blueprint."""

    def unit(plan: SlotPlan, params: Tensor, weight: Tensor, h: Tensor) -> Tensor:
        rows = Rows(
            programs=tuple(programs[group.blueprint] for group in plan.groups),
            counts=tuple(group.rows.shape[0] for group in plan.groups),
            lanes=plan.lanes,
            training=plan.training,
            isolated=plan.isolated,
        )
        y, _ = run(rows, _as_maps(h), params, weight=weight.expand(-1, h.shape[1]))
        return y.reshape(h.shape)

    return unit


def with_programs(network: Network) -> Network:
    """The same network, every unit that can be written down as a program."""
    units, host = network.units, network.host
    train, infer = list(units.train), list(units.infer)
    shape: Shape | None = host.input_shape
    for index, stage in enumerate(host.stages):
        found = stage_units(stage, shape) if shape else None
        if found:
            train[index], infer[index], shape = found
        else:
            shape = stage.site.shape if stage.site else None
    written = {site: _site_units(network, slot) for slot, site in enumerate(network.sites)}
    gates = {site: gate_unit(site) for site in network.sites}
    return network._replace(
        units=units._replace(
            train=tuple(train),
            infer=tuple(infer),
            seeds=tuple(written[site][0] for site in network.sites),
            gates=tuple(gates[site] or unit for site, unit in zip(network.sites, units.gates, strict=True)),
            slots=tuple(written[site][1] for site in network.sites),
        )
    )


def _site_units(network: Network, slot: int) -> tuple[tuple[SeedUnit | None, ...], SlotUnit | None]:
    """Units of the blueprints at a slot's site, and of the slot if all of them are programs."""
    units, programs = list(network.units.seeds[slot]), {}
    for kind, blueprint in enumerate(network.blueprints):
        found = seed_unit(blueprint, network.sites[slot]) if units[kind] else None
        if found:
            units[kind], programs[kind] = found
    complete = len(programs) == sum(unit is not None for unit in units)
    return tuple(units), slot_unit(programs) if complete else None
