"""The one place where torch.compile is called."""

import contextlib
import functools
import os
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from esper.tezzeret.backend import BackendError
from esper.tezzeret.compiler import COMPILERS, find_compiler, program_of, service
from esper.tezzeret.inductor import store
from esper.tezzeret.inductor.kept import Kept
from esper.tezzeret.inductor.signature import signature_of
from esper.utils.compilations import LEDGER, compiling, count_compiled
from esper.utils.inductor_private import can_keep_code
from esper.utils.paths import cache_folder
from esper.utils.torch_private import (
    default_inductor_cache,
    graph_cache,
    on_compilation,
    use_compiler,
    without_duck_shapes,
)

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

CACHE = "TORCHINDUCTOR_CACHE_DIR"

LEDGER.cache("graphs", graph_cache)


def require_compiler(device: torch.device) -> None:
    """Check that compiled code can be built, by building some, and say where it is kept.

    It is kept in ``cache_folder("inductor")`` unless the environment variable ``TORCHINDUCTOR_CACHE_DIR`` names a place
    other than torch's default, which importing torch's libraries writes into the environment.

    Raises:
      BackendError: Inductor needs a C++ compiler on a CPU and there is none, or what is here does not serve.
    """
    command = find_compiler()
    if device.type == "cpu" and command is None:
        raise BackendError(f"backend 'inductor': no C++ compiler; looked for CXX, {', '.join(COMPILERS)}")
    if os.environ.get(CACHE) in (None, default_inductor_cache()):
        with contextlib.suppress(OSError):  # Inductor says what it cannot write
            os.environ[CACHE] = str(cache_folder("inductor"))
    reason = trial(device, None if command is None else program_of(command))
    if reason is not None:
        raise BackendError(f"backend 'inductor': a trial failed: {reason}")


@functools.cache
def trial(device: torch.device, program: str | None) -> str | None:
    """Build and run a small function; whatever keeps it from running would keep every other.

    Args:
      device: where.
      program: the C++ compiler.

    Returns:
      why it cannot be done, in one line; None if it can.
    """
    if program is not None:
        use_compiler(program)
    numbers = torch.arange(16.0, device=device)
    kept = device.type == "cpu" and can_keep_code()
    try:
        found = service(program or device.type).call(lambda: (compiled_and_kept if kept else compiled)(_line)(numbers))
    except Exception as error:  # of dynamo, Inductor, the compiler, the linker, the file system
        return " ".join(str(error).split("\n\n")[0].split())[:300] or type(error).__name__
    return None if torch.equal(found, 2 * numbers + 1) else "its result is wrong"


def _line(x: Tensor) -> Tensor:
    return 2 * x + 1


def compiled_and_kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of one tensor as units are, unless it is on disk. Raises whatever the compiler raises."""

    def start(x: Tensor) -> Any:
        unit = Kept(function, signature_of((x,), False), store.surroundings())
        if unit.is_missing:
            with compiling("units"):
                store.keep({unit.name: unit.write()})
            unit.take()
        return unit(x)

    return start


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
        with without_duck_shapes(), _counting_graphs():
            return run(*arguments)

    return start


@contextlib.contextmanager
def _counting_graphs() -> Iterator[None]:
    """A context in which what torch compiles in this thread is counted."""
    own, times = threading.get_ident(), list[float]()

    def begun(told: Any) -> None:
        del told
        if threading.get_ident() == own:
            times.append(time.perf_counter())

    def ended(told: Any) -> None:
        del told
        if times and threading.get_ident() == own:
            count_compiled("graphs", time.perf_counter() - times.pop())

    with on_compilation(begun, ended):
        yield


def _guards_on_tensors(guards: Any) -> list[bool]:
    """Keep the guards that a call can fail: those on tensors, sizes and torch's modes."""
    return [guard.guard_type not in STANDING and "__import_" not in guard.name for guard in guards]
