"""The contract of datasets: three parts, whole tensors on the device, split once and for all.

A dataset lives on the device in full, so a training step gathers its minibatches by index and no loader, worker or
host copy takes part; or its training and test inputs stay in files (``esper.tolaria.mapped``), and an epoch's samples
are read by index before it begins. The split is part of the dataset: it never depends on a seed.

What trains, what decides and what is reported are different samples. Minibatches come from ``train``. ``validation``
is what gates, rewards, observations and policies see, epoch by epoch. ``test`` is read by ``Engine.test`` alone: at the
end of an evaluation, for its report, and never in a step.

Builders (``digits``, ``synthetic``, ``characters``, ``markov``, and those of ``formats``) return datasets that
``validate`` has accepted; data from elsewhere goes through ``validate`` first, and what is wrong with it comes
back as one line.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.contexts import FIXED, Variation
from esper.tolaria.mapped import MappedInputs, Scale


class DatasetError(ValueError):
    """A dataset cannot be used; the message is one line: dataset, field, what was found, what was expected."""


class Part(NamedTuple):
    """Samples of one part of a dataset.

    Attributes:
      inputs: floating [N, *shape], in memory or in a file; tokens: int64 [N, T] in ``[0, num_classes)``.
      targets: int64 [N], class indices in ``[0, num_classes)``; with tokens [N, T].
    """

    inputs: Tensor | MappedInputs
    targets: Tensor

    @property
    def held(self) -> Tensor:
        """The inputs in memory; those in a file are read, all of them."""
        return self.inputs if isinstance(self.inputs, Tensor) else self.inputs[:]

    @property
    def samples(self) -> tuple[Tensor, Tensor]:
        """Inputs, in memory, and targets."""
        return self.held, self.targets

    @property
    def size(self) -> int:
        """Samples N."""
        return self.targets.shape[0]

    def take(self, index: Tensor | slice) -> "Part":
        """The samples of an index (int64 [M], or bool [N]) or a slice."""
        return Part(self.inputs[index], self.targets[index])


class Dataset(NamedTuple):
    """A classification dataset in three parts, all of it on one device.

    A sample has one target; or it is a sequence of tokens, and every position has one (the token that follows). The
    tokens of inputs and targets are then the same classes.

    Attributes:
      name: what messages and records call it.
      train: what minibatches are drawn from, N samples.
      validation: what decisions are made on, V samples; same sample shape and dtype.
      test: what reports are made on, samples that nothing else reads; same sample shape and dtype.
      num_classes: number of classes, at least 2. A class may be absent from any part.
      split: where the three parts come from, for records.
      variation: how environments differ in what they are given.
      at_levels: the training part once for every level of input noise, level after level; None without such noise.
      scale: what pixels were standardised by, ``(pixel - mean) / std`` in float32; None: they were not.
    """

    name: str
    train: Part
    validation: Part
    test: Part
    num_classes: int
    split: str = "as given"
    variation: Variation = FIXED
    at_levels: Part | None = None
    scale: Scale | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample (without the sample axis)."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def has_tokens(self) -> bool:
        """Whether samples are sequences of tokens, with a target at every position."""
        return not self.train.inputs.is_floating_point()

    @property
    def parts(self) -> dict[str, Part]:
        """The three parts by their names."""
        return {name: getattr(self, name) for name in PARTS}

    @property
    def sizes(self) -> dict[str, int]:
        """Samples of every part by its name."""
        return {name: part.size for name, part in self.parts.items()}

    def record(self) -> dict[str, object]:
        """Name, sizes, split, variation and pixels' scale, JSON-able: what the figures of a run were measured on."""
        found: dict[str, object] = {"name": self.name, "samples": self.sizes, "split": self.split}
        further = {"variation": self.variation.record(), "pixels": self.scale and self.scale._asdict()}
        return found | {name: value for name, value in further.items() if value}

    def describe(self) -> str:
        """A line: name, sizes, and where the parts come from."""
        counts = " + ".join(f"{size:,} {name}" for name, size in self.sizes.items())
        names = ", ".join(self.variation.distributions)
        differ = f"; environments differ in {names}" if names else ""
        return f"data {self.name}: {counts} samples; {self.split}{differ}"

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Dataset":
        """Return the dataset on ``device`` with floating inputs as ``dtype``; tokens and targets stay int64.

        Samples come to lie one after the other, whatever view they were: kernels read them in place. Those of training
        and test that stay in files are read to there later; validation comes to lie in memory. Values are not looked
        at: after a cast that can overflow (float16), ``validate`` tells.

        Raises:
          DatasetError: ``dtype`` is not a floating type.
        """
        if not dtype.is_floating_point:
            raise dataset_error(self.name, "inputs", f"a cast to {dtype}", "a floating dtype")
        kind = torch.int64 if self.has_tokens else dtype

        def moved(part: Part) -> Part:
            return Part(part.inputs.to(device, kind).contiguous(), part.targets.to(device))

        validation = Part(*self.validation.samples)
        return self._replace(train=moved(self.train), validation=moved(validation), test=moved(self.test))


