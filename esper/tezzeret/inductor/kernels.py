"""All kernels of some units in one library: one call of the compiler, which takes much of a second to read nothing.

A kernel is called through ctypes; what it throws comes back as text.
"""

import ctypes
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from esper.utils.inductor_private import Kernel

NUMBERS = {"int64_t": ctypes.c_int64, "double": ctypes.c_double, "float": ctypes.c_float}
"""Plain arguments of kernels."""


def joined(kernels: Sequence[Kernel]) -> str:
    """One source of all kernels: ``call_0``, ``call_1``, ... return what was thrown, or a null pointer."""
    parts = ["#include <torch/csrc/inductor/cpp_prefix.h>", "#include <exception>", "#include <string>"]
    for number, (types, source) in enumerate(kernels):
        taken = ", ".join(f"{kind} a{place}" for place, kind in enumerate(types))
        given = ", ".join(f"a{place}" for place in range(len(types)))
        parts += [f"#define kernel kernel_{number}", source, "#undef kernel"]
        parts += [f'extern "C" const char* call_{number}({taken}) {{', "    static thread_local std::string said;"]
        parts += [f"    try {{ kernel_{number}({given}); return nullptr; }}"]
        parts += ["    catch (const std::exception& error) { said = error.what(); return said.c_str(); }", "}"]
    return "\n".join(parts) + "\n"


def kernels_of(library: ctypes.CDLL, first: int) -> Callable[[list[str]], Callable[..., None]]:
    """What gives the kernels of a library one after the other from a number on, by the types of their arguments."""
    numbers = itertools.count(first)
    return lambda types: _function(getattr(library, f"call_{next(numbers)}"), types)


def _function(kernel: Any, types: list[str]) -> Callable[..., None]:
    """A kernel as a function of tensors and numbers."""
    pointers = [kind.endswith("*") for kind in types]
    kernel.argtypes = [ctypes.c_void_p if kind.endswith("*") else NUMBERS[kind.split()[-1]] for kind in types]
    kernel.restype = ctypes.c_char_p

    def run(*arguments: Any) -> None:
        said = kernel(*[each.data_ptr() if held else each for each, held in zip(arguments, pointers, strict=True)])
        if said is not None:
            raise RuntimeError(said.decode(errors="replace"))

    return run
