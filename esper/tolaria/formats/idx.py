"""IDX, the format of MNIST and its relatives: a magic number, big-endian sizes, then the bytes of an array.

The magic number's bytes are 0, 0, the type of the elements and the number of dimensions; each size is an unsigned
32-bit integer, most significant byte first; the last index changes fastest. Source: LeCun, Cortes and Burges, "The
MNIST database of handwritten digits" (its page describes the format).
"""

import gzip
import math
import os
import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esper.tolaria.data import Dataset
from esper.tolaria.formats.files import (
    DEFLATE_RATIO,
    MAX_BYTES,
    SHIFTED,
    Readable,
    as_path,
    broken,
    check_labels,
    from_zero,
    names_in,
    opened,
    read_up_to,
    regular,
)
from esper.tolaria.formats.source import Source, StoredPart, build, take_tenth
from esper.tolaria.split import OWN_TEST

TYPES = {
    0x08: "unsigned byte",
    0x09: "signed byte",
    0x0B: "short (2 bytes)",
    0x0C: "int (4 bytes)",
    0x0D: "float (4 bytes)",
    0x0E: "double (8 bytes)",
}
"""Codes of the third byte; the datasets of this family use the first."""

UNSIGNED_BYTE = 0x08
AXES = {1: "labels [records]", 3: "images [records, rows, columns]"}
NUM_CLASSES = 10
"""Classes of MNIST, Fashion-MNIST and KMNIST."""

MAX_CLASSES = 256
"""A label is a byte."""

_NAME = re.compile(r"(train|t10k)-(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?")


class IdxFiles(NamedTuple):
    """Where the four files of a dataset are."""

    train_images: Path
    train_labels: Path
    test_images: Path
    test_labels: Path


def idx(where: str | os.PathLike[str] | IdxFiles, num_classes: int = NUM_CLASSES) -> Dataset:
    """MNIST, or a dataset in its format: ``t10k-*`` is the test set, a tenth of ``train-*`` validates.

    MNIST, Fashion-MNIST, KMNIST: 54,000 samples train, 6,000 validate, 10,000 are the test set.
    Inputs are float32 [N, 1, rows, columns], standardised by the training part
    (``standardise``).

    Args:
      where: the folder of ``{train,t10k}-images-idx3-ubyte`` and ``{train,t10k}-labels-idx1-ubyte`` (``.idx`` for
        ``-idx`` and a further ``.gz`` are allowed; of several spellings the first in the order ``-``, ``.``,
        ``-`` with gz, ``.`` with gz is read), or the four files.
      num_classes: C; labels are 0 to C - 1, or in all files together 1 to C; 10 for MNIST, Fashion-MNIST and KMNIST.

    Raises:
      DatasetError: a file is missing; a magic number is not that of images or labels; the size of a file is not
        what its header says; gzip data are damaged or hold more or less than their header says; images and
        labels, or training and test images, do not belong together; a label is no class; all pixels of the
        training part are equal.
    """
    return build(read_idx_dataset(where if isinstance(where, IdxFiles) else as_path(where), num_classes))


def holds_idx(path: Path) -> bool:
    """Whether a folder has a file with one of the names, or ``path`` is one."""
    names = names_in(path) if os.path.isdir(path) else (path.name,)
    return any(_NAME.fullmatch(name) for name in names)


