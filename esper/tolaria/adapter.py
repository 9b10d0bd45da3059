"""One adapter for whatever yields samples: pairs of arrays or tensors, and datasets of other libraries.

``dataset`` makes a dataset that lives in memory; ``store`` writes what is larger into a folder, sample by sample, which
``npy:FOLDER`` trains on from the command line. A part is one of

- a pair (inputs, targets) of arrays or tensors;
- a map-style dataset, with ``len`` and items by index: ``torch.utils.data.Dataset``, torchvision's, Hugging Face's;
- an iterable with a ``len``.

An item is a pair (sample, target), or a table of columns. Samples are tensors, arrays, or images of PIL, all of one
shape; images with their channels last get them first.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from esper.tolaria.data import Dataset, DatasetError, dataset_error
from esper.tolaria.formats.npz import CHANNELS, source_of
from esper.tolaria.formats.source import build

TARGETS = ("label", "labels", "target", "targets", "y", "fine_label", "coarse_label")
"""Columns that are taken for targets, the first that is there."""

INPUTS = ("image", "img", "pixel_values", "input_ids", "x", "inputs", "input", "data")
"""Columns that are taken for samples, the first that is there; else the only one beside the target."""


class Item(NamedTuple):
    """A sample and its target."""

    sample: np.ndarray
    target: np.ndarray


def dataset(
    train: Any,
    test: Any = None,
    validation: Any = None,
    num_classes: int | None = None,
    columns: tuple[str, str] | None = None,
    name: str = "own",
) -> Dataset:
    """A dataset in memory; its parts as ``npz`` has them (two of three, or all).

    Args:
      train, test, validation: parts, as above. uint8 images are pixels, standardised by the training part.
      num_classes: C; None = 1 + the largest of the training targets.
      columns: of the sample and of the target, where items are tables; None: by their names.
      name: what messages call it.

    Raises:
      DatasetError: a part is nothing that yields samples; samples of several shapes; no column that is known; and what
        ``npz`` refuses.
    """
    given = {"train": train, "val": validation, "test": test}
    naming = {part: (f"{part} inputs", f"{part} targets") for part, each in given.items() if each is not None}
    if "train" not in naming or len(naming) < 2:
        raise dataset_error(name, "parts", ", ".join(naming) or "none", "train, and validation or test or both")
    arrays = {part: list(_collect(name, part, given[part], columns)) for part in naming}
    return build(source_of(Path(name), naming, arrays, None, num_classes))._replace(name=name)


def store(
    folder: str | os.PathLike[str],
    train: Any,
    test: Any = None,
    validation: Any = None,
    columns: tuple[str, str] | None = None,
) -> Path:
    """Write parts into a folder as ``esper.tolaria.formats.npy_folder`` reads it, a sample at a time.

    Args:
      folder: where; made if it is not there. Its files are written anew.
      train, test, validation, columns: as ``dataset`` has them.

    Returns:
      the folder.

    Raises:
      DatasetError: as ``dataset``, as far as it can be seen by one sample alone.
      OSError: it cannot be written.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for part, each in (("train", train), ("val", validation), ("test", test)):
        if each is not None:
            _write(place, part, each, columns)
    return place


