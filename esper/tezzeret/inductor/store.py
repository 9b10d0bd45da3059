"""Compiled units on disk: an archive each, named after everything that its code depends on.

They lie in ``esper`` in Inductor's cache folder, sealed like the libraries of the native backend: what is damaged, or
may be somebody else's, is not loaded but made again.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esper.tezzeret.compiler import find_compiler, processor
from esper.tezzeret.inductor.kernels import joined, kernels_of
from esper.tezzeret.native import kept
from esper.utils.inductor_private import Written, build_library, inductor_settings, load_written
from esper.utils.paths import cache_folder

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that names Inductor's cache folder."""

FORM = 1
"""Of archives; another number where the same operations shall give other code."""

CODE, LIBRARY = "code", "library"
"""Arrays of bytes in an archive: what runs the kernels, and the kernels. Others are tensors that the code refers to."""


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


def path_of(name: str) -> Path:
    """Where a unit of this name is kept."""
    return folder() / f"{name}.npz"


def find(name: str) -> Callable[..., Any] | None:
    """The compiled unit of a name, if there is a sound one: (list of arguments) -> its results, in a tuple.

    Raises:
      OSError: its library cannot be loaded.
    """
    data = kept.kept(path_of(name))
    if data is None:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        held = {key: archive[key] for key in archive}
    code, library = held.pop(CODE).tobytes().decode(), kept.open_library(held.pop(LIBRARY).tobytes(), folder())
    return load_written(code, kernels_of(library), {key: torch.from_numpy(each) for key, each in held.items()})


def keep(name: str, written: Written) -> None:
    """Build what Inductor wrote, and put it into its place."""
    with tempfile.TemporaryDirectory(dir=folder()) as fresh:
        path = Path(fresh) / LIBRARY
        build_library(joined(written.kernels), str(path))
        parts = {CODE: written.code.encode(), LIBRARY: path.read_bytes()}
    held: dict[str, Any] = {key: np.frombuffer(part, np.uint8) for key, part in parts.items()}
    archive = io.BytesIO()
    held |= {key: each.numpy() for key, each in written.constants.items()}
    np.savez(archive, **held)
    kept.keep(path_of(name), archive.getvalue())
