"""NPZ archives: a zip file with one NPY file for each array, as ``numpy.savez`` and ``savez_compressed`` write it."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from esper.tolaria.data import Dataset, DatasetError
from esper.tolaria.formats.files import DEFLATE_RATIO, MAX_BYTES, as_path, broken, opened
from esper.tolaria.formats.npy import read_npy
from esper.tolaria.formats.source import Part, Source, build

NAMINGS = (
    ("train_inputs", "train_targets", "val_inputs", "val_targets"),
    ("x_train", "y_train", "x_test", "y_test"),
)
"""Names of the four arrays: Esper's, and those of the archives that Keras publishes."""

NUM_CLASSES = "num_classes"
"""Name of the optional scalar."""

MAX_CLASSES = 2**20
"""The most classes, so that a damaged label does not ask for a network of any size."""

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    ValueError,
)  # what the zip reader of the standard library raises for files that are not sound


def npz(path: str | os.PathLike[str], num_classes: int | None = None) -> Dataset:
    """A dataset of four arrays.

    ``train_inputs`` and ``val_inputs`` have one of three forms, the same in both parts:

    - uint8 [N, C, H, W] or [N, H, W] (one channel): pixels, standardised per channel by the training part
      (``standardise``);
    - float16, float32 or float64 [N, *shape]: used as they are, as float32;
    - other integers [N, T]: tokens, as int64, with targets [N, T].

    ``train_targets`` and ``val_targets`` are integers [N]. ``x_train``, ``y_train``, ``x_test`` and ``y_test`` are
    accepted instead, all four; further arrays are not read.

    Args:
      path: the archive. Nothing in it is unpickled.
      num_classes: number of classes; None = the array ``num_classes`` (an integer without axes) if there is one,
        else 1 + the largest of the training targets (and tokens).

    Raises:
      DatasetError: the archive is damaged, encrypted or packed by another method than DEFLATE; an array is
        missing, holds objects or another type than its own, or declares a size that is not the one it has; what
        ``validate`` refuses.
    """
    return build(read_npz(as_path(path), num_classes))


def holds_npz(path: Path) -> bool:
    """Whether a file is named ``.npz`` or is a zip file."""
    if not os.path.isfile(path):
        return False
    if path.suffix == ".npz":
        return True
    with opened(path) as (file, _):
        return file.read(4) == b"PK\x03\x04"


def read_npz(path: Path, num_classes: int | None = None) -> Source:
    """Read the four arrays; arguments and errors as for ``npz``."""
    with opened(path) as (file, _), _unzipped(path, file) as archive:
        members = _members(path, archive)
        naming = _naming(path, members)
        inputs, targets, val_inputs, val_targets = (_read(path, archive, members[name]) for name in naming)
        declared = _read(path, archive, members[NUM_CLASSES]) if NUM_CLASSES in members else None
    if val_inputs.dtype != inputs.dtype:
        raise broken(path, naming[2], f"dtype {val_inputs.dtype}", f"{inputs.dtype}, as {naming[0]} has")
    train = _part(path, naming[:2], inputs, targets)
    val = _part(path, naming[2:], val_inputs, val_targets)
    if num_classes is None:
        num_classes = _largest(train) + 1 if declared is None else _scalar(path, declared)
    if not 2 <= num_classes <= MAX_CLASSES:
        place = NUM_CLASSES if declared is not None else f"{naming[1]} (largest + 1)"
        raise broken(path, place, f"{num_classes} classes", f"2 to {MAX_CLASSES}")
    used = (*naming, NUM_CLASSES) if declared is not None else naming
    return Source("npz", path, train, val, num_classes, (), used)


@contextmanager
def _unzipped(path: Path, file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """The archive; what the reader finds wrong with it while it is open becomes a DatasetError."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except DatasetError:
        raise
    except _DAMAGE as error:
        raise broken(path, "zip archive", f"damage ({error or type(error).__name__})", "an intact archive") from None


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays by name."""
    infos = archive.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(members) != len(infos):
        raise broken(path, "zip archive", "an array twice", "every array once")
    return members


def _naming(path: Path, members: dict[str, zipfile.ZipInfo]) -> tuple[str, ...]:
    """The names by which the four arrays go in this archive."""
    for naming in NAMINGS:
        if all(name in members for name in naming):
            return naming
    found = ", ".join(repr(name) for name in sorted(members)[:20]) or "none"
    raise broken(path, "arrays", found, " or ".join(", ".join(naming) for naming in NAMINGS))


def _read(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array, if its packing and sizes are plausible."""
    place = f"array {info.filename.removesuffix('.npy')}"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise broken(path, place, f"zip method {info.compress_type}", "0 (stored) or 8 (DEFLATE)")
    ratio = 1 if info.compress_type == zipfile.ZIP_STORED else DEFLATE_RATIO
    room = min(MAX_BYTES, ratio * info.compress_size)
    if info.file_size > room:
        found = f"{info.file_size} bytes packed into {info.compress_size}"
        raise broken(path, place, found, f"at most {room} bytes")
    with archive.open(info) as stream:
        return read_npy(path, place, stream, info.file_size)


def _part(path: Path, names: tuple[str, ...], inputs: np.ndarray, targets: np.ndarray) -> Part:
    """Inputs as pixels, float32 or tokens, targets as int64."""
    if targets.dtype.kind == "f":
        raise broken(path, names[1], f"dtype {targets.dtype}", "integers")
    targets = targets.astype(np.int64)
    if inputs.dtype == np.uint8:
        if inputs.ndim not in (3, 4):
            raise broken(
                path, names[0], f"uint8 of shape {inputs.shape}", "[N, H, W] or [N, C, H, W] of uint8 (pixels)"
            )
        return Part(inputs if inputs.ndim == 4 else inputs[:, None], targets)
    if inputs.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused with its place
            return Part(inputs.astype(np.float32), targets)
    return Part(inputs.astype(np.int64), targets)


def _largest(part: Part) -> int:
    """The largest target, or token."""
    tokens = part.inputs.dtype == np.int64
    return max(int(part.targets.max()), int(part.inputs.max()) if tokens else 0)


def _scalar(path: Path, declared: np.ndarray) -> int:
    """The declared number of classes."""
    if declared.shape != () or declared.dtype.kind == "f":
        raise broken(path, NUM_CLASSES, f"{declared.dtype} of shape {declared.shape}", "one integer without axes")
    return int(declared)
