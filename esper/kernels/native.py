"""Kernels in C++ for CPUs: built on first use by the compiler that Inductor needs too, kept for later processes.

Nothing is compiled when Esper is installed. Without a compiler, or with ``ESPER_NATIVE=0`` in the environment, every
operation takes its plain-torch form. The libraries know nothing of torch: they take addresses and sizes, so building
one takes seconds, and a build serves every torch version.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import esper.kernels

COMPILERS = ("c++", "g++", "clang++", "cl")
"""Programs one of which Inductor needs on a CPU; the environment variable CXX names another."""

FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
"""No flag that changes what arithmetic means: infinities and NaN stay what they are, sums keep their order."""

LINKING = ("-shared", "-fPIC", "-fopenmp")
"""OpenMP's run-time library is found by its name: the one torch has loaded, so both share one set of threads."""

logger = logging.getLogger("esper")


def find_compiler() -> str | None:
    """Path of a C++ compiler, or None."""
    names = (os.environ.get("CXX", ""), *COMPILERS)
    return next((path for name in names if name and (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where built libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esper" / "native"


@functools.cache
def load(name: str) -> ctypes.CDLL | None:
    """The library of one source file of ``kernels/`` and its headers, built if this machine has none yet.

    Args:
      name: the file's name without ``.cpp``.

    Returns:
      the library; None where there is no compiler, the build fails (one log line) or ``ESPER_NATIVE`` is 0.
    """
    compiler = find_compiler()
    if os.environ.get("ESPER_NATIVE") == "0" or compiler is None or os.name != "posix":
        return None
    source = next(path for folder in esper.kernels.__path__ if (path := Path(folder) / f"{name}.cpp").is_file())
    try:
        return ctypes.CDLL(str(_built(source, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = error.stderr.strip().splitlines()[:1] if isinstance(error, subprocess.CalledProcessError) else [error]
        logger.warning("esper runs %s in its plain form: building %s failed: %s", name, source, *detail or [error])
        return None


def _built(source: Path, compiler: str) -> Path:
    """The library's file, named after everything that its code depends on."""
    text = b"".join(path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h"))))
    identity = "\n".join((compiler, _version(compiler), *FLAGS, *LINKING, _processor()))
    digest = hashlib.sha256(text + identity.encode()).hexdigest()[:16]
    target = cache_folder() / f"{source.stem}-{digest}.so"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            fresh = Path(folder) / target.name
            command = [compiler, *FLAGS, *LINKING, "-o", str(fresh), str(source)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            fresh.replace(target)
    return target


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout


def _processor() -> str:
    """What ``-march=native`` depends on; a cache folder may be shared by different machines."""
    flags = Path("/proc/cpuinfo")
    lines = flags.read_text().splitlines() if flags.is_file() else []
    known = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join((platform.machine(), platform.processor(), *known))