PARTS = ("train", "validation", "test")
"""Names of the parts, in the order of their fields."""


def dataset_error(name: str, field: str, found: str, expected: str) -> DatasetError:
    """The one-line error: ``dataset 'name': field: found ..., expected ...`` (line breaks become spaces)."""
    return DatasetError(" ".join(f"dataset {name!r}: {field}: found {found}, expected {expected}".split()))


def validate(dataset: Dataset, input_shape: tuple[int, ...] | None = None) -> Dataset:
    """Return ``dataset`` unchanged if training can use it, or say in one line why it cannot.

    It reads every value and waits for the device, so it belongs where a dataset is made or loaded, not in a step.

    Args:
      dataset: any device; any floating dtype, or int64 tokens.
      input_shape: shape of one sample that the consumer (a host's input) expects; None accepts any.

    Raises:
      DatasetError: fewer than 2 classes; a part that is none; a field that is no tensor; no samples; inputs neither
        floating nor tokens, of rank below 2 or with an empty axis; targets not int64 or not of rank 1 (with tokens:
        of another shape than the inputs); inputs and targets that differ in length; parts that differ in sample
        shape, dtype or device; a sample shape other than ``input_shape``; non-finite inputs; tokens or labels
        outside ``[0, num_classes)``. The first of these, in this order, is the one named.
    """
    name, num_classes = dataset.name, dataset.num_classes
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise dataset_error(name, "num_classes", repr(num_classes), "an integer of at least 2")
    for field, part in dataset.parts.items():
        if not isinstance(part, Part):
            raise dataset_error(name, field, type(part).__name__, "a Part(inputs, targets)")
        _check_inputs(name, f"{field}.inputs", part.inputs)
        _check_targets(name, f"{field}.targets", part.targets, part.inputs)
    for field, part in dataset.parts.items():
        _check_alike(name, field, part, dataset.train)
    if input_shape is not None and dataset.input_shape != tuple(input_shape):
        raise dataset_error(name, "train.inputs", f"sample shape {dataset.input_shape}", f"{tuple(input_shape)}")
    for field, part in dataset.parts.items():
        if dataset.has_tokens:
            _check_range(name, f"{field}.inputs", part.held, num_classes, "token")
        else:
            for first, inputs in _in_turn(part.inputs):
                _check_finite(name, f"{field}.inputs", inputs, first)
        _check_range(name, f"{field}.targets", part.targets, num_classes, "label")
    return dataset


def _check_inputs(name: str, field: str, inputs: Tensor | MappedInputs) -> None:
    """Raise unless ``inputs`` is a floating tensor [N, *shape] or tokens [N, T], with samples in it."""
    if not isinstance(inputs, Tensor | MappedInputs):
        raise dataset_error(name, field, type(inputs).__name__, "a torch.Tensor")
    shape = tuple(inputs.shape)
    if inputs.ndim < 2:
        raise dataset_error(name, field, f"rank {inputs.ndim} (shape {shape})", "rank 2 or more, [samples, *shape]")
    if len(inputs) == 0:
        raise dataset_error(name, field, f"no samples (shape {shape})", "at least 1 sample")
    if 0 in shape:
        raise dataset_error(name, field, f"an empty axis (shape {shape})", "sizes of at least 1")
    if not inputs.is_floating_point() and inputs.dtype != torch.int64:
        raise dataset_error(name, field, f"dtype {inputs.dtype}", "a floating dtype, or torch.int64 for tokens")
    if inputs.dtype == torch.int64 and inputs.ndim != 2:
        raise dataset_error(
            name, field, f"tokens of rank {inputs.ndim} (shape {shape})", "rank 2, [samples, positions]"
        )