def read_idx_dataset(where: Path | IdxFiles, num_classes: int | None = None) -> Source:
    """Read the four files; arguments and errors as for ``idx``, None = 10 classes."""
    limit = NUM_CLASSES if num_classes is None else num_classes
    if not 2 <= limit <= MAX_CLASSES:
        place = where if isinstance(where, Path) else where.train_labels
        raise broken(place, "classes", str(limit), f"2 to {MAX_CLASSES}")
    files = where if isinstance(where, IdxFiles) else _find(where)
    pairs = ((files.train_images, files.train_labels), (files.test_images, files.test_labels))
    pixels, labels = zip(*(_read_pair(*pair) for pair in pairs), strict=True)
    classes = from_zero(labels, limit)
    for (_, path), each in zip(pairs, classes, strict=True):
        check_labels(path, each, limit, first=8, stride=1)
    train, test = (StoredPart(p[:, None], c.astype(np.int64)) for p, c in zip(pixels, classes, strict=True))
    split = OWN_TEST + (SHIFTED.format(limit) if classes[0] is not labels[0] else "")
    if test.inputs.shape[1:] != train.inputs.shape[1:]:
        found, expected = ("{1}x{2}".format(*part.inputs.shape[1:]) for part in (test, train))
        raise broken(files.test_images, "byte 8", f"images of {found}", f"{expected}, as {files.train_images.name} has")
    train, validation = take_tenth(files.train_images, "byte 4", train)
    folder = where if isinstance(where, Path) else files.train_images.parent
    used = tuple(path.name for path in files)
    return Source("idx", folder, train, validation, test, limit, (), used, split=split)


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Read one file of unsigned bytes.

    A plain file must have exactly the size its header asks for, which is checked before the data are read. A
    gzipped one may ask for ``MAX_BYTES`` and for what its size can unpack to; it is unpacked as far as the header
    asks and not beyond, except for one byte to see that it ends.

    Args:
      path: the file; gzipped if its name ends in ``.gz``.
      rank: number of dimensions, 1 for labels and 3 for images.

    Returns:
      uint8, ``rank`` sizes of at least 1.

    Raises:
      DatasetError: as for ``idx``; the bytes it counts are those of the unpacked file.
    """
    with opened(path) as (file, size):
        if path.suffix != ".gz":
            return _read_array(path, file, rank, exact=size, most=size)
        try:
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                return _read_array(path, unpacked, rank, exact=None, most=min(MAX_BYTES, size * DEFLATE_RATIO))
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise broken(path, "gzip data", f"damage ({error})", "an intact gzip file") from None


def _find(folder: Path) -> IdxFiles:
    """The four files in a folder."""
    if not os.path.isdir(folder):
        raise broken(folder, "path", "a file", "the folder with the four files of the dataset")

    def place(part: str, content: str) -> Path:
        names = [f"{part}-{content}-ubyte{gz}" for gz in ("", ".gz")]
        names = [name.replace("-idx", mark + "idx") for name in names for mark in "-."]
        path = regular(folder, names)
        if path is None:
            there = next((name for name in names if os.path.exists(folder / name)), None)
            found = "no such file" if there is None else "a folder or device without such a file"
            place, *others = (there, *(name for name in names if name != there)) if there else names
            raise broken(folder / place, "file", found, f"it or {', '.join(others)}")
        return path

    return IdxFiles(*(place(part, content) for part in ("train", "t10k") for content in ("images-idx3", "labels-idx1")))


def _read_pair(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and their labels, as stored."""
    pixels, targets = read_idx(images, rank=3), read_idx(labels, rank=1)
    if len(targets) != len(pixels):
        expected = f"{len(pixels)}, one for each image of {images.name}"
        raise broken(labels, "byte 4", f"{len(targets)} labels", expected)
    return pixels, targets


def _read_array(path: Path, stream: Readable, rank: int, exact: int | None, most: int) -> np.ndarray:
    """Header and data of a stream that holds ``exact`` bytes (None: not known before) and at most ``most``."""
    header = 4 + 4 * rank
    shape = _read_header(path, stream, rank)
    promised = header + math.prod(shape)
    says = f"{promised} bytes, as its header with sizes {shape} says"
    if promised > most or (exact is not None and promised != exact):
        raise broken(path, "size", f"{exact} bytes" if exact is not None else f"room for at most {most} bytes", says)
    data = read_up_to(stream, promised - header)
    if header + len(data) != promised:
        raise broken(path, f"byte {header + len(data)}", "the end", says)
    if stream.read(1):
        raise broken(path, f"byte {promised}", "more data", f"the end after {says}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _read_header(path: Path, stream: Readable, rank: int) -> tuple[int, ...]:
    """Check the magic number and return the sizes."""
    header = read_up_to(stream, 4 + 4 * rank)
    expected = f"0x{UNSIGNED_BYTE << 8 | rank:08X}: {TYPES[UNSIGNED_BYTE]}, {AXES[rank]}"
    if len(header) >= 4 and header[:4] != bytes((0, 0, UNSIGNED_BYTE, rank)):
        kind = f"{TYPES.get(header[2], 'no known type')}, {header[3]} dimensions"
        kind = "not an IDX file" if header[0] or header[1] else kind
        raise broken(path, "byte 0 (magic number)", f"0x{header[:4].hex().upper()}: {kind}", expected)
    if len(header) < 4 + 4 * rank:
        raise broken(path, f"byte {len(header)}", "the end", f"a header of {4 + 4 * rank} bytes")
    shape = struct.unpack(f">{rank}I", header[4:])
    if 0 in shape:
        raise broken(path, f"byte {4 + 4 * shape.index(0)}", f"sizes {shape}", "sizes of at least 1")
    return shape
