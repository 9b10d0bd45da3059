"""The C++ compiler of this machine, which Inductor and the native library need alike."""

import functools
import logging
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from esper.utils.resilience.services import Service

COMPILERS = ("c++", "g++", "clang++", "cl")
"""Programs one of which Inductor needs on a CPU; the environment variable CXX names another, perhaps with a wrapper in
front (``ccache g++``) or options behind it."""

Command = tuple[str, ...]
"""A program and the words that go with it."""

logger = logging.getLogger("esper")


def find_compiler() -> Command | None:
    """The command of a C++ compiler that runs: CXX, else the first of ``COMPILERS``; None where there is none."""
    wanted = os.environ.get("CXX", "").strip()
    found = next((command for name in COMPILERS if (command := _command(name)) is not None), None)
    if not wanted:
        return found
    named = _command(wanted)
    if named is None:
        instead = "nothing is compiled" if found is None else f"{' '.join(found)} is taken"
        _warn_once(f"CXX = {wanted!r}: does not run; {instead}")
    return named or found


def program_of(command: Command) -> str:
    """The compiler itself: the last word of a command that is a program."""
    return next((path for word in reversed(command) if (path := shutil.which(word)) is not None), command[0])


def run_compiler(command: Sequence[str], timeout: float = 60.0) -> str:
    """What a compiler prints, in whatever encoding. One that was killed or too slow is tried again, for a while.

    Args:
      command: the program and its words.
      timeout: seconds of an attempt.

    Raises:
      OSError, SubprocessError: it does not run, fails, takes too long, or failed too often just now.
    """

    def attempt() -> str:
        done = subprocess.run(
            command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
        )
        return done.stdout

    return service(command[0]).call(attempt)


@functools.cache
def service(program: str) -> Service:
    """A compiler as a service: this process asks each through one breaker."""
    return Service("compiler")


def processor() -> str:
    """What ``-march=native`` and ``-mtune=native`` depend on; a cache folder may be shared by different machines."""
    flags = Path("/proc/cpuinfo")
    lines = flags.read_text(encoding="utf-8", errors="replace").splitlines() if flags.is_file() else []
    known = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join((platform.machine(), platform.processor(), *known))


def _command(name: str) -> Command | None:
    """The words of a command that runs, its program by its path; a path may hold spaces."""
    try:
        words = [name] if shutil.which(name) else shlex.split(name)
    except ValueError:  # a quotation without an end
        return None
    program = shutil.which(words[0]) if words else None
    command = None if program is None else (program, *words[1:])
    return command if command is not None and (os.name == "nt" or _runs(command)) else None


@functools.cache
def _runs(command: Command) -> bool:
    try:
        return subprocess.run([*command, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


@functools.cache
def _warn_once(line: str) -> None:
    logger.warning("esper: %s", line)
