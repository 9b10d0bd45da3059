"""Compiled units on disk: a folder each, named after everything that its code depends on and what it holds.

They lie in ``esper`` in Inductor's cache folder. Nothing is loaded that another user may have written, and what is
damaged is taken away and made again.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esper.tezzeret.compiler import find_compiler, processor
from esper.tezzeret.inductor.kernels import joined, opened
from esper.utils.paths import cache_folder
from esper.utils.torch_private import Written, build_library, inductor_settings, load_written

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that names Inductor's cache folder."""

FORM = 1
"""Of what is kept; another number where the same operations shall give other code."""

CODE, LIBRARY, CONSTANTS = "code.py", "kernels.so", "constants.npz"
"""Files of a unit: what runs the kernels, the kernels, and tensors that it refers to."""


def folder() -> Path:
    """Where compiled units are kept; made if it is not there."""
    place = Path(os.environ.get(CACHE) or cache_folder("inductor")) / "esper"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def surroundings() -> str:
    """What code depends on beside the function: torch, the compiler, the processor, threads, Inductor's settings."""
    settings = sorted((name, repr(value)) for name, value in inductor_settings().items())
    known = (FORM, torch.__version__, find_compiler(), processor(), torch.get_num_threads(), settings)
    return hashlib.sha256(repr(known).encode()).hexdigest()


def find(name: str) -> Callable[..., Any] | None:
    """The compiled unit of a name, if there is a sound one: (list of arguments) -> its results, in a tuple."""
    for place in folder().glob(f"{name}-*"):
        with contextlib.suppress(Exception):  # of reading, unpickling and loading, whatever is damaged
            if _is_own(place) and place.name == _named(name, place):
                return _load(place)
        shutil.rmtree(place, ignore_errors=True)
    return None


def keep(name: str, written: Written) -> None:
    """Build what Inductor wrote, and put it into its place."""
    with tempfile.TemporaryDirectory(dir=folder()) as fresh:
        made = Path(fresh) / "unit"
        made.mkdir(mode=0o700)
        (made / CODE).write_text(written.code, encoding="utf-8")
        held: dict[str, Any] = {key: value.numpy() for key, value in written.constants.items()}
        np.savez(made / CONSTANTS, **held)
        build_library(joined(written.kernels), str(made / LIBRARY))
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(folder() / _named(name, made))


def _load(place: Path) -> Callable[..., Any]:
    with np.load(place / CONSTANTS, allow_pickle=False) as arrays:
        constants = {key: torch.from_numpy(arrays[key]) for key in arrays}
    return load_written((place / CODE).read_text(encoding="utf-8"), opened(str(place / LIBRARY)), constants)


def _named(name: str, place: Path) -> str:
    """A name with the digest of what the folder holds."""
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(place.iterdir())]
    return f"{name}-{hashlib.sha256(' '.join(files).encode()).hexdigest()[:16]}"


def _is_own(place: Path) -> bool:
    """Whether the folder and its files are this user's, and nobody else may write to them."""
    if not hasattr(os, "getuid"):
        return True
    facts = [path.lstat() for path in (place.parent, place, *place.iterdir())]
    return all(each.st_uid == os.getuid() and not each.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for each in facts)
