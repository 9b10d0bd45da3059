"""Kernels built for NEON and run by an emulator, where the machine has a cross compiler and qemu."""

import shutil
import subprocess
from pathlib import Path

import pytest

from esper.tezzeret.compiler import find_compiler
from esper.tezzeret.toolchain import FLAGS, ISAS, sources

CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
LIMIT = 1e-5
"""The largest error of a float32 sum of up to 2,048 products over the sums' typical size."""

SOURCES = ("convolutions.cpp", "winograd.cpp", "products.cpp")


def errors(compiler: list[str], runner: list[str], folder: Path) -> tuple[int, list[float]]:
    """The width of a pack, and the largest relative errors of convolutions, as a program of its own finds them."""
    program = folder / "check"
    names = [str(Path(__file__).with_name("check_convolutions.cpp")), *(str(sources() / name) for name in SOURCES)]
    command = [*compiler, *FLAGS, "-O1", "-Wno-psabi", f"-I{sources()}", "-o", str(program), *names]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    done = subprocess.run([*runner, str(program)], check=True, timeout=300, capture_output=True, text=True)
    first, *rest = done.stdout.splitlines()
    return int(first), [float(number) for line in rest for number in line.split()]


@pytest.mark.skipif(shutil.which(CROSS) is None, reason=f"no {CROSS}")
@pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"no {EMULATOR}")
def test_convolutions_on_neon(tmp_path: Path) -> None:
    width, found = errors([CROSS, "-static", *ISAS["neon"].flags], [EMULATOR], tmp_path)
    assert width == 4 and len(found) == 24
    assert max(found) < LIMIT


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_the_same_program_here(tmp_path: Path) -> None:
    compiler = find_compiler()
    assert compiler is not None
    width, found = errors(list(compiler), [], tmp_path)
    assert width in (4, 8, 16) and len(found) == 24
    assert max(found) < LIMIT
