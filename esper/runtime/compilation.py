"""Compilation: the one place where torch.compile is called.

The units of a network are compiled one by one: small graphs start fast, are shared by every environment step, and a
unit nobody uses is never compiled. Between them runs ordinary autograd. The number of rows of a unit is symbolic
where it varies from step to step, so no plan recompiles anything.
"""

import logging
import os
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from esper.kasmina.network import Network, Units
from esper.leyline.config import ConfigError

CompileMode = Literal["auto"] | bool

logger = logging.getLogger("esper")

COMPILERS = ("c++", "g++", "clang++", "cl")
"""Programs one of which Inductor needs on a CPU; the environment variable CXX names another."""


def resolve_compile(mode: CompileMode, device: torch.device) -> bool:
    """Decide whether to compile.

    Args:
      mode: True, False, or "auto": wherever it can work, else eagerly with one log line.
      device: where the network runs.

    Raises:
      ConfigError: True, but there is no C++ compiler; or a value that is none of the three.
    """
    if mode not in (True, False, "auto"):
        raise ConfigError(f"compile = {mode!r}: expected True, False or 'auto'")
    if mode is False:
        return False
    compilers = (os.environ.get("CXX", ""), *COMPILERS)
    found = device.type != "cpu" or any(name and shutil.which(name) for name in compilers)
    if not found and mode is True:
        raise ConfigError(f"compile = True: Inductor needs a C++ compiler on a CPU; looked for CXX, {COMPILERS}")
    if not found:
        logger.warning("esper runs eagerly: torch.compile needs a C++ compiler on a CPU and none was found")
    return found


def compile_units(network: Network) -> Network:
    """The same network with compiled units; the results agree to rounding.

    Compiled code is kept in ``~/.cache/esper`` (or ``TORCHINDUCTOR_CACHE_DIR``), so that a second start is warm.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "esper" / "inductor"))
    units = network.units
    compiled = Units(
        train=tuple(_compile(unit, symbolic_rows=False) for unit in units.train),
        infer=tuple(_compile(unit, symbolic_rows=True) for unit in units.infer),
        seeds=tuple(tuple(_compile(u, symbolic_rows=True) if u else None for u in row) for row in units.seeds),
        gates=tuple(_compile(unit, symbolic_rows=True) for unit in units.gates),
    )
    return network._replace(units=compiled)


def _compile(unit: Callable[..., Any], symbolic_rows: bool) -> Callable[..., Any]:
    compiled = torch.compile(
        _with_own_code(unit), fullgraph=True, dynamic=False, options={"layout_optimization": False}
    )
    return _with_symbolic_rows(compiled) if symbolic_rows else compiled


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy with a code object of its own: dynamo keeps its compiled versions, and their limit, per code object."""
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return copy


def _with_symbolic_rows(compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark dimension 0 of every argument as varying. A single row is doubled and its copy dropped, because
    torch.compile specialises on sizes 0 and 1.
    """

    def call(*arguments: Tensor) -> Tensor:
        if arguments[0].shape[0] == 1:
            return call(*(argument.expand(2, *argument.shape[1:]) for argument in arguments))[:1]
        for argument in arguments:
            torch._dynamo.mark_dynamic(argument, 0)
        return compiled(*arguments)

    return call
