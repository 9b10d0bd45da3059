"""Every private name of Inductor that compiled units use: tracing, writing code down, building it, loading it again.

torch promises nothing about these names. Where a version of torch lacks one ``can_keep_code`` says no, and units
are compiled by ``torch.compile`` in every process.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

Arguments = Callable[[Any], tuple[Tensor, ...]]
"""Number of rows, perhaps symbolic -> arguments of a function of that many rows."""

Kernel = tuple[list[str], str]
"""Types of a kernel's arguments in C++, and the source of a function ``kernel``."""


class InductorCode(NamedTuple):
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


def write_code(function: Callable[..., Any], arguments: Arguments, rows: int, threads: int) -> InductorCode:
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
    with context, config.patch(settings), _quick_strides(), patch.object(AsyncCompile, "cpp_pybinding", note):
        joint_graph_passes(graph)
        made: Any = compile_fx_inner(graph, list(given), is_inference=True)
    _check_rows(mode)
    return InductorCode(made.source_code, kernels, dict(made.constants or {}))


def _quick_strides() -> AbstractContextManager[Any]:
    """Strides in a normal form that is quick to find.

    Inductor asks SymPy to simplify the difference of an index at two neighbours, hundreds of times in a unit, by every
    rule that SymPy has: two thirds of the time that it takes. Indices are polynomials, of variables and of quotients
    that stay as they are, whose normal form is the expanded one; whatever is missed would be a loop not vectorised.
    """
    import sympy  # type: ignore[import-untyped]

    return patch.object(sympy, "simplify", sympy.expand)


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
