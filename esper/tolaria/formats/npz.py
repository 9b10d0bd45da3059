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
from esper.tolaria.formats.files import DEFLATE_RATIO, MAX_BYTES, SHIFTED, as_path, broken, from_zero, opened
from esper.tolaria.formats.npy import read_npy
from esper.tolaria.formats.source import Source, StoredPart, build, halve, take_tenth
from esper.tolaria.split import HALVES, OWN_TEST

NAMINGS = (
    {
        "train": ("train_inputs", "train_targets"),
        "val": ("val_inputs", "val_targets"),
        "test": ("test_inputs", "test_targets"),
    },
    {"train": ("x_train", "y_train"), "val": ("x_val", "y_val"), "test": ("x_test", "y_test")},
)
"""Names of the arrays, inputs and targets by part: Esper's, and those of the archives that Keras publishes."""

NUM_CLASSES = "num_classes"
"""Name of the optional scalar."""

MAX_CLASSES = 2**20
"""The most classes, so that a damaged label does not ask for a network of any size."""

CHANNELS = (1, 3, 4)
"""Channels that an image of pixels may have: grey, colour, colour with opacity."""

MOVED = "; channels were the last axis and are the first"

NAMED = "the three parts as the archive names them"

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    ValueError,
)  # what the zip reader of the standard library raises for files that are not sound


def npz(path: str | os.PathLike[str], num_classes: int | None = None) -> Dataset:
    """A dataset of two arrays for each of two or three parts.

    ``train_inputs`` is there, and ``val_inputs`` or ``test_inputs`` or both, each with its ``_targets``. All three are
    used as they are named. Without a test part, ``val`` is split by a fixed key: half of it, rounded down, validates
    and the others are the test set. Without ``val``, a tenth of the training samples, drawn by a fixed key, validates.
    ``Dataset.split`` says which. ``x_train``, ``y_train``, ``x_val`` and so on are accepted instead; further arrays are
    not read.

    Inputs have one of three forms, the same in all parts:

    - uint8 [N, C, H, W] or [N, H, W] (one channel): pixels, standardised per channel by the training part
      (``standardise``);
    - float16, float32 or float64 [N, *shape]: used as they are, as float32; [N, H, W] has one channel, too;
    - images of either kind as [N, H, W, C], where C is one of ``CHANNELS`` and H larger than all of them;
    - other integers [N, T]: tokens, as int64, with targets [N, T].

    Targets are integers [N], of samples that are no tokens also [N, 1], from 0, or in all parts together 1 to C.

    Args:
      path: the archive. Nothing in it is unpickled.
      num_classes: number of classes; None = the array ``num_classes`` (an integer without axes) if there is one,
        else 1 + the largest of the training targets (and tokens).

    Raises:
      DatasetError: the archive is damaged, encrypted or packed by another method than DEFLATE; an array is
        missing, holds objects or another type than its own, or declares a size that is not the one it has; a label,
        token or number is out of range; a part is too small to be split; what
        ``validate`` refuses.
    """
    return build(read_npz(as_path(path), num_classes))


def holds_npz(path: Path) -> bool:
    """Whether a file is named ``.npz`` or is a zip file."""
    if not os.path.isfile(path):
        return False
    if path.suffix == ".npz":
        return True
    with opened(path, limit=None) as (file, _):  # how large a file may be depends on its format
        return file.read(4) == b"PK\x03\x04"


def read_npz(path: Path, num_classes: int | None = None) -> Source:
    """Read the arrays; arguments and errors as for ``npz``."""
    with opened(path) as (file, _), _unzipped(path, file) as archive:
        members = _members(path, archive)
        naming = _naming(path, members)
        arrays = {part: [_read(path, archive, members[name]) for name in names] for part, names in naming.items()}
        declared = _read(path, archive, members[NUM_CLASSES]) if NUM_CLASSES in members else None
    source = source_of(path, naming, arrays, declared, num_classes)
    return source._replace(format="npz", used=source.used + (NUM_CLASSES,) * (declared is not None))


def source_of(
    path: Path,
    naming: dict[str, tuple[str, str]],
    arrays: dict[str, list[np.ndarray]],
    declared: np.ndarray | None,
    num_classes: int | None,
) -> Source:
    """Arrays as a source in three parts.

    Args:
      path: what errors name.
      naming: names of inputs and targets by part, train and at least one other.
      arrays: inputs and targets by part.
      declared: the number of classes as it is stored, if it is.
      num_classes: as asked for; None = as declared, else by the largest of the training targets.

    Raises:
      DatasetError: as for ``npz``.
    """
    dtype = arrays["train"][0].dtype
    for part, (inputs, _) in arrays.items():
        if inputs.dtype != dtype:
            expected = f"{dtype}, as {naming['train'][0]} has"
            raise broken(path, naming[part][0], f"dtype {inputs.dtype}", expected)
    last = _channels_are_last([inputs for inputs, _ in arrays.values()])
    if last:
        arrays = {part: [np.moveaxis(inputs, -1, 1), targets] for part, (inputs, targets) in arrays.items()}
    stored = {part: _part(path, names, *arrays[part]) for part, names in naming.items()}
    if num_classes is None:
        num_classes = _largest(stored["train"]) + 1 if declared is None else _scalar(path, declared)
    if not 2 <= num_classes <= MAX_CLASSES:
        place = NUM_CLASSES if declared is not None else f"{naming['train'][1]} (largest + 1)"
        raise broken(path, place, f"{num_classes} classes", f"2 to {MAX_CLASSES}")
    moved = from_zero([part.targets for part in stored.values()], num_classes)
    said = MOVED * last + (SHIFTED.format(num_classes) if moved[0] is not stored["train"].targets else "")
    stored = {part: StoredPart(stored[part].inputs, each) for part, each in zip(stored, moved, strict=True)}
    for part, names in naming.items():
        for name, values in zip(names, stored[part], strict=True):
            _check_values(path, name, values, num_classes)
    used = tuple(name for names in naming.values() for name in names)
    train, validation, test, split = _three(path, naming, stored)
    return Source("arrays", path, train, validation, test, num_classes, (), used, split + said)


