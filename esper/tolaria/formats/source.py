"""What the files of a dataset hold, as they hold it, and how it becomes a ``esper.tolaria.data.Dataset``."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.tolaria import split
from esper.tolaria.data import Dataset, Part, validate
from esper.tolaria.formats.files import broken
from esper.tolaria.mapped import Scale, standardise

LEVELS = 256
"""Values of a pixel."""

_BLOCK = 1024  # records counted at a time: bincount widens them eightfold


class StoredPart(NamedTuple):
    """One part of a dataset as stored.

    Attributes:
      inputs: uint8 ``[N, C, H, W]`` are pixels; float32 ``[N, *shape]`` and int64 ``[N, T]`` are used as they are.
      targets: int64 ``[N]`` or, for int64 inputs, ``[N, T]``.
    """

    inputs: np.ndarray
    targets: np.ndarray


class Source(NamedTuple):
    """A dataset as stored, in three parts.

    Attributes:
      format: its name.
      path: the folder or file that errors name.
      train: what to train on.
      validation: what to decide on.
      test: what to report on.
      num_classes: number of classes.
      class_names: one for each class, or none at all.
      used: files and arrays that were read, by name.
      split: where the three parts come from.
    """

    format: str
    path: Path
    train: StoredPart
    validation: StoredPart
    test: StoredPart
    num_classes: int
    class_names: tuple[str, ...]
    used: tuple[str, ...]
    split: str


def take_tenth(path: Path, place: str, train: StoredPart) -> tuple[StoredPart, StoredPart]:
    """Take validation out of training: what is left to train on, and a tenth of the samples, at least one.

    Args:
      path, place: what an error names.
      train: N samples; both parts keep their order.

    Raises:
      DatasetError: fewer than 2 samples.
    """
    count = len(train.targets)
    if count < 2:
        raise broken(path, place, f"{count} training sample", "at least 2, to take some out for validation")
    chosen, rest = _apart(train, split.tenth(count))
    return rest, chosen


def halve(path: Path, place: str, held_out: StoredPart) -> tuple[StoredPart, StoredPart]:
    """Split samples that were held out: half of them for validation, the others for the test.

    Args:
      path, place: what an error names.
      held_out: N samples; both parts keep their order.

    Raises:
      DatasetError: fewer than 2 samples.
    """
    count = len(held_out.targets)
    if count < 2:
        raise broken(path, place, f"{count} sample", "at least 2, to be split into validation and test")
    return _apart(held_out, split.half(count))


def _apart(part: StoredPart, index: Tensor) -> tuple[StoredPart, StoredPart]:
    """The samples of an index, and the others."""
    chosen = np.zeros(len(part.targets), dtype=bool)
    chosen[index.numpy()] = True
    first, second = (StoredPart(part.inputs[which], part.targets[which]) for which in (chosen, ~chosen))
    return first, second


def build(source: Source) -> Dataset:
    """The dataset of a source, named by its path; pixels are standardised as ``standardise`` says.

    Raises:
      DatasetError: ``esper.tolaria.data.validate`` refuses it, or the training pixels do not vary.
    """
    scale = None
    if source.train.inputs.dtype == np.uint8:
        scale = pixel_scale(source.train.inputs)
        if 0 in scale.std:
            channel = scale.std.index(0)
            place, found = f"training inputs, channel {channel}", f"only the pixel value {scale.mean[channel]:.0f}"
            raise broken(source.path, place, found, "pixels that vary")

    def part(stored: StoredPart) -> Part:
        inputs = torch.from_numpy(stored.inputs) if scale is None else pixels_of(stored.inputs, scale)
        return Part(inputs, torch.from_numpy(stored.targets))

    train, validation, test = map(part, (source.train, source.validation, source.test))
    made = Dataset(str(source.path), train, validation, test, source.num_classes, source.split, scale=scale)
    return validate(made)


def pixel_scale(pixels: np.ndarray) -> Scale:
    """The scale of uint8 ``[N, C, H, W]``, N >= 1."""
    return scale_of(pixels[start : start + _BLOCK] for start in range(0, len(pixels), _BLOCK))


def scale_of(blocks: Iterable[np.ndarray]) -> Scale:
    """The scale of pixels uint8 ``[n, C, H, W]``, some at a time: the population's, from exact sums, so alike on every
    machine.
    """
    value, tallies = np.arange(LEVELS), np.zeros((), dtype=np.int64)
    for block in blocks:
        channels = np.moveaxis(block, 1, 0)
        tallies = tallies + np.stack([np.bincount(each.ravel(), minlength=LEVELS) for each in channels])
    mean, std = [], []
    for tally in tallies:
        count, total, squares = int(tally.sum()), int(tally @ value), int(tally @ value**2)
        mean.append(total / count)
        std.append((count * squares - total**2) ** 0.5 / count)
    return Scale(tuple(mean), tuple(std))


def pixels_of(pixels: np.ndarray, scale: Scale) -> Tensor:
    """``standardise``, from an array.

    With the training part's own scale it has mean 0 and variance 1 there. In units of 255 the scale of MNIST is
    0.1307 and 0.3081, that of CIFAR-10 (0.4914, 0.4822, 0.4465) and (0.2470, 0.2435, 0.2616).
    """
    return standardise(torch.from_numpy(pixels), scale)
