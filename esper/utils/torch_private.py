"""Every private name of torch that Esper uses, and what is done where a version of torch lacks it.

torch promises nothing about these names, so no other module uses one. What a missing name would have said is taken to
be the answer that is slower, and still right; where there is none, the loud one.
"""

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

_FUNCTORCH = getattr(torch._C, "_functorch", None)
_INTERPRETER_STACK = getattr(_FUNCTORCH, "peek_interpreter_stack", None)
_IS_BATCHED = getattr(_FUNCTORCH, "is_batchedtensor", None)
_DISABLE_TRANSFORMS = getattr(torch._C, "_DisableFuncTorch", None)
_SET_FORWARD_MODE = getattr(forward_ad, "_set_fwd_grad_enabled", None)


DispatchMode: Any = _python_dispatch.TorchDispatchMode
"""Base of contexts that see every operation; torch documents it, and has no other place for it."""

_LISTENERS: list[Callable[[Any], None]] = []


def is_transforming() -> bool:
    """Whether a transform of ``torch.func`` is running. Without the name: yes, so that every tensor is asked."""
    return _INTERPRETER_STACK is None or _INTERPRETER_STACK() is not None


def is_batched(tensor: Tensor) -> bool:
    """Whether the outermost wrapper of a wrapped tensor is vmap's. Without the name: yes, and vmap is refused."""
    return _IS_BATCHED is None or _IS_BATCHED(tensor)


def below_transforms() -> AbstractContextManager[object]:
    """A context in which operations act on unwrapped tensors as if no transform ran. Without the name: no change."""
    return nullcontext() if _DISABLE_TRANSFORMS is None else _DISABLE_TRANSFORMS()


def in_forward_mode() -> bool:
    """Whether a level of plain forward mode is open. Without the name: yes, so that every tensor is asked."""
    return bool(getattr(forward_ad, "_current_level", 0) >= 0)


def without_forward_mode() -> AbstractContextManager[object]:
    """A context without plain forward mode. Without the name: no change."""
    return nullcontext() if _SET_FORWARD_MODE is None else _SET_FORWARD_MODE(False)


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor shares its memory with another as autograd sees it. Without the name: yes; it is copied."""
    ask = getattr(tensor, "_is_view", None)
    return ask is None or bool(ask())


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written into; not of one that was made in inference mode. Without the name: None."""
    return getattr(tensor, "_version", None)


def mark_rows(tensor: Tensor) -> None:
    """Let dimension 0 of an argument of compiled code vary. Without the name: every length is compiled anew."""
    mark = getattr(torch._dynamo, "mark_dynamic", None)
    if mark is not None:
        mark(tensor, 0)


def without_duck_shapes() -> AbstractContextManager[object]:
    """A context in which compiled code takes no two sizes to be equal for being so now. Without it: recompilations."""
    config = getattr(torch.fx.experimental, "_config", None)
    return nullcontext() if config is None else config.patch(use_duck_shape=False)


def default_inductor_cache() -> str | None:
    """Where Inductor keeps compiled code unless it is told otherwise. Without the name: None, as if nothing was set."""
    try:
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir
    except ImportError:
        return None
    return str(default_cache_dir())


def use_compiler(program: str) -> None:
    """Let Inductor use a C++ compiler where the one it would take does not run. Without the name: no change."""
    from torch._inductor import config  # it takes a second to import

    own = getattr(getattr(config, "cpp", None), "cxx", None)
    named = own if isinstance(own, tuple | list) else (own,)
    if own is not None and not any(isinstance(name, str) and shutil.which(name) for name in named):
        config.cpp.cxx = (None, program)


def compile_errors() -> tuple[type[Exception], ...]:
    """What torch.compile raises where it cannot compile a function. Without the names: no such error is known."""
    from torch.fx.experimental import symbolic_shapes  # loaded by torch.compile; slow to import otherwise

    known = getattr(getattr(torch._dynamo, "exc", None), "TorchDynamoException", None)
    violated = getattr(symbolic_shapes, "ConstraintViolationError", None)
    return tuple(kind for kind in (known, violated) if kind is not None)


@contextmanager
def without_guard_log() -> Iterator[None]:
    """A context in which torch does not log a refusal of its own compiler, line by line, before it raises it."""
    log = logging.getLogger("torch._guards")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def on_compilation(begun: Callable[[Any], None]) -> Iterator[None]:
    """A context in which a function hears of every compilation, of a frame or a backward. Without it: a warning."""
    from torch._dynamo import callback  # it takes a second to import

    handler = getattr(callback, "callback_handler", None)
    if handler is None:
        warnings.warn(f"torch {torch.__version__} does not tell of compilations: none is counted", stacklevel=3)
        yield
        return
    handler.register_start_callback(begun)
    _LISTENERS.append(begun)
    try:
        yield
    finally:
        _LISTENERS.remove(begun)
        handler.remove_start_callback(begun)


def tell_of_compilation(what: str) -> None:
    """Let ``on_compilation`` hear of a compilation that torch does not tell of."""
    for begun in tuple(_LISTENERS):
        begun(what)


def below_maps(tensor: Tensor) -> tuple[Tensor, int]:
    """What lies below all wrappers of vmap, their dimensions in front, outermost first; and how many there are.

    Without the names: the tensor itself, which is known to nobody then.
    """
    inside, place = getattr(_FUNCTORCH, "get_unwrapped", None), getattr(_FUNCTORCH, "maybe_get_bdim", None)
    if inside is None or place is None or _IS_BATCHED is None or not _IS_BATCHED(tensor):
        return tensor, 0
    below, count = below_maps(inside(tensor).movedim(place(tensor), 0))
    return below, count + 1


