"""Datasets: whole tensors on the device with a fixed train/validation split.

A dataset is small enough to live on the device in full, so a training step gathers its minibatches by index and no
loader, worker or host copy takes part. The split is part of the dataset: it never depends on a seed.

Builders (``digits``, ``synthetic``) return datasets that ``validate`` has accepted; data from elsewhere
goes through ``validate`` first, and what is wrong with it comes back as one line.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.utils import rng

DIGITS_PATH = Path(__file__).parent / "datasets" / "digits.npz"
"""The digits archive; its source, licence and checksum are in the README.md beside it."""

DIGITS_MAX = 16.0
"""The largest pixel value of the digits."""

DIGITS_MEAN = 0.3058
"""Mean of ``pixel / 16`` over the training part of the digits (0.30575), rounded to 4 digits."""

DIGITS_STD = 0.3762
"""Standard deviation of ``pixel / 16`` over the training part of the digits (0.37622), rounded to 4 digits."""

DIGITS_STRIDE = 5
"""One digit in so many goes to validation."""

_PROTOTYPES, _TRAIN, _VAL = range(3)  # streams folded into the key of a synthetic dataset


class DatasetError(ValueError):
    """A dataset cannot be used; the message is one line: dataset, field, what was found, what was expected."""


class Dataset(NamedTuple):
    """A classification dataset with a fixed split, all of it on one device.

    A sample has one target; or it is a sequence of tokens, and every position has one (the token that follows). The
    tokens of inputs and targets are then the same classes.

    Attributes:
      name: what messages and records call it.
      train_inputs: floating [N, *shape]; tokens: int64 [N, T] in ``[0, num_classes)``.
      train_targets: int64 [N], class indices in ``[0, num_classes)``; with tokens [N, T].
      val_inputs: like the training inputs, [V, *shape], same dtype and sample shape.
      val_targets: int64 [V] or [V, T], class indices in ``[0, num_classes)``.
      num_classes: number of classes, at least 2. A class may be absent from either part.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    val_inputs: Tensor
    val_targets: Tensor
    num_classes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample (without the sample axis)."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def has_tokens(self) -> bool:
        """Whether samples are sequences of tokens, with a target at every position."""
        return not self.train_inputs.is_floating_point()

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Dataset":
        """Return the dataset on ``device`` with floating inputs as ``dtype``; tokens and targets stay int64.

        Samples come to lie one after the other, whatever view they were: kernels read them in place. Values are not
        looked at: after a cast that can overflow (float16), ``validate`` tells.

        Raises:
          DatasetError: ``dtype`` is not a floating type.
        """
        if not dtype.is_floating_point:
            raise _error(self.name, "inputs", f"a cast to {dtype}", "a floating dtype")
        kind = torch.int64 if self.has_tokens else dtype
        return self._replace(
            train_inputs=self.train_inputs.to(device, kind).contiguous(),
            train_targets=self.train_targets.to(device),
            val_inputs=self.val_inputs.to(device, kind).contiguous(),
            val_targets=self.val_targets.to(device),
        )


def digits() -> Dataset:
    """Handwritten digits: 1,797 grey 8x8 images of 10 classes, 1,437 to train on and 360 to validate with.

    Inputs are float32 [N, 1, 8, 8], ``(pixel / 16 - DIGITS_MEAN) / DIGITS_STD``: no unit, close to zero mean and
    unit variance over the training part.

    The split is stratified and uses no randomness: order the samples by class, within a class by their place in the
    file; positions 0, 5, 10, ... of that order are the validation part (so every class gives a fifth of its samples,
    rounded up or down: 35 to 37). Both parts keep the order of the file.

    Source: UCI "Optical Recognition of Handwritten Digits" (test part), Alpaydin and Kaynak, 1998,
    DOI 10.24432/C50P49, CC BY 4.0; see ``datasets/README.md``.

    Raises:
      DatasetError: the archive is not where the package should have it.
    """
    if not DIGITS_PATH.is_file():
        raise _error("digits", "archive", f"no file at {DIGITS_PATH}", "digits.npz as shipped with esper")
    with np.load(DIGITS_PATH, allow_pickle=False) as archive:
        images = torch.from_numpy(archive["images"])
        labels = torch.from_numpy(archive["labels"]).long()
    inputs = ((images.float() / DIGITS_MAX - DIGITS_MEAN) / DIGITS_STD).unsqueeze(1)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[labels.argsort(stable=True)[::DIGITS_STRIDE]] = True
    return validate(
        Dataset("digits", inputs[~held_out], labels[~held_out], inputs[held_out], labels[held_out], 10),
        input_shape=(1, 8, 8),
    )


