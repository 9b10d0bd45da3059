"""Gaussian clusters: a dataset of any shape and size."""

import math

import torch

from esper.tolaria.data import Dataset, Part, dataset_error, validate
from esper.utils import rng

_PROTOTYPES, _TRAIN, _VALIDATION, _TEST = range(4)  # streams folded into the key

SPLIT = "every part drawn on its own"


def synthetic(
    input_shape: tuple[int, ...] = (1, 8, 8),
    num_classes: int = 10,
    num_train: int = 512,
    num_val: int = 256,
    num_test: int = 256,
    noise: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Gaussian clusters, one per class, at any shape and size: for tests, examples and measurements.

    Sample ``i`` of any part is ``prototype[i % num_classes] + noise * e`` with prototypes and ``e`` standard normal
    (float32, no unit). It depends on ``seed``, the part, ``i``, ``num_classes`` and ``noise`` alone, so asking for
    more samples keeps those there were.

    Args:
      input_shape: shape of one sample.
      num_classes: number of classes, at least 2.
      num_train: training samples, at least 1.
      num_val: validation samples, at least 1.
      num_test: test samples, at least 1.
      noise: standard deviation of a sample around its prototype, finite and not negative.
      seed: which dataset of this kind, in ``[0, 2**64)``.

    Returns:
      Inputs float32 [num_train, *input_shape] and so on.

    Raises:
      DatasetError: an argument is out of its range.
    """
    counts = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
    _check(input_shape, {"num_classes": num_classes} | counts, noise, seed)
    key = rng.key(seed)
    prototypes = rng.normal(rng.fold_in(key, _PROTOTYPES), (num_classes, *input_shape))

    def part(stream: int, size: int) -> Part:
        index = torch.arange(size, device=prototypes.device)
        targets = index % num_classes
        noises = rng.normal(rng.fold_in(key, stream, index), tuple(input_shape))
        return Part(prototypes[targets] + noise * noises, targets)

    streams = zip((_TRAIN, _VALIDATION, _TEST), counts.values(), strict=True)
    train, validation, test = (part(stream, size) for stream, size in streams)
    return validate(Dataset("synthetic", train, validation, test, num_classes, SPLIT), input_shape)


def _check(input_shape: tuple[int, ...], sizes: dict[str, int], noise: float, seed: int) -> None:
    """Raise unless the arguments of ``synthetic`` are in range; ``sizes`` are its counts by name."""
    for field, size in sizes.items():
        least = 2 if field == "num_classes" else 1
        if size < least:
            raise dataset_error("synthetic", field, str(size), f"at least {least}")
    if not input_shape or min(input_shape) < 1:
        raise dataset_error("synthetic", "input_shape", str(tuple(input_shape)), "one or more sizes, each at least 1")
    if not (math.isfinite(noise) and noise >= 0):
        raise dataset_error("synthetic", "noise", str(noise), "a finite number, not negative")
    if not 0 <= seed < 2**64:
        raise dataset_error("synthetic", "seed", str(seed), "an integer in [0, 2**64)")