def _check_targets(name: str, field: str, targets: Tensor, inputs: Tensor | MappedInputs) -> None:
    """Raise unless ``targets`` is an int64 tensor [samples], or one of the shape of tokens."""
    if not isinstance(targets, Tensor):
        raise dataset_error(name, field, type(targets).__name__, "a torch.Tensor")
    if inputs.dtype == torch.int64 and targets.shape != inputs.shape:
        expected = f"{tuple(inputs.shape)}, one for each token of the inputs"
        raise dataset_error(name, field, f"shape {tuple(targets.shape)}", expected)
    if inputs.is_floating_point() and targets.ndim != 1:
        raise dataset_error(name, field, f"rank {targets.ndim} (shape {tuple(targets.shape)})", "rank 1, [samples]")
    if len(targets) != len(inputs):
        raise dataset_error(name, field, f"{len(targets)} targets", f"{len(inputs)}, one for each sample of the inputs")
    if targets.dtype != torch.int64:
        raise dataset_error(name, field, f"dtype {targets.dtype}", "torch.int64")


def _check_alike(name: str, field: str, part: Part, train: Part) -> None:
    """Raise unless a part has the sample shape, the input dtype and the device of the training part."""
    shape, dtype, device = tuple(train.inputs.shape[1:]), train.inputs.dtype, train.inputs.device
    if part.inputs.shape[1:] != shape:
        found = f"sample shape {tuple(part.inputs.shape[1:])}"
        raise dataset_error(name, f"{field}.inputs", found, f"{shape} as in train.inputs")
    if part.inputs.dtype != dtype:
        raise dataset_error(name, f"{field}.inputs", f"dtype {part.inputs.dtype}", f"{dtype} as in train.inputs")
    for which, tensor in (("inputs", part.inputs), ("targets", part.targets)):
        if tensor.device != device:
            raise dataset_error(name, f"{field}.{which}", f"device {tensor.device}", f"{device} as train.inputs")


def _in_turn(inputs: Tensor | MappedInputs) -> Iterator[tuple[int, Tensor]]:
    """All numbers, with the place of the first sample; those of a file some at a time, and no pixels."""
    if isinstance(inputs, Tensor):
        yield 0, inputs
    elif inputs.scale is None:
        first = 0
        for block in inputs.blocks():
            yield first, torch.from_numpy(block)
            first += len(block)


def _check_finite(name: str, field: str, inputs: Tensor, before: int = 0) -> None:
    """Raise if ``inputs`` [N, *shape] holds NaN or infinity, naming how many values and the first sample, of which
    there are so many ``before``.
    """
    if bool(torch.isfinite(inputs.sum(dtype=torch.float64))):  # then every one is; the masks below are as large again
        return
    bad = ~torch.isfinite(inputs)
    count = int(bad.sum())
    if count:
        first = before + int(bad.flatten(1).any(1).nonzero()[0])
        found = f"{count} non-finite value(s), the first in sample {first}"
        raise dataset_error(name, field, found, "finite values only")


def _check_range(name: str, field: str, values: Tensor, num_classes: int, word: str) -> None:
    """Raise if a label or token of ``values`` [N, ...] is no class, naming the first one and its place."""
    bad = ((values < 0) | (values >= num_classes)).nonzero()
    if len(bad):
        place = bad[0].tolist()
        found = f"{word} {int(values[tuple(place)])} at index {', '.join(map(str, place))}"
        raise dataset_error(name, field, found, f"{word}s in [0, {num_classes})")
