"""Compiled units on disk: an archive each, named after everything that its code depends on, and libraries of kernels.

They lie in ``esper`` in Inductor's cache folder, sealed like the libraries of the native backend: what is damaged, or
may be somebody else's, is not loaded but made again.
"""

import ctypes
import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esper.tezzeret import kept
from esper.tezzeret.compiler import find_compiler, processor
from esper.tezzeret.inductor.kernels import joined, kernels_of
from esper.utils.inductor_private import InductorCode, build_library, inductor_settings, load_written
from esper.utils.paths import cache_folder

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that names Inductor's cache folder."""

FORM = 2
"""Of archives; another number where the same operations shall give other code."""

CODE, LIBRARY, FIRST = "code", "library", "first"
"""In an archive: what runs the kernels, the sha256 of their library, and the number of the first in it. All else are
tensors that the code refers to."""


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
    code, digest, first = _text(held.pop(CODE)), _text(held.pop(LIBRARY)), int(held.pop(FIRST))
    library = kept.kept(_library(digest))
    if library is None or hashlib.sha256(library).hexdigest() != digest:
        return None
    constants = {key: torch.from_numpy(each) for key, each in held.items()}
    return load_written(code, kernels_of(_opened(digest, library), first), constants)


def keep(written: dict[str, InductorCode]) -> None:
    """Build what Inductor wrote, by name, into one library, and put everything into its place."""
    if not written:
        return
    with tempfile.TemporaryDirectory(dir=folder()) as fresh:
        path = Path(fresh) / LIBRARY
        build_library(joined([kernel for each in written.values() for kernel in each.kernels]), str(path))
        library = path.read_bytes()
    digest, first = hashlib.sha256(library).hexdigest(), 0
    kept.keep(_library(digest), library)
    for name, each in written.items():
        held: dict[str, Any] = {CODE: _bytes(each.code), LIBRARY: _bytes(digest), FIRST: np.int64(first)}
        held |= {key: constant.numpy() for key, constant in each.constants.items()}
        archive = io.BytesIO()
        np.savez(archive, **held)
        kept.keep(path_of(name), archive.getvalue())
        first += len(each.kernels)


_OPENED: dict[str, ctypes.CDLL] = {}
"""Libraries of this process, by digest."""


def _opened(digest: str, data: bytes) -> ctypes.CDLL:
    if digest not in _OPENED:
        _OPENED[digest] = kept.open_library(data, folder())
    return _OPENED[digest]


def _library(digest: str) -> Path:
    return folder() / f"{digest}.so"


def _bytes(text: str) -> Any:
    return np.frombuffer(text.encode(), np.uint8)


def _text(array: Any) -> str:
    return bytes(array.tobytes()).decode()
