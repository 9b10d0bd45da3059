"""Which format a path holds, and whether it loads."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esper.tolaria.formats.cifar10 import holds_cifar10, read_cifar10
from esper.tolaria.formats.files import as_path, broken
from esper.tolaria.formats.idx import holds_idx, read_idx_dataset
from esper.tolaria.formats.npy_folder import holds_npy, npy, ranges
from esper.tolaria.formats.npz import holds_npz, read_npz
from esper.tolaria.formats.source import Source, StoredPart, build
from esper.tolaria.formats.text import read_text
from esper.tolaria.mapped import MappedInputs


@dataclass(frozen=True)
class PartReport:
    """One part of a dataset.

    Attributes:
      name: ``train``, ``validation`` or ``test``; or ``text``.
      records: samples, or characters.
      shape: of one sample.
      dtype: of the stored inputs.
      low, high: smallest and largest stored input; of text, code points.
      counts: targets of each class; empty for text.
    """

    name: str
    records: int
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class DatasetReport:
    """What a dataset that loads holds.

    Attributes:
      format: its name.
      num_classes: classes; of text, distinct characters.
      class_names: one for each class, or none.
      used: files and arrays that were read.
      split: where the parts come from; empty for text, which is split when its windows are known.
      parts: one by one.
    """

    format: str
    num_classes: int
    class_names: tuple[str, ...]
    used: tuple[str, ...]
    split: str
    parts: tuple[PartReport, ...]


class Format(NamedTuple):
    """A format.

    Attributes:
      name: its name.
      files: what it looks like, for people.
      holds: whether a path that exists looks like it, sound or not.
      examine: loads it whole and reports, or raises DatasetError; given the path and the number of classes, or None.
    """

    name: str
    files: str
    holds: Callable[[Path], bool]
    examine: Callable[[Path, int | None], DatasetReport]


def _examine_with(read: Callable[[Path, int | None], Source]) -> Callable[[Path, int | None], DatasetReport]:
    """How a format with parts is examined: read, made a dataset as for training, and counted."""

    def examine(path: Path, num_classes: int | None) -> DatasetReport:
        source = read(path, num_classes)
        build(source)
        parts = tuple(_report(name, part, source.num_classes) for name, part in _parts(source))
        return DatasetReport(source.format, source.num_classes, source.class_names, source.used, source.split, parts)

    return examine


def _examine_text(path: Path, num_classes: int | None) -> DatasetReport:
    if num_classes is not None:
        raise broken(path, "number of classes", f"{num_classes} asked for", "none: text has no classes")
    content = read_text(path)
    characters = set(content)
    low, high = ord(min(characters)), ord(max(characters))
    part = PartReport("text", len(content), (), "character", low, high, ())
    return DatasetReport("text", len(characters), (), (path.name,), "", (part,))


def _parts(source: Source) -> tuple[tuple[str, StoredPart], ...]:
    return ("train", source.train), ("validation", source.validation), ("test", source.test)


def _report(name: str, part: StoredPart, num_classes: int) -> PartReport:
    inputs, counts = part.inputs, np.bincount(part.targets.ravel(), minlength=num_classes)
    low, high = inputs.min().item(), inputs.max().item()
    return PartReport(name, len(inputs), inputs.shape[1:], str(inputs.dtype), low, high, tuple(counts.tolist()))


def _examine_folder(path: Path, num_classes: int | None) -> DatasetReport:
    made = npy(path, num_classes)
    reports = []
    for name, part in made.parts.items():
        inputs = part.inputs
        assert isinstance(inputs, MappedInputs)
        low, high = zip(*ranges(inputs), strict=True)
        counts = tuple(np.bincount(part.targets.numpy(), minlength=made.num_classes).tolist())
        shape, dtype = tuple(inputs.shape[1:]), str(inputs.file.dtype)
        reports.append(PartReport(name, part.size, shape, dtype, min(low), max(high), counts))
    used = dict.fromkeys(part.inputs.file.path.name for part in made.parts.values())  # type: ignore[union-attr]
    return DatasetReport("npy", made.num_classes, (), tuple(used), made.split, tuple(reports))


FORMATS = (
    Format("cifar10", "a folder with data_batch_1.bin", holds_cifar10, _examine_with(read_cifar10)),
    Format("idx", "a folder with train-images-idx3-ubyte", holds_idx, _examine_with(read_idx_dataset)),
    Format("npz", "an .npz file", holds_npz, _examine_with(read_npz)),
    Format("npy", "a folder with train_inputs.npy", holds_npy, _examine_folder),
)
"""Formats that are recognised by names or first bytes. At most one of them may fit a path."""

TEXT = Format("text", "a UTF-8 text", os.path.isfile, _examine_text)
"""What any other file is taken for."""


def detect(path: str | os.PathLike[str]) -> Format:
    """The format that a path holds, whether or not it loads.

    Raises:
      DatasetError: nothing at the path, nothing of any format, or files of several.
    """
    path = as_path(path)
    fitting = [kind for kind in FORMATS if kind.holds(path)]
    if not fitting and TEXT.holds(path):
        return TEXT
    if len(fitting) != 1:
        found = " and ".join(f"files of {kind.name}" for kind in fitting) or "no dataset"
        expected = ", ".join(f"{kind.files} ({kind.name})" for kind in (*FORMATS, TEXT))
        raise broken(path, "path", found, f"one of: {expected}")
    return fitting[0]


def check(path: str | os.PathLike[str], num_classes: int | None = None) -> DatasetReport:
    """Load what a path holds, as training would, and report it.

    Args:
      path: a dataset's folder or file.
      num_classes: number of classes; None = what the format says.

    Raises:
      DatasetError: it does not load; one line that names the file.
    """
    path = as_path(path)
    return detect(path).examine(path, num_classes)