Arguments = Callable[[Any], tuple[Tensor, ...]]
"""Number of rows, perhaps symbolic -> arguments of a function of that many rows."""

Kernel = tuple[list[str], str]
"""Types of a kernel's arguments in C++, and the source of a function ``kernel``."""


class Written(NamedTuple):
    """What Inductor makes of a function.

    Attributes:
      code: a module of Python; its ``call`` takes a list of arguments.
      kernels: what it calls.
      constants: tensors that it refers to, by name.
    """

    code: str
    kernels: list[Kernel]
    constants: dict[str, Tensor]


def can_keep_code() -> bool:
    """Whether a traced function can be written down by Inductor and loaded again. Without the names: no."""
    try:
        from torch._inductor.async_compile import AsyncCompile
        from torch._inductor.codecache import CppCodeCache, _get_cpp_prefix_header  # noqa: F401
        from torch._inductor.compile_fx import compile_fx_inner  # noqa: F401
        from torch._inductor.decomposition import select_decomp_table  # noqa: F401
        from torch._inductor.fx_passes.joint_graph import joint_graph_passes  # noqa: F401
        from torch.fx.experimental.symbolic_shapes import StatelessSymbolicContext  # noqa: F401
    except ImportError:
        return False
    return hasattr(AsyncCompile, "cpp_pybinding")


def trace_rows(function: Callable[..., Any], arguments: Arguments, rows: int) -> torch.fx.GraphModule:
    """Every operation of a function of tensors that returns a tuple of tensors, for any number of rows.

    Args:
      function: of tensors.
      arguments: of a number of rows.
      rows: how many the compiler may think are usual.

    Raises:
      ValueError: it would hold for some numbers of rows only.
    """
    mode, given = _symbolic(arguments, rows)
    graph = _trace(function, mode, given)
    _check_rows(mode)
    return graph


def write_code(function: Callable[..., Any], arguments: Arguments, rows: int, threads: int) -> Written:
    """Let Inductor write a function down; nothing is built. Arguments as of ``trace_rows``; threads: of kernels.

    Raises:
      ValueError: the code would hold for some numbers of rows only.
    """
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes

    mode, given = _symbolic(arguments, rows)
    graph = _trace(torch.func.functionalize(function), mode, given, select_decomp_table())
    kernels: list[Kernel] = []

    def note(compiler: Any, types: list[str], source: str) -> None:
        kernels.append((types, source))

    settings = {"layout_optimization": False, "fx_graph_cache": False, "compile_threads": 1, "cpp.threads": threads}
    context = torch._guards.tracing(torch._guards.TracingContext(mode))
    with context, config.patch(settings), patch.object(AsyncCompile, "cpp_pybinding", note):
        joint_graph_passes(graph)
        made: Any = compile_fx_inner(graph, list(given), is_inference=True)
    _check_rows(mode)
    return Written(made.source_code, kernels, dict(made.constants or {}))


def build_library(source: str, path: str) -> None:
    """Compile kernels that Inductor wrote, with its flags, into a shared library."""
    from torch._inductor.codecache import CppCodeCache, CppPythonBindingsCodeCache, _get_cpp_prefix_header

    class Library(CppCodeCache):
        cpp_compile_command_flags = CppPythonBindingsCodeCache.cpp_compile_command_flags

        @classmethod
        def _get_uncompiled_header(cls, device: str) -> str | None:
            return _get_cpp_prefix_header(device)

    shutil.copyfile(Library.load(source)._name, path)


def load_written(
    code: str, kernel: Callable[[list[str]], Callable[..., None]], constants: dict[str, Tensor]
) -> Callable[..., Any]:
    """What ``write_code`` wrote, as (list of arguments) -> results; ``kernel``: types of its arguments -> the next."""
    from torch._inductor.async_compile import AsyncCompile

    names: dict[str, Any] = {"__name__": "esper_unit"}
    with patch.object(AsyncCompile, "cpp_pybinding", lambda compiler, types, source: kernel(types)):
        exec(compile(code, "compiled unit", "exec"), names)
    names.update(constants)
    run: Callable[..., Any] = names["call"]
    return run


def inductor_settings() -> dict[str, Any]:
    """Inductor's settings in this process."""
    from torch._inductor import config

    return dict(config.save_config_portable())


def _trace(function: Callable[..., Any], mode: Any, given: tuple[Tensor, ...], table: Any = None) -> Any:
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import make_fx

    with mode, enable_python_dispatcher():
        return make_fx(function, decomposition_table=table)(*given)


def _symbolic(arguments: Arguments, rows: int) -> tuple[Any, tuple[Tensor, ...]]:
    """Arguments of a symbolic number of rows, and the mode they live in."""
    from torch._dynamo.source import ConstantSource
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    varies: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    count = mode.from_tensor(torch.empty(rows), symbolic_context=varies, source=ConstantSource("rows")).shape[0]
    with mode:
        return mode, arguments(count)


def _check_rows(mode: Any) -> None:
    """Nothing was found to hold for some numbers of rows only."""
    if mode.shape_env.guards:
        raise ValueError(f"only where {mode.shape_env.guards[0].expr}, of a number of rows that varies")