def synthetic(
    input_shape: tuple[int, ...] = (1, 8, 8),
    num_classes: int = 10,
    num_train: int = 512,
    num_val: int = 256,
    noise: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Gaussian clusters, one per class, at any shape and size: for tests, examples and measurements.

    Sample ``i`` of either part is ``prototype[i % num_classes] + noise * e`` with prototypes and ``e`` standard normal
    (float32, no unit). It depends on ``seed``, the part, ``i``, ``num_classes`` and ``noise`` alone, so asking for
    more samples keeps those there were.

    Args:
      input_shape: shape of one sample.
      num_classes: number of classes, at least 2.
      num_train: training samples, at least 1.
      num_val: validation samples, at least 1.
      noise: standard deviation of a sample around its prototype, finite and not negative.
      seed: which dataset of this kind, in ``[0, 2**64)``.

    Returns:
      Inputs float32 [num_train, *input_shape] and [num_val, *input_shape].

    Raises:
      DatasetError: an argument is out of its range.
    """
    _check_synthetic(input_shape, {"num_classes": num_classes, "num_train": num_train, "num_val": num_val}, noise, seed)
    key = rng.key(seed)
    prototypes = rng.normal(rng.fold_in(key, _PROTOTYPES), (num_classes, *input_shape))

    def part(stream: int, size: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(size, device=prototypes.device)
        targets = index % num_classes
        noises = rng.normal(rng.fold_in(key, stream, index), tuple(input_shape))
        return prototypes[targets] + noise * noises, targets

    return validate(Dataset("synthetic", *part(_TRAIN, num_train), *part(_VAL, num_val), num_classes), input_shape)


def _check_synthetic(input_shape: tuple[int, ...], sizes: dict[str, int], noise: float, seed: int) -> None:
    """Raise unless the arguments of ``synthetic`` are in range; ``sizes`` are its three counts by name."""
    for field, size in sizes.items():
        least = 2 if field == "num_classes" else 1
        if size < least:
            raise _error("synthetic", field, str(size), f"at least {least}")
    if not input_shape or min(input_shape) < 1:
        raise _error("synthetic", "input_shape", str(tuple(input_shape)), "one or more sizes, each at least 1")
    if not (math.isfinite(noise) and noise >= 0):
        raise _error("synthetic", "noise", str(noise), "a finite number, not negative")
    if not 0 <= seed < 2**64:
        raise _error("synthetic", "seed", str(seed), "an integer in [0, 2**64)")


def validate(dataset: Dataset, input_shape: tuple[int, ...] | None = None) -> Dataset:
    """Return ``dataset`` unchanged if training can use it, or say in one line why it cannot.

    It reads every value and waits for the device, so it belongs where a dataset is made or loaded, not in a step.

    Args:
      dataset: any device; any floating dtype, or int64 tokens.
      input_shape: shape of one sample that the consumer (a host's input) expects; None accepts any.

    Raises:
      DatasetError: fewer than 2 classes; a field that is no tensor; no samples; inputs neither floating nor tokens,
        of rank below 2 or with an empty axis; targets not int64 or not of rank 1 (with tokens: of another shape
        than the inputs); inputs and targets that differ in length; parts that differ in sample shape, dtype or
        device; a sample shape other than ``input_shape``; non-finite inputs; tokens or labels outside
        ``[0, num_classes)``. The first of these, in this order, is the one named.
    """
    name, num_classes = dataset.name, dataset.num_classes
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise _error(name, "num_classes", repr(num_classes), "an integer of at least 2")
    parts = (("train", dataset.train_inputs, dataset.train_targets), ("val", dataset.val_inputs, dataset.val_targets))
    for part, inputs, targets in parts:
        _check_inputs(name, f"{part}_inputs", inputs)
        _check_targets(name, f"{part}_targets", targets, inputs)
    _check_parts_agree(dataset)
    if input_shape is not None and dataset.input_shape != tuple(input_shape):
        raise _error(name, "train_inputs", f"sample shape {dataset.input_shape}", f"{tuple(input_shape)}")
    for part, inputs, targets in parts:
        if dataset.has_tokens:
            _check_range(name, f"{part}_inputs", inputs, num_classes, "token")
        else:
            _check_finite(name, f"{part}_inputs", inputs)
        _check_range(name, f"{part}_targets", targets, num_classes, "label")
    return dataset


def _error(name: str, field: str, found: str, expected: str) -> DatasetError:
    """The one-line error: ``dataset 'name': field: found ..., expected ...`` (line breaks become spaces)."""
    return DatasetError(" ".join(f"dataset {name!r}: {field}: found {found}, expected {expected}".split()))


def _check_inputs(name: str, field: str, inputs: Tensor) -> None:
    """Raise unless ``inputs`` is a floating tensor [N, *shape] or tokens [N, T], with samples in it."""
    if not isinstance(inputs, Tensor):
        raise _error(name, field, type(inputs).__name__, "a torch.Tensor")
    shape = tuple(inputs.shape)
    if inputs.ndim < 2:
        raise _error(name, field, f"rank {inputs.ndim} (shape {shape})", "rank 2 or more, [samples, *shape]")
    if len(inputs) == 0:
        raise _error(name, field, f"no samples (shape {shape})", "at least 1 sample")
    if 0 in shape:
        raise _error(name, field, f"an empty axis (shape {shape})", "sizes of at least 1")
    if not inputs.is_floating_point() and inputs.dtype != torch.int64:
        raise _error(name, field, f"dtype {inputs.dtype}", "a floating dtype, or torch.int64 for tokens")
    if inputs.dtype == torch.int64 and inputs.ndim != 2:
        raise _error(name, field, f"tokens of rank {inputs.ndim} (shape {shape})", "rank 2, [samples, positions]")


def _check_targets(name: str, field: str, targets: Tensor, inputs: Tensor) -> None:
    """Raise unless ``targets`` is an int64 tensor [samples], or one of the shape of tokens."""
    if not isinstance(targets, Tensor):
        raise _error(name, field, type(targets).__name__, "a torch.Tensor")
    if inputs.dtype == torch.int64 and targets.shape != inputs.shape:
        expected = f"{tuple(inputs.shape)}, one for each token of the inputs"
        raise _error(name, field, f"shape {tuple(targets.shape)}", expected)
    if inputs.is_floating_point() and targets.ndim != 1:
        raise _error(name, field, f"rank {targets.ndim} (shape {tuple(targets.shape)})", "rank 1, [samples]")
    if len(targets) != len(inputs):
        raise _error(name, field, f"{len(targets)} targets", f"{len(inputs)}, one for each sample of the inputs")
    if targets.dtype != torch.int64:
        raise _error(name, field, f"dtype {targets.dtype}", "torch.int64")


def _check_parts_agree(dataset: Dataset) -> None:
    """Raise unless both parts have one sample shape and input dtype, and all tensors one device."""
    train, val = dataset.train_inputs, dataset.val_inputs
    if val.shape[1:] != train.shape[1:]:
        found = f"sample shape {tuple(val.shape[1:])}"
        raise _error(dataset.name, "val_inputs", found, f"{dataset.input_shape} as in train_inputs")
    if val.dtype != train.dtype:
        raise _error(dataset.name, "val_inputs", f"dtype {val.dtype}", f"{train.dtype} as in train_inputs")
    for field in ("train_targets", "val_inputs", "val_targets"):
        device = getattr(dataset, field).device
        if device != train.device:
            raise _error(dataset.name, field, f"device {device}", f"{train.device} as train_inputs")


def _check_finite(name: str, field: str, inputs: Tensor) -> None:
    """Raise if ``inputs`` [N, *shape] holds NaN or infinity, naming how many values and the first sample."""
    if bool(torch.isfinite(inputs.sum(dtype=torch.float64))):  # then every one is; the masks below are as large again
        return
    bad = ~torch.isfinite(inputs)
    count = int(bad.sum())
    if count:
        first = int(bad.flatten(1).any(1).nonzero()[0])
        raise _error(name, field, f"{count} non-finite value(s), the first in sample {first}", "finite values only")


def _check_range(name: str, field: str, values: Tensor, num_classes: int, word: str) -> None:
    """Raise if a label or token of ``values`` [N, ...] is no class, naming the first one and its place."""
    bad = ((values < 0) | (values >= num_classes)).nonzero()
    if len(bad):
        place = bad[0].tolist()
        found = f"{word} {int(values[tuple(place)])} at index {', '.join(map(str, place))}"
        raise _error(name, field, found, f"{word}s in [0, {num_classes})")
