"""The digits: a dataset that comes with Esper."""

from pathlib import Path

import numpy as np
import torch

from esper.tolaria.data import Dataset, Part, dataset_error, validate

DIGITS_PATH = Path(__file__).parent / "datasets" / "digits.npz"
"""The digits archive; its source, licence and checksum are in the README.md beside it."""

DIGITS_MAX = 16.0
"""The largest pixel value of the digits."""

DIGITS_MEAN = 0.3058
"""Mean of ``pixel / 16`` over the training part of the digits (0.30575), rounded to 4 digits."""

DIGITS_STD = 0.3762
"""Standard deviation of ``pixel / 16`` over the training part of the digits (0.37622), rounded to 4 digits."""

DIGITS_STRIDE = 5
"""One digit in so many is held out, for validation and for the test in turn."""

SPLIT = "of every ten samples in the order of classes, the first validates and the sixth is for the test"


def digits() -> Dataset:
    """Handwritten digits: 1,797 grey 8x8 images of 10 classes; 1,437 train, 180 validate, 180 are the test set.

    Inputs are float32 [N, 1, 8, 8], ``(pixel / 16 - DIGITS_MEAN) / DIGITS_STD``: no unit, close to zero mean and
    unit variance over the training part.

    The split is stratified and uses no randomness: order the samples by class, within a class by their place in the
    file; positions 0, 10, 20, ... of that order validate, positions 5, 15, 25, ... are the test set (so every class
    gives a tenth of its samples to either, rounded up or down: 17 to 19), the others train. All parts keep the order of
    the file.

    Source: UCI "Optical Recognition of Handwritten Digits" (test part), Alpaydin and Kaynak, 1998,
    DOI 10.24432/C50P49, CC BY 4.0; see ``datasets/README.md``.

    Raises:
      DatasetError: the archive is not where the package should have it.
    """
    if not DIGITS_PATH.is_file():
        raise dataset_error("digits", "archive", f"no file at {DIGITS_PATH}", "digits.npz as shipped with esper")
    with np.load(DIGITS_PATH, allow_pickle=False) as archive:
        images = torch.from_numpy(archive["images"])
        labels = torch.from_numpy(archive["labels"]).long()
    every = Part(((images.float() / DIGITS_MAX - DIGITS_MEAN) / DIGITS_STD).unsqueeze(1), labels)
    held_out = labels.argsort(stable=True)[::DIGITS_STRIDE]
    trains = torch.ones(len(labels), dtype=torch.bool).index_fill(0, held_out, False)
    validation, test = (every.take(held_out[start::2].sort().values) for start in (0, 1))
    return validate(Dataset("digits", every.take(trains), validation, test, 10, SPLIT), input_shape=(1, 8, 8))
