"""Compilation: the one place where a network gets its fast units, and where torch.compile is called.

Where programs run (``esper.kasmina.programs``), whatever can be written down as one is; the rest is compiled. The units
of a network are compiled one by one: small graphs start fast, are shared by every environment step, and a
unit nobody uses is never compiled. Between them runs ordinary autograd. The number of rows of a unit is symbolic
where it varies from step to step, so no plan recompiles anything.
"""

import logging
import os
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from esper.kasmina.network import InferUnit, Network, SeedUnit, TrainUnit, Units
from esper.kasmina.programs import can_run, with_programs
from esper.kernels.convolution import prefers_networks_outermost
from esper.kernels.native import COMPILERS, check_isa, find_compiler
from esper.leyline.config import ConfigError, SampleOrder
from esper.tolaria.data import Dataset

CompileMode = Literal["auto"] | bool

logger = logging.getLogger("esper")


def resolve_compile(mode: CompileMode, device: torch.device) -> bool:
    """Decide whether to compile.

    Args:
      mode: True, False, or "auto": wherever it can work, else eagerly with one log line.
      device: where the network runs.

    Raises:
      ConfigError: True, but there is no C++ compiler; a value that is none of the three; or ``ESPER_ISA`` names an
        instruction set that this machine lacks.
    """
    if mode not in (True, False, "auto"):
        raise ConfigError(f"compile = {mode!r}: expected True, False or 'auto'")
    try:
        check_isa()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if mode is False:
        return False
    found = device.type != "cpu" or find_compiler() is not None
    if not found and mode is True:
        raise ConfigError(f"compile = True: Inductor needs a C++ compiler on a CPU; looked for CXX, {COMPILERS}")
    if not found:
        logger.warning("esper runs eagerly: torch.compile needs a C++ compiler on a CPU and none was found")
    return found


def compile_units(network: Network, device: torch.device) -> Network:
    """The same network with fast units: programs where they can run, compiled code elsewhere.

    The results agree to rounding. Compiled code is kept in ``~/.cache/esper`` (or ``TORCHINDUCTOR_CACHE_DIR``), so that
    a second start is warm.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "esper" / "inductor"))
    plain = network.units
    runs_programs = can_run(network.config.precision.dtype, device)
    fast = with_programs(network).units if runs_programs else plain

    def choose(old: tuple[Any, ...], new: tuple[Any, ...], compiled: Callable[[Any], Any]) -> tuple[Any, ...]:
        chosen = {unit: compiled(unit) for unit in old if unit}
        return tuple(fast if fast is not unit else chosen.get(unit) for unit, fast in zip(old, new, strict=True))

    seeds = {unit: _seed_unit(unit) for row in plain.seeds for unit in row if unit}
    units = Units(
        train=choose(plain.train, fast.train, _train_unit),
        infer=choose(plain.infer, fast.infer, _infer_unit),
        seeds=tuple(choose(*rows, lambda unit: seeds[unit]) for rows in zip(plain.seeds, fast.seeds, strict=True)),
        gates=choose(plain.gates, fast.gates, _seed_unit),
        slots=fast.slots,
        whole=fast.whole,
    )
    return network._replace(units=units)


def warm_up(network: Network, data: Dataset) -> None:
    """Compile every unit in every form a step can ask for, so that no later step compiles anything.

    Args:
      network: with compiled units.
      data: the task; sizes only.
    """
    config = network.config
    dtype, device = config.precision.dtype, data.train_inputs.device
    val_sizes = {part.shape[0] for part in data.val_targets.split(config.eval_batch_size)}

    def rows(count: int, *shape: int) -> Tensor:
        return torch.ones(count, *shape, dtype=dtype, device=device)

    def inputs(count: int, samples: int) -> Tensor:
        return torch.ones(count, samples, *data.input_shape, dtype=data.train_inputs.dtype, device=device)

    h = inputs(config.num_envs, config.batch_size)
    h = h[0].expand_as(h) if config.sample_order is SampleOrder.SHARED else h
    for stage, train in zip(network.host.stages, network.units.train, strict=True):
        params = rows(config.num_envs, stage.reads.size).requires_grad_()
        h, _ = train(params, rows(config.num_envs, stage.buffer_layout.size), h)
    h.sum().backward()
    seeds = {
        unit: (layout, site)
        for site, row, units in zip(network.sites, network.layouts, network.units.seeds, strict=True)
        for unit, layout in zip(units, row, strict=True)
        if unit is not None and layout is not None
    }
    seeds |= {u: (g, s) for u, g, s in zip(network.units.gates, network.gates, network.sites, strict=True) if g.size}
    for unit, (layout, site) in seeds.items():
        x = rows(3, config.batch_size, *site.shape).requires_grad_()
        unit(rows(3, layout.size).requires_grad_(), x).sum().backward()
    with torch.no_grad():
        for size in val_sizes:
            h = inputs(3, size)
            for stage, infer in zip(network.host.stages, network.units.infer, strict=True):
                h = infer(rows(3, stage.reads.size), rows(3, stage.buffer_layout.size), h)
            for unit, (layout, site) in seeds.items():
                unit(rows(3, layout.size), rows(3, size, *site.shape))


def _compile(unit: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a copy with a code object of its own: dynamo keeps its compiled versions, and the limit on their
    number, per code object.
    """
    assert isinstance(unit, types.FunctionType)
    code = unit.__code__.replace()
    own = types.FunctionType(code, unit.__globals__, unit.__name__, unit.__defaults__, unit.__closure__)
    options: dict[str, Any] = {"layout_optimization": False, "guard_filter_fn": _guards_on_tensors}
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)


