"""A folder of NPY files, one for each array: data that are larger than memory stay where they are.

``train_inputs.npy`` and ``train_targets.npy``, and the same of ``val`` or ``test`` or both, as an NPZ archive names
them. Inputs are pixels, uint8 [N, C, H, W] or [N, H, W], or float32 [N, *shape], in C order; they are read by index,
an epoch's samples at a time. Targets are integers [N] and are held.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from esper.tolaria import split
from esper.tolaria.data import Dataset, Part, validate
from esper.tolaria.formats.files import as_path, broken, opened
from esper.tolaria.formats.npy import read_header, read_npy
from esper.tolaria.formats.source import scale_of
from esper.tolaria.mapped import ArrayFile, MappedInputs, Scale, stamp_of
from esper.tolaria.split import HALVES, OWN_TEST

PARTS = ("train", "val", "test")
NAMED = "the three parts as the files name them"
STORED = (np.dtype(np.uint8), np.dtype(np.float32))
"""Elements of inputs: what can be read in place."""

MAX_CLASSES = 2**20
"""As of NPZ archives."""


class StoredFiles(NamedTuple):
    """A part as stored: where its inputs are, and its targets int64 [N]."""

    file: ArrayFile
    targets: np.ndarray


def npy(path: str | os.PathLike[str], num_classes: int | None = None) -> Dataset:
    """The dataset of a folder; its training and test inputs stay in their files.

    Pixels are standardised per channel by the training part. Without a test part, ``val`` is split by a fixed key;
    without ``val``, a tenth of the training samples, drawn by a fixed key, validates: as ``npz`` has it.

    Args:
      path: the folder.
      num_classes: C; None = 1 + the largest of the training targets.

    Raises:
      DatasetError: a file is missing, damaged or holds what cannot be read in place; parts that do not belong together;
        a label that is no class; what ``validate`` refuses.
    """
    folder = as_path(path)
    stored = {part: _read(folder, part) for part in PARTS if part == "train" or _exists(folder, part)}
    if len(stored) < 2:
        raise broken(folder, "files", "train alone", "val_inputs.npy or test_inputs.npy, or both, with their targets")
    first = stored["train"].file
    for file, _ in stored.values():
        if (file.dtype, file.shape[1:]) != (first.dtype, first.shape[1:]):
            found, expected = (f"{each.dtype} {list(each.shape[1:])}" for each in (file, first))
            raise broken(file.path, "header", f"samples of {found}", f"{expected}, as train_inputs.npy has")
    classes = int(stored["train"].targets.max()) + 1 if num_classes is None else num_classes
    if not 2 <= classes <= MAX_CLASSES:
        raise broken(folder, "train_targets (largest + 1)", f"{classes} classes", f"2 to {MAX_CLASSES}")
    rows, said = _rows(folder, stored)
    pixels = first.dtype == np.uint8
    train = MappedInputs(first, rows["train"][1], None)
    scale = scale_of(train.blocks()) if pixels else None
    if scale is not None and 0 in scale.std:
        channel = scale.std.index(0)
        raise broken(first.path, f"channel {channel}", "pixels of one value", "pixels that vary")
    parts = {name: _part(stored[source], which, scale) for name, (source, which) in rows.items()}
    made = Dataset(
        str(folder), parts["train"], parts["validation"], parts["test"], classes, f"{said}; inputs are read from files"
    )
    return validate(made._replace(scale=scale))


def holds_npy(path: Path) -> bool:
    """Whether a folder has a training file."""
    return os.path.isfile(path / "train_inputs.npy")


def _exists(folder: Path, part: str) -> bool:
    return any(os.path.exists(folder / f"{part}_{which}.npy") for which in ("inputs", "targets"))


def _read(folder: Path, part: str) -> StoredFiles:
    """A part: the header of its inputs, and all of its targets."""
    file = _array_file(folder / f"{part}_inputs.npy")
    path = folder / f"{part}_targets.npy"
    with opened(path) as (stream, size):
        targets = read_npy(path, "array", stream, size)
    if targets.dtype.kind == "f" or targets.shape not in ((file.shape[0],), (file.shape[0], 1)):
        found = f"{targets.dtype} of shape {targets.shape}"
        raise broken(path, "array", found, f"integers [{file.shape[0]}], one for each sample of {part}_inputs.npy")
    return StoredFiles(file, targets.reshape(-1).astype(np.int64))


def _array_file(path: Path) -> ArrayFile:
    with opened(path, limit=None) as (stream, size):
        header = read_header(path, "array", stream)
    native = header.dtype.newbyteorder("=")
    shape = header.shape if native != STORED[0] or len(header.shape) != 3 else (header.shape[0], 1, *header.shape[1:])
    if native not in STORED or header.dtype != native or header.fortran_order or len(shape) < 2:
        order = " in Fortran order" * header.fortran_order
        expected = f"uint8 [N, C, H, W] or float32 [N, *shape], {sys.byteorder}-endian, in C order (np.save of such)"
        raise broken(path, "header", f"{header.dtype.str} {list(header.shape)}{order}", expected)
    if native == STORED[0] and len(shape) != 4:
        raise broken(path, "header", f"uint8 of shape {header.shape}", "[N, H, W] or [N, C, H, W] of uint8 (pixels)")
    wanted = header.size + math.prod(shape) * native.itemsize
    if size != wanted:
        raise broken(path, "size", f"{size} bytes", f"{wanted} bytes, as its header with shape {header.shape} says")
    return ArrayFile(path, native, header.size, tuple(shape), stamp_of(path))


def _rows(folder: Path, stored: dict[str, StoredFiles]) -> tuple[dict[str, tuple[str, np.ndarray]], str]:
    """Of each part of the dataset, which file and which of its samples; and how that came about."""
    every = {part: np.arange(len(each.targets)) for part, each in stored.items()}
    if len(stored) == 3:
        return {name: (part, every[part]) for name, part in _names().items()}, NAMED
    source, drawn, said = ("train", split.tenth, OWN_TEST) if "test" in stored else ("val", split.half, HALVES)
    count = len(every[source])
    if count < 2:
        raise broken(folder / f"{source}_targets.npy", "array", f"{count} sample", "at least 2, to be split")
    chosen = np.isin(every[source], drawn(count).numpy())
    validation, rest = (source, every[source][chosen]), (source, every[source][~chosen])
    if source == "train":
        return {"train": rest, "validation": validation, "test": ("test", every["test"])}, said
    return {"train": ("train", every["train"]), "validation": validation, "test": rest}, said


def _names() -> dict[str, str]:
    """Parts of a dataset, and what their files are called."""
    return dict(zip(("train", "validation", "test"), PARTS, strict=True))


def _part(stored: StoredFiles, rows: np.ndarray, scale: Scale | None) -> Part:
    inputs = MappedInputs(stored.file, rows, scale)
    return Part(inputs, torch.from_numpy(stored.targets[rows]))


def ranges(inputs: MappedInputs) -> Iterator[tuple[float, float]]:
    """Smallest and largest stored number, some samples at a time."""
    return ((block.min().item(), block.max().item()) for block in inputs.blocks())
