"""Compiled units on disk: a file each, named after everything that its code depends on.

They lie in ``esper`` in Inductor's cache folder, which holds the libraries that they load. A file that is damaged is
taken away and made again.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from esper.tezzeret.compiler import find_compiler, processor
from esper.utils.paths import cache_folder
from esper.utils.torch_private import load_compiled, take_inductor_settings

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that names Inductor's cache folder."""


def folder() -> Path:
    """Where compiled units are kept; made if it is not there."""
    place = Path(os.environ.get(CACHE) or cache_folder("inductor")) / "esper"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def surroundings() -> str:
    """What code depends on beside the function: torch, the compiler, the processor, threads, Inductor's settings."""
    settings = sorted((name, repr(value)) for name, value in take_inductor_settings().items())
    known = (torch.__version__, find_compiler(), processor(), torch.get_num_threads(), settings)
    return hashlib.sha256(repr(known).encode()).hexdigest()


def find(name: str) -> Callable[..., Any] | None:
    """The compiled unit of a name, if there is a sound one."""
    for path in folder().glob(f"{name}-*.bin"):
        with contextlib.suppress(Exception):  # of unpickling and loading, whatever is damaged
            if path.stem == _named(name, path):
                return load_compiled(str(path))
        path.unlink(missing_ok=True)
    return None


def keep(name: str, make: Callable[[str], None]) -> None:
    """Put a compiled unit into its place; ``make`` writes it to the path it is given."""
    with tempfile.TemporaryDirectory(dir=folder()) as fresh_folder:
        fresh = Path(fresh_folder) / "unit"
        make(str(fresh))
        fresh.replace(folder() / f"{_named(name, fresh)}.bin")


def _named(name: str, path: Path) -> str:
    """A name with the digest of what the file holds."""
    return f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
