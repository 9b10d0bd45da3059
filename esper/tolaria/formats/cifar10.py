"""CIFAR-10, binary version: six files of records, a byte of label and 3,072 bytes of pixels each.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009, and the dataset's page
(https://www.cs.toronto.edu/~kriz/cifar.html). A record's pixels are three planes, red, green and blue, each of 32
rows from the top.
"""

import os
from pathlib import Path

import numpy as np

from esper.tolaria.data import Dataset
from esper.tolaria.formats.files import as_path, broken, check_labels, opened, read_up_to, regular
from esper.tolaria.formats.source import Source, StoredPart, build, take_tenth
from esper.tolaria.split import OWN_TEST

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
NAMES_FILE = "batches.meta.txt"
INNER_FOLDER = "cifar-10-batches-bin"
"""The folder that the published archive unpacks to."""

NUM_CLASSES = 10
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
"""Bytes of a record."""

MAX_RECORDS = 10_000
"""Records of a published file; a generated dataset may have fewer."""

MAX_NAMES = 2**16
"""Bytes of the longest file of names."""

_STEMS = tuple(name.removesuffix(".bin") for name in (*TRAIN_FILES, TEST_FILE))


def cifar10(folder: str | os.PathLike[str]) -> Dataset:
    """CIFAR-10, or a dataset in its format: its test batch is the test set, a tenth of the five others validates.

    As published: 45,000 samples train, 5,000 validate, 10,000 are the test set.

    Inputs are float32 ``[N, 3, 32, 32]``, standardised per channel by the training part
    (``esper.tolaria.formats.source.standardise``); 10 classes.

    Args:
      folder: holds the six files, itself or in ``cifar-10-batches-bin``. All six hold equally many records, 10,000
          as published, or fewer: so a file cut between two records is noticed too.

    Raises:
      DatasetError: a file is missing, is not a whole number of records or holds fewer than the others; a label is
          above 9; ``batches.meta.txt``, which may be absent, does not hold 10 names; a colour never varies.
    """
    return build(read_cifar10(as_path(folder)))


def holds_cifar10(path: Path) -> bool:
    """Whether a folder has one of the files, or ``path`` is one; the pickled Python version's names count too."""
    if not os.path.isdir(path):
        return path.name in (*TRAIN_FILES, TEST_FILE)
    return any(os.path.exists(_home(path) / (stem + ending)) for stem in _STEMS for ending in ("", ".bin"))


def read_cifar10(folder: Path, num_classes: int | None = None) -> Source:
    """Read the six files and the names of the classes.

    Args:
      folder: as for ``cifar10``.
      num_classes: None, or 10.

    Raises:
      DatasetError: as for ``cifar10``.
    """
    if num_classes not in (None, NUM_CLASSES):
        raise broken(folder, "number of classes", f"{num_classes} asked for", f"{NUM_CLASSES}, as CIFAR-10 has")
    if not os.path.isdir(folder):
        raise broken(folder, "path", "a file", f"the folder with {TRAIN_FILES[0]} to {TEST_FILE}")
    home = _home(folder)
    paths = [regular(home, (name,)) or home / name for name in (*TRAIN_FILES, TEST_FILE)]
    for path in paths:
        if not os.path.exists(path):
            python = os.path.exists(path.with_suffix(""))
            found = f"no such file but a pickled {path.stem}, which is never read" if python else "no such file"
            raise broken(path, "file", found, "a file of CIFAR-10's binary version")
    batches = [_read_batch(path) for path in paths]
    _check_equal(paths, batches)
    names = _read_names(home / NAMES_FILE)
    used = [path.name for path in paths] + [NAMES_FILE] * bool(names)
    train, validation = take_tenth(folder, "training batches", _part(np.concatenate(batches[:-1])))
    return Source(
        "cifar10", folder, train, validation, _part(batches[-1]), NUM_CLASSES, names, tuple(used), split=OWN_TEST
    )


def _home(folder: Path) -> Path:
    """The folder with the files: ``folder`` itself, or the published one in it."""
    inner = folder / INNER_FOLDER
    return inner if os.path.isdir(inner) else folder


def _read_batch(path: Path) -> np.ndarray:
    """The records of a file, uint8 ``[N, RECORD]``."""
    with opened(path, limit=MAX_RECORDS * RECORD) as (file, size):
        data = read_up_to(file, size)
    whole, rest = divmod(len(data), RECORD)
    if rest:
        place = f"record {whole} (byte {whole * RECORD})"
        raise broken(path, place, f"{rest} bytes and the end of the file", f"{RECORD} bytes")
    records = np.frombuffer(data, dtype=np.uint8).reshape(whole, RECORD)
    check_labels(path, records[:, 0], NUM_CLASSES, first=0, stride=RECORD)
    return records


def _check_equal(paths: list[Path], batches: list[np.ndarray]) -> None:
    """Raise unless all files hold as many records as the one that holds most."""
    fullest = max(range(len(batches)), key=lambda index: len(batches[index]))
    for path, batch in zip(paths, batches, strict=True):
        if len(batch) != len(batches[fullest]):
            expected = f"{len(batches[fullest])}, as many as {paths[fullest].name} holds"
            raise broken(path, f"byte {len(batch) * RECORD}", f"the end after {len(batch)} records", expected)


def _read_names(path: Path) -> tuple[str, ...]:
    """The names of the classes, a line each, or none if there is no such file."""
    if not os.path.exists(path):
        return ()
    with opened(path, limit=MAX_NAMES) as (file, size):
        data = read_up_to(file, size)
    try:
        names = tuple(name for line in data.decode("utf-8").splitlines() if (name := line.strip()))
    except UnicodeDecodeError as error:
        raise broken(path, f"byte {error.start}", f"0x{data[error.start]:02X}", "UTF-8") from None
    if len(names) != NUM_CLASSES or len(set(names)) != NUM_CLASSES:
        found = f"{len(names)} names, {len(set(names))} of them different"
        raise broken(path, "lines", found, f"{NUM_CLASSES} different names")
    return names


def _part(records: np.ndarray) -> StoredPart:
    """The part of records uint8 [N, RECORD]; its inputs are a view."""
    return StoredPart(records[:, 1:].reshape(-1, *SHAPE), records[:, 0].astype(np.int64))
