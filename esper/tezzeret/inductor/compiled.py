"""The one place where torch.compile is called."""

import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from esper.tezzeret.backend import BackendError
from esper.tezzeret.compiler import COMPILERS, find_compiler
from esper.utils.torch_private import without_duck_shapes

STANDING = (
    "CONSTANT_MATCH",
    "EQUALS_MATCH",
    "CLOSURE_MATCH",
    "BUILTIN_MATCH",
    "MODULE_MATCH",
    "CLASS_MATCH",
    "TYPE_MATCH",
)
"""Kinds of guards on what a function refers to, other than its arguments."""


def require_compiler(device: torch.device) -> None:
    """Check that compiled code can be built, and say where it is kept.

    Raises:
      BackendError: Inductor needs a C++ compiler on a CPU and there is none.
    """
    if device.type == "cpu" and find_compiler() is None:
        raise BackendError(f"backend 'inductor': no C++ compiler; looked for CXX, {', '.join(COMPILERS)}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "esper" / "inductor"))


def compiled(function: Callable[..., Any], compiler: str = "inductor") -> Callable[..., Any]:
    """Compile a function of plain tensors, whole. What it closes over never changes, so only tensors are guarded.

    Every function has a code object of its own: dynamo keeps its compiled versions, and the limit on their number, per
    code object. Sizes that happen to be equal when it is compiled are not taken to be equal for ever.

    Args:
      function: pure.
      compiler: backend of torch.compile; tests may take one that starts sooner.
    """

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    own = types.FunctionType(call.__code__.replace(), call.__globals__, "compiled", None, call.__closure__)
    options: dict[str, Any] = {"guard_filter_fn": _guards_on_tensors, "layout_optimization": False}
    how = {"options": options} if compiler == "inductor" else {"backend": compiler}
    run = torch.compile(own, fullgraph=True, dynamic=False, **how)

    def start(*arguments: Any) -> Any:
        with without_duck_shapes():
            return run(*arguments)

    return start


def _guards_on_tensors(guards: Any) -> list[bool]:
    """Keep the guards that a call can fail: those on tensors, sizes and torch's modes."""
    return [guard.guard_type not in STANDING and "__import_" not in guard.name for guard in guards]