def _channels_are_last(inputs: list[np.ndarray]) -> bool:
    """Whether images can only be [N, H, W, C]: channels are last, and too many for C where it would stand."""
    images = all(each.ndim == 4 and (each.dtype == np.uint8 or each.dtype.kind == "f") for each in inputs)
    return images and all(each.shape[3] in CHANNELS and each.shape[1] > max(CHANNELS) for each in inputs)


def _three(
    path: Path, naming: dict[str, tuple[str, str]], stored: dict[str, StoredPart]
) -> tuple[StoredPart, StoredPart, StoredPart, str]:
    """Training, validation and test part, and how they came about."""
    train = stored["train"]
    if len(stored) == 3:
        return train, stored["val"], stored["test"], NAMED
    if "test" in stored:
        train, validation = take_tenth(path, naming["train"][1], train)
        return train, validation, stored["test"], OWN_TEST
    validation, test = halve(path, naming["val"][1], stored["val"])
    return train, validation, test, HALVES


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


def _naming(path: Path, members: dict[str, zipfile.ZipInfo]) -> dict[str, tuple[str, str]]:
    """The names by which inputs and targets of the parts that are there go in this archive."""
    for naming in NAMINGS:
        found = {part: names for part, names in naming.items() if any(name in members for name in names)}
        whole = all(name in members for names in found.values() for name in names)
        if "train" in found and len(found) > 1 and whole:
            return found
    listed = ", ".join(repr(name) for name in sorted(members)[:20]) or "none"
    kinds = (["{}, {}".format(*names) for names in naming.values()] for naming in NAMINGS)
    raise broken(path, "arrays", listed, " or ".join("{} with {} or {} or both".format(*pairs) for pairs in kinds))


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


def _part(path: Path, names: tuple[str, str], inputs: np.ndarray, targets: np.ndarray) -> StoredPart:
    """Inputs as pixels, float32 or tokens, targets as int64."""
    if targets.dtype.kind == "f":
        raise broken(path, names[1], f"dtype {targets.dtype}", "integers")
    if not inputs.ndim or targets.shape[:1] != inputs.shape[:1]:
        expected = f"a target for each sample of {names[0]}, whose shape is {inputs.shape}"
        raise broken(path, names[1], f"shape {targets.shape}", expected)
    targets, pixels = targets.astype(np.int64), inputs.dtype == np.uint8
    if not pixels and inputs.dtype.kind != "f":
        return StoredPart(inputs.astype(np.int64), targets)
    if pixels and inputs.ndim not in (3, 4):
        raise broken(path, names[0], f"uint8 of shape {inputs.shape}", "[N, H, W] or [N, C, H, W] of uint8 (pixels)")
    inputs = inputs[:, None] if inputs.ndim == 3 else inputs
    targets = targets[:, 0] if targets.shape == (len(targets), 1) else targets
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused with its place
        return StoredPart(inputs if pixels else inputs.astype(np.float32), targets)


def _check_values(path: Path, name: str, values: np.ndarray, num_classes: int) -> None:
    """Raise if a number is not finite or a label or token no class, by its place in the file, before any split."""
    if values.dtype == np.uint8:
        return
    floats = values.dtype.kind == "f"
    bad = ~np.isfinite(values) if floats else (values < 0) | (values >= num_classes)
    if bad.any():
        place = np.unravel_index(bad.argmax(), bad.shape)
        word = "" if floats else "label " if name.endswith("targets") or name.startswith("y_") else "token "
        found = f"{word}{values[place]} at index {', '.join(map(str, place))}"
        raise broken(path, name, found, "finite numbers" if floats else f"{word.strip()}s in [0, {num_classes})")


def _largest(part: StoredPart) -> int:
    """The largest target, or token."""
    tokens = part.inputs.dtype == np.int64
    return max(int(part.targets.max()), int(part.inputs.max()) if tokens else 0)


def _scalar(path: Path, declared: np.ndarray) -> int:
    """The declared number of classes."""
    if declared.shape != () or declared.dtype.kind == "f":
        raise broken(path, NUM_CLASSES, f"{declared.dtype} of shape {declared.shape}", "one integer without axes")
    return int(declared)