STANDING = (
    "CONSTANT_MATCH",
    "EQUALS_MATCH",
    "CLOSURE_MATCH",
    "BUILTIN_MATCH",
    "MODULE_MATCH",
    "CLASS_MATCH",
    "TYPE_MATCH",
)
"""Kinds of guards on what a unit refers to, other than its arguments."""


def _guards_on_tensors(guards: Sequence[Any]) -> list[bool]:
    """Keep the guards that a call can fail: those on tensors, sizes and torch's modes.

    A unit is a pure function of its tensors; the functions, layouts and constants that it closes over never change.
    Checking them at every call took a third of the time between two kernels.
    """
    return [guard.guard_type not in STANDING and "__import_" not in guard.name for guard in guards]


def _train_unit(unit: TrainUnit) -> TrainUnit:
    """A host stage in training form: every size is fixed."""
    compiled = _compile(unit)
    return lambda params, buffers, x: compiled(_packed(params), _packed(buffers), _as_convolutions_want(x))


def _infer_unit(unit: InferUnit) -> InferUnit:
    """A host stage in inference form: the number of lanes varies."""
    compiled = _with_symbolic_rows(_compile(unit))
    return lambda params, buffers, x: compiled(_packed(params), _packed(buffers), x.contiguous())


def _seed_unit(unit: SeedUnit) -> SeedUnit:
    """A seed or a gate: the number of rows varies."""
    compiled = _with_symbolic_rows(_compile(unit))
    return lambda params, x: compiled(_packed(params), x.contiguous())


def _packed(rows: Tensor) -> Tensor:
    """Rows without gaps, with the same strides every time (an empty view keeps those of what it was cut from)."""
    return rows.contiguous() if rows.numel() else rows.new_empty(rows.shape)


def _as_convolutions_want(x: Tensor) -> Tensor:
    """The same tensor [n, B, ...], laid out with B or n outermost as convolutions produce and consume it.

    Compiled code is specialised on strides; one layout per unit keeps it to one version. Where the rows vary the
    layout is always n outermost: such a view would drag the symbolic sizes of its base into the guards. A shared
    minibatch stays expanded.
    """
    if x.stride(0) == 0:
        return x
    if prefers_networks_outermost(x):
        return x.contiguous()
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def _with_symbolic_rows(compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark dimension 0 of every argument as varying. A single row is doubled and its copy dropped, because
    torch.compile specialises on sizes 0 and 1.
    """

    def call(*arguments: Tensor) -> Tensor:
        if arguments[0].shape[0] == 1:
            return call(*(torch.cat((argument, argument)) for argument in arguments))[:1]
        for argument in arguments:
            torch._dynamo.mark_dynamic(argument, 0)
        return compiled(*arguments)

    return call
