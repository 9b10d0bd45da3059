"""Splitting: which samples validate and which test, by fixed keys that belong to the project and to no run.

A split is a fact about a dataset. If it depended on a run's seed, the test samples of one run would have trained
another, and figures of two runs would be of different samples.
"""

from torch import Tensor

from esper.tolaria.data import Dataset
from esper.utils import rng

TENTH_KEY, HALF_KEY, SUBSET_KEY = 0x7E27, 0x4A1F, 0x5AB5
"""Seeds of the three draws; they may be any numbers, and must never change."""

TENTH = 10
"""One training sample in so many validates, where a dataset brings a test set and nothing to validate with: 5,000 of
CIFAR-10's 50,000 (as He et al. 2016, "Deep residual learning", split it, 45,000 to 5,000), 6,000 of MNIST's 60,000.
"""

OWN_TEST = "test: its own; validation: a tenth of the training samples, drawn by a fixed key"
HALVES = "val was split by a fixed key: half of it validates, half is the test set"


def draw(seed: int, total: int, number: int) -> Tensor:
    """Which samples are drawn.

    Args:
      seed: of the draw.
      total: samples N there are, >= 1.
      number: samples wanted.

    Returns:
      int64 [min(number, total)], ascending, without repeats. Law: those of a smaller number are among those of a
      larger one.
    """
    return rng.permutation(rng.key(seed), total)[:number].sort().values


def tenth(total: int) -> Tensor:
    """Which of the training samples validate: int64 [max(1, N // 10)], ascending."""
    return draw(TENTH_KEY, total, max(1, total // TENTH))


def half(total: int) -> Tensor:
    """Which of the samples held out validate, the others being the test set: int64 [N // 2], ascending."""
    return draw(HALF_KEY, total, total // 2)


def limit_validation(dataset: Dataset, most: int) -> Dataset:
    """The dataset with at most so many validation samples, drawn by a fixed key; the others are never read.

    Args:
      dataset: three parts.
      most: validation samples V to keep, >= 1.

    Returns:
      the dataset; ``split`` says what was left out. Laws: it depends on the part's size and ``most`` alone; the
      samples of a smaller V are among those of a larger one.
    """
    there = dataset.validation.size
    if most >= there:
        return dataset
    index = draw(SUBSET_KEY, there, most).to(dataset.validation.targets.device)
    said = f"{dataset.split}; of {there:,} validation samples {most:,} are used, drawn by a fixed key"
    return dataset._replace(validation=dataset.validation.take(index), split=said)
