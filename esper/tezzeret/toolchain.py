"""Building the native library: one shared object of all C++ sources of ``kernels``, kept for later processes.

Nothing is compiled when Esper is installed. Without a compiler, or with ``ESPER_NATIVE=0`` in the environment, there is
no library. It is built for the machine's own instruction set; ``ESPER_ISA`` in the environment names a lesser one, of
those in ``ISAS``. It knows nothing of torch: it takes addresses and sizes, so building it takes seconds, and a build
serves every torch version.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import esper.kernels
from esper.tezzeret.compiler import Command, find_compiler, processor, run_compiler
from esper.tezzeret.kept import keep, kept, open_library
from esper.utils.compilations import compiling, looked_up
from esper.utils.paths import cache_folder

FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
"""No flag that changes what arithmetic means: infinities and NaN stay what they are, sums keep their order."""

LESS = {"infer.cpp": ("-O2",), "program.cpp": ("-O2",), "train.cpp": ("-O2",)}
"""Sources that say what comes next and leave the arithmetic to others: half the time to compile, and no slower."""

NATIVE = "-march=native"

OBJECT = ("-fPIC", "-fopenmp")
LINKING = ("-shared", *OBJECT)
"""OpenMP's run-time library is found by its name: the one torch has loaded, so both share one set of threads."""


class Isa(NamedTuple):
    """An instruction set by name.

    Attributes:
      flags: for the compiler.
      macros: what the compiler defines on machines that have it.
    """

    flags: tuple[str, ...]
    macros: frozenset[str]


def _level(number: int, *features: str) -> Isa:
    return Isa((f"-march=x86-64-v{number}", "-mtune=native"), frozenset(f"__{feature}__" for feature in features))


ISAS = {
    "avx512": _level(4, "AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512VL"),
    "avx2": _level(3, "AVX2", "BMI", "BMI2", "F16C", "FMA", "LZCNT", "MOVBE"),
    "sse": _level(2, "SSE4_2", "SSSE3", "POPCNT"),
    "neon": Isa(("-march=armv8-a",), frozenset({"__aarch64__", "__ARM_NEON"})),
}
"""How wide vectors are by instruction set is in ``kernels/simd.h``."""

BUILDING = threading.Lock()
"""Held by the thread of this process that builds."""

logger = logging.getLogger("esper")


def check_isa() -> None:
    """Nothing, where the library can be built as the environment asks.

    Raises:
      ValueError: ``ESPER_ISA`` is none of ``ISAS``, or one that this machine lacks.
    """
    compiler = _builder()
    if compiler is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # a compiler that fails costs a line in `load`
            _target(compiler)


def begin() -> None:
    """Have the library built, if this machine has none yet, while the process imports what it needs; ``load`` waits.

    What goes wrong is told by ``load``, which tries again.
    """

    def build() -> None:
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError), BUILDING:
            if (compiler := _builder()) is not None:
                built(sources(), compiler)

    threading.Thread(target=build, name="esper-library", daemon=True).start()


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, built if this machine has none yet.

    Returns:
      the library; None where there is no compiler, the build fails (one log line) or ``ESPER_NATIVE`` is 0.

    Raises:
      ValueError: ``ESPER_ISA`` is none of ``ISAS``, or one that this machine lacks.
    """
    compiler = _builder()
    if compiler is None:
        return None
    folder = sources()
    try:
        with BUILDING:
            place, data = built(folder, compiler)
        return open_library(data, place.parent)
    except (OSError, subprocess.SubprocessError) as error:
        detail = error.stderr.strip().splitlines()[:1] if isinstance(error, subprocess.CalledProcessError) else [error]
        logger.warning("esper has no native library: building %s failed: %s", folder, *detail or [error])
        return None


def sources() -> Path:
    """The folder of the C++ sources: ``kernels`` of a checkout, or of the installed package."""
    return next(folder for folder in map(Path, esper.kernels.__path__) if any(folder.glob("*.cpp")))


def _builder() -> Command | None:
    """The compiler that the library is built by; None where none is."""
    return find_compiler() if os.name == "posix" and os.environ.get("ESPER_NATIVE") != "0" else None


def built(folder: Path, compiler: Command) -> tuple[Path, bytes]:
    """The library of all sources of a folder: its file, named after everything that its code depends on, and its bytes.

    It is built where there is none yet, or where what is there is damaged or not this user's own.
    """
    flags = (*FLAGS, *_target(compiler))
    target = cache_folder("native") / f"esper-{_digest(folder, compiler, flags)}.so"
    data = kept(target)
    looked_up("library", data is not None)
    if data is None:
        with compiling("library"), tempfile.TemporaryDirectory(dir=target.parent) as fresh_folder:
            data = _build(_sources_in(folder), (*compiler, *flags), Path(fresh_folder))
        keep(target, data)
    return target, data


def build_name() -> str:
    """What tells this machine's build of the library from others: sources, compiler, flags and processor.

    Raises:
      OSError, ValueError, SubprocessError: there is no compiler, or it cannot build what the environment asks for.
    """
    compiler = _builder()
    if compiler is None:
        raise OSError("no C++ compiler, or ESPER_NATIVE=0")
    return _digest(sources(), compiler, (*FLAGS, *_target(compiler)))


def _sources_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.cpp"))


def _digest(folder: Path, compiler: Command, flags: Sequence[str]) -> str:
    """Of everything that the library's code depends on."""
    text = b"".join(path.read_bytes() for path in (*_sources_in(folder), *sorted(folder.glob("*.h"))))
    identity = "\n".join((*compiler, _version(compiler), *flags, repr(LESS), *LINKING, processor()))
    return hashlib.sha256(text + identity.encode()).hexdigest()[:16]


def _build(names: Sequence[Path], command: Command, folder: Path) -> bytes:
    """Compile every source, side by side, and link them."""

    def compile_one(name: Path) -> str:
        to = str(folder / f"{name.stem}.o")
        run_compiler([*command, *LESS.get(name.name, ()), *OBJECT, "-c", "-o", to, str(name)], timeout=300)
        return to

    longest_first = sorted(names, key=lambda name: name.stat().st_size, reverse=True)
    with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compile_one, longest_first))
    fresh = folder / "esper.so"
    run_compiler([*command, *LINKING, "-o", str(fresh), *objects], timeout=300)
    return fresh.read_bytes()


def _target(compiler: Command) -> tuple[str, ...]:
    """Flags for the instruction set that ``ESPER_ISA`` names, else for the machine's own."""
    name = os.environ.get("ESPER_ISA", "")
    if not name:
        return (NATIVE,)
    own = macros(compiler)
    allowed = [each for each, isa in ISAS.items() if isa.macros <= own]
    if name not in allowed:
        lacks = " (this machine lacks it)" if name in ISAS else ""
        raise ValueError(f"ESPER_ISA = {name!r}{lacks}: expected {' or '.join(allowed) or 'no value'} here")
    return ISAS[name].flags


@functools.cache
def macros(compiler: Command) -> frozenset[str]:
    """What a compiler defines for the machine's own instruction set."""
    text = run_compiler([*compiler, NATIVE, "-dM", "-E", "-x", "c++", os.devnull])
    return frozenset(line.split()[1] for line in text.splitlines() if line.startswith("#define"))


def _version(compiler: Command) -> str:
    return run_compiler([*compiler, "--version"])
