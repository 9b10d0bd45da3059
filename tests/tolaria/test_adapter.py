"""Whatever yields samples becomes the same dataset: arrays, tensors, datasets by index, in turn and with columns."""

import importlib.util

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset, TensorDataset

from esper.tolaria.adapter import dataset, store
from esper.tolaria.data import DatasetError
from esper.tolaria.formats.npy_folder import npy
from esper.tolaria.formats.npz import npz

DRAW = np.random.default_rng(0)
IMAGES = {part: DRAW.integers(0, 256, (count, 12, 10, 3)).astype(np.uint8) for part, count in (("x", 24), ("v", 9))}
LABELS = {part: np.arange(len(images)) % 3 for part, images in IMAGES.items()}


class ByIndex(TorchDataset):
    """As torchvision's are: an image with its channels last, and a number."""

    def __init__(self, part):
        self.part = part

    def __len__(self):
        return len(IMAGES[self.part])

    def __getitem__(self, index):
        return IMAGES[self.part][index], int(LABELS[self.part][index])


class InTurn:
    """An iterable of known length; ``more`` items than it says."""

    def __init__(self, part, more=0):
        self.part, self.more = part, more

    def __len__(self):
        return len(IMAGES[self.part]) - self.more

    def __iter__(self):
        return iter(zip(torch.from_numpy(IMAGES[self.part]), torch.from_numpy(LABELS[self.part]), strict=True))


class Columns:
    """As Hugging Face's are: a table for each item."""

    def __init__(self, part, names=("image", "label")):
        self.part, self.names = part, names

    def __len__(self):
        return len(IMAGES[self.part])

    def __getitem__(self, index):
        found = dict(zip(self.names, (IMAGES[self.part][index], LABELS[self.part][index]), strict=True))
        return found | {"id": index}


FORMS = {
    "arrays": lambda part: (IMAGES[part], LABELS[part]),
    "tensors": lambda part: (torch.from_numpy(IMAGES[part]), torch.from_numpy(LABELS[part])),
    "by index": ByIndex,
    "in turn": InTurn,
    "columns": Columns,
    "torch": lambda part: TensorDataset(torch.from_numpy(IMAGES[part]), torch.from_numpy(LABELS[part])),
    "subset": lambda part: Subset(ByIndex(part), range(len(IMAGES[part]))),
}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The same arrays by way of an archive."""
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(path, x_train=IMAGES["x"], y_train=LABELS["x"], x_test=IMAGES["v"], y_test=LABELS["v"])
    return npz(path)


def expect_same(found, wanted):
    assert (found.sizes, found.num_classes, found.scale) == (wanted.sizes, wanted.num_classes, wanted.scale)
    for part, other in zip(found.parts.values(), wanted.parts.values(), strict=True):
        assert torch.equal(part.held, other.held) and torch.equal(part.targets, other.targets)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_dataset_in_memory_and_in_files(form, wanted, tmp_path):
    make = FORMS[form]
    found = dataset(make("x"), make("v"))
    expect_same(found, wanted)
    assert found.name == "own" and found.input_shape == (3, 12, 10)
    expect_same(npy(store(tmp_path / "stored", make("x"), make("v"))), wanted)


def test_columns_are_named_or_told(wanted):
    named = Columns("x", ("photo", "kind")), Columns("v", ("photo", "kind"))
    expect_same(dataset(*named, columns=("photo", "kind")), wanted)
    with pytest.raises(DatasetError, match=r"train\[0\]: found columns 'photo', 'kind', 'id', expected columns="):
        dataset(*named)
    with pytest.raises(DatasetError, match=r"found no column 'shot', expected one of 'photo', 'kind', 'id'"):
        dataset(*named, columns=("shot", "kind"))


class Ragged(ByIndex):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image[: 12 - (index == 4)], label


REFUSED = {
    "ragged": (lambda: dataset(Ragged("x"), ByIndex("v")), r"train\[4\]: found a sample uint8 \[11, 10, 3\]"),
    "longer": (lambda: dataset(InTurn("x", 2), InTurn("v")), "train: found 23 samples or more, expected 22"),
    "shorter": (lambda: dataset(InTurn("x", -2), InTurn("v")), "train: found 24 samples or more, expected 26"),
    "no length": (lambda: dataset(iter([]), ByIndex("v")), "train: found list_iterator, expected arrays"),
    "alone": (lambda: dataset(ByIndex("x")), "found train, expected train, and validation or test"),
    "bare": (lambda: dataset([1, 2], ByIndex("v")), r"train\[0\]: found int, expected a pair"),
    "empty": (lambda: dataset([], ByIndex("v")), "train: found no samples"),
    "nan": (lambda: dataset((np.full((4, 2), np.nan), np.arange(4) % 2), (np.zeros((2, 2)), np.arange(2))), "nan at"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_yields_no_samples_is_refused_in_one_line(name):
    make, expected = REFUSED[name]
    with pytest.raises(DatasetError, match=expected) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs Hugging Face's datasets")
def test_hugging_faces_tables(wanted):
    from datasets import Dataset as Table

    def table(part):
        return Table.from_dict({"image": list(IMAGES[part]), "label": LABELS[part].tolist()}).with_format("numpy")

    found = dataset(table("x"), table("v"))
    assert found.sizes == wanted.sizes and torch.equal(found.test.targets, wanted.test.targets)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
def test_torchvisions_datasets():
    from torchvision.datasets import FakeData

    found = dataset(FakeData(20, (3, 12, 12), 4), FakeData(8, (3, 12, 12), 4), num_classes=4)
    assert found.input_shape == (3, 12, 12) and found.sizes == {"train": 18, "validation": 2, "test": 8}