def _collect(name: str, part: str, source: Any, columns: tuple[str, str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a part, whole."""
    if _is_pair(source):
        return _array(source[0]), _array(source[1])
    items, count = _items(name, part, source, columns)
    inputs = targets = np.empty(0)
    for number, item in enumerate(items):
        if number == 0:
            inputs = np.empty((count, *item.sample.shape), item.sample.dtype)
            targets = np.empty((count, *item.target.shape), item.target.dtype)
        _expect_alike(name, part, number, item, inputs, targets)
        inputs[number], targets[number] = item
    return inputs, targets


def _write(place: Path, part: str, source: Any, columns: tuple[str, str] | None) -> None:
    """The two files of a part; inputs are uint8 or become float32."""
    if _is_pair(source):
        source = _Pairs(*map(_array, source))
    items, count = _items(str(place), part, source, columns)
    kept, first = np.empty(count, np.int64), None
    with open(place / f"{part}_inputs.npy", "wb") as file:
        for number, (sample, target) in enumerate(items):
            sample = _first(sample) if sample.dtype == np.uint8 else sample.astype(np.float32)
            if first is None:
                first = sample
                header = {"descr": sample.dtype.str, "fortran_order": False, "shape": (count, *sample.shape)}
                np.lib.format.write_array_header_1_0(file, header)
            if (sample.shape, sample.dtype) != (first.shape, first.dtype) or target.size != 1:
                raise _odd(str(place), part, number, Item(sample, target), first)
            file.write(np.ascontiguousarray(sample).tobytes())
            kept[number] = target.item()
    np.save(place / f"{part}_targets.npy", kept)


class _Pairs:
    """Arrays as a map-style dataset."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.inputs[index], self.targets[index]


def _is_pair(source: Any) -> bool:
    is_two = isinstance(source, tuple | list) and len(source) == 2
    return is_two and all(isinstance(each, np.ndarray | Tensor) for each in source)


def _items(name: str, part: str, source: Any, columns: tuple[str, str] | None) -> tuple[Iterator[Item], int]:
    """The items of a part one by one, and how many there are; more or fewer are an error."""
    by_index = hasattr(source, "__getitem__") and not isinstance(source, Mapping)
    if not hasattr(source, "__len__") or not (by_index or isinstance(source, Iterable)):
        expected = "arrays (inputs, targets), or a dataset with a length and items by index or in turn"
        raise dataset_error(name, part, type(source).__name__, expected)
    count = len(source)
    if count == 0:
        raise dataset_error(name, part, "no samples", "at least 1 sample")

    def each() -> Iterator[Item]:
        number = -1
        for number, item in enumerate(source[i] for i in range(count)) if by_index else enumerate(source):
            if number >= count:
                break
            yield _item(name, f"{part}[{number}]", item, columns)
        if number + 1 != count:
            raise dataset_error(name, part, f"{number + 1} samples or more", f"{count}, as its length says")

    return each(), count


def _item(name: str, place: str, item: Any, columns: tuple[str, str] | None) -> Item:
    if isinstance(item, Mapping):
        first, second = columns or _columns(name, place, item)
        missing = [column for column in (first, second) if column not in item]
        if missing:
            raise dataset_error(name, place, f"no column {missing[0]!r}", f"one of {', '.join(map(repr, item))}")
        return Item(_array(item[first]), _array(item[second]))
    if isinstance(item, tuple | list) and len(item) >= 2:
        return Item(_array(item[0]), _array(item[1]))
    raise dataset_error(name, place, type(item).__name__, "a pair (sample, target), or a table of columns")


def _columns(name: str, place: str, item: Mapping[str, Any]) -> tuple[str, str]:
    """Columns of the sample and of the target."""
    target = next((column for column in TARGETS if column in item), None)
    others = [column for column in item if column != target]
    sample = next((column for column in INPUTS if column in item), others[0] if len(others) == 1 else None)
    if target is None or sample is None:
        raise dataset_error(name, place, f"columns {', '.join(map(repr, item))}", "columns=(SAMPLE, TARGET)")
    return sample, target


def _array(value: Any) -> np.ndarray:
    """Numbers, a tensor, or an image, as an array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _first(pixels: np.ndarray) -> np.ndarray:
    """An image with its channels first; they are last where only that can be."""
    last = pixels.ndim == 3 and pixels.shape[2] in CHANNELS and pixels.shape[0] > max(CHANNELS)
    return np.moveaxis(pixels, 2, 0) if last else pixels


def _expect_alike(name: str, part: str, number: int, item: Item, inputs: np.ndarray, targets: np.ndarray) -> None:
    """Raise unless a sample and its target have the shape and type of the first."""
    for value, whole in zip(item, (inputs, targets), strict=True):
        if value.shape != whole.shape[1:] or value.dtype != whole.dtype:
            raise _odd(name, part, number, item, whole[0])


def _odd(name: str, part: str, number: int, item: Item, first: np.ndarray) -> DatasetError:
    found = f"a sample {item.sample.dtype} {list(item.sample.shape)} with a target {list(item.target.shape)}"
    expected = f"{np.asarray(first).dtype} {list(np.shape(first))} as the first of them, and one target"
    return dataset_error(name, f"{part}[{number}]", found, expected)
