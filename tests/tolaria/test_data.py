"""Datasets: what the digits are, what the synthetic clusters obey, and what a broken dataset is told."""

import hashlib
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.tolaria import digits as data
from esper.tolaria.data import PARTS, Dataset, DatasetError, Part, validate
from esper.tolaria.digits import digits
from esper.tolaria.synthetic import synthetic

N, V, T, C = 12, 7, 5, 3


def small() -> Dataset:
    """A sound dataset of 12, 7 and 5 samples of shape [2, 3] in 3 classes."""
    counts = (N, V, T)
    parts = (Part(torch.arange(n * 6, dtype=torch.float32).reshape(n, 2, 3), torch.arange(n) % C) for n in counts)
    return Dataset("small", *parts, C)


@pytest.fixture(scope="module")
def archive() -> tuple[np.ndarray, np.ndarray]:
    with np.load(data.DIGITS_PATH, allow_pickle=False) as file:
        assert set(file.files) == {"images", "labels"}
        return file["images"], file["labels"]


def pixels(inputs: torch.Tensor) -> np.ndarray:
    """The file's pixel values back from standardised inputs [N, 1, 8, 8]."""
    raw = (inputs.double().numpy() * data.DIGITS_STD + data.DIGITS_MEAN) * 16
    assert np.abs(raw - raw.round()).max() < 1e-4
    return raw.round().astype(np.uint8)[:, 0]


# digits


def test_digits_archive_is_the_one_the_readme_names(archive):
    readme = (data.DIGITS_PATH.parent / "README.md").read_text(encoding="utf-8")
    checksum = hashlib.sha256(data.DIGITS_PATH.read_bytes()).hexdigest()
    assert re.findall(r"sha256 of `digits.npz`: `([0-9a-f]{64})`", readme) == [checksum]
    images, labels = archive
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8 and images.min() == 0 and images.max() == 16
    assert labels.shape == (1797,) and labels.dtype == np.uint8 and set(labels.tolist()) == set(range(10))


def test_digits_counts_shapes_and_types():
    ds = digits()
    assert ds.name == "digits" and ds.num_classes == 10 and ds.input_shape == (1, 8, 8)
    assert ds.sizes == {"train": 1437, "validation": 180, "test": 180}
    for name, part in ds.parts.items():
        assert part.inputs.shape == (ds.sizes[name], 1, 8, 8) and part.inputs.dtype == torch.float32
        assert part.targets.shape == (ds.sizes[name],) and part.targets.dtype == torch.int64
    assert ds.describe() == f"data digits: 1,437 train + 180 validation + 180 test samples; {ds.split}"


def test_digits_are_standardised_by_the_training_part():
    ds = digits()
    raw = pixels(ds.train.inputs) / 16
    assert round(float(raw.mean()), 4) == data.DIGITS_MEAN
    assert round(float(raw.std()), 4) == data.DIGITS_STD
    assert abs(ds.train.inputs.mean()) < 1e-3 and abs(ds.train.inputs.std() - 1) < 1e-3


def test_digits_split_is_stratified(archive):
    ds = digits()
    total = np.bincount(archive[1])
    validation, test = (np.bincount(part.targets.numpy()) for part in (ds.validation, ds.test))
    assert np.array_equal(np.bincount(ds.train.targets.numpy()) + validation + test, total)
    for each in (validation, test):
        assert ((each == total // 10) | (each == -(-total // 10))).all() and each.min() >= 17 and each.max() <= 19
    held_out = validation + test
    assert ((held_out == total // 5) | (held_out == -(-total // 5))).all()


def test_digits_split_is_the_documented_one(archive):
    # The rule again, by plain counting: which tenth of a class goes where follows from the samples before it.
    images, labels = archive
    by_class = [i for c in range(10) for i in range(len(labels)) if labels[i] == c]
    places = {"validation": 0, "test": 5}
    index = {name: sorted(i for place, i in enumerate(by_class) if place % 10 == own) for name, own in places.items()}
    index["train"] = sorted(set(range(len(labels))) - {*index["validation"], *index["test"]})
    assert {name: len(rows) for name, rows in index.items()} == {"train": 1437, "validation": 180, "test": 180}
    assert sorted(i for rows in index.values() for i in rows) == list(range(1797))  # disjoint, and the whole file
    for name, part in digits().parts.items():
        assert np.array_equal(pixels(part.inputs), images[index[name]])
        assert np.array_equal(part.targets.numpy(), labels[index[name]])


def test_digits_parts_share_no_image(archive):
    # The file itself repeats no image, so a byte-equal image in two parts would be a leak.
    assert len({image.tobytes() for image in archive[0]}) == 1797
    seen = [image.tobytes() for part in digits().parts.values() for image in pixels(part.inputs)]
    assert len(seen) == len(set(seen)) == 1797


def test_digits_are_the_same_bits_each_time():
    one, other = digits(), digits()
    for name in PARTS:
        assert all(torch.equal(a, b) for a, b in zip(one.parts[name], other.parts[name], strict=True))


def test_digits_labels_belong_to_images():
    ds = digits()
    train = ds.train.inputs.double().numpy().reshape(1437, -1)
    for part in (ds.validation, ds.test):
        rows = part.inputs.double().numpy().reshape(180, -1)
        distance = (rows**2).sum(1)[:, None] - 2 * rows @ train.T + (train**2).sum(1)
        guess = ds.train.targets.numpy()[distance.argmin(1)]
        assert (guess == part.targets.numpy()).mean() > 0.95


def test_digits_without_the_archive(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "DIGITS_PATH", tmp_path / "digits.npz")
    with pytest.raises(DatasetError, match=r"^dataset 'digits': archive: found no file at .*, expected .*$"):
        digits()


# synthetic


def nearest_prototype_accuracy(ds: Dataset) -> float:
    """Validation accuracy of the class means of the training part, in numpy."""
    x, y = ds.train.inputs.numpy().reshape(len(ds.train.inputs), -1), ds.train.targets.numpy()
    means = np.stack([x[y == c].mean(0) for c in range(ds.num_classes)])
    val = ds.validation.inputs.numpy().reshape(len(ds.validation.inputs), -1)
    guess = ((val[:, None] - means) ** 2).sum(2).argmin(1)
    return float((guess == ds.validation.targets.numpy()).mean())


def test_synthetic_is_learnable_at_low_noise_and_not_at_high():
    assert nearest_prototype_accuracy(synthetic(noise=0.1)) == 1.0
    assert nearest_prototype_accuracy(synthetic(noise=1.0)) > 0.95
    assert nearest_prototype_accuracy(synthetic(noise=100.0)) < 0.3


def test_synthetic_without_noise_is_its_prototypes():
    ds = synthetic((5,), num_classes=4, num_train=12, num_val=8, noise=0.0)
    assert torch.equal(ds.train.inputs[:4], ds.train.inputs[4:8])
    assert torch.equal(ds.train.inputs[:4], ds.validation.inputs[:4])
    assert len({tuple(row) for row in ds.train.inputs.tolist()}) == 4


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    num_classes=st.integers(2, 7),
    num_train=st.integers(1, 40),
    num_val=st.integers(1, 40),
    num_test=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
)
def test_synthetic_shapes_and_balance(shape, num_classes, num_train, num_val, num_test, seed):
    ds = synthetic(shape, num_classes, num_train, num_val, num_test, seed=seed)
    assert ds.input_shape == shape and ds.num_classes == num_classes
    assert ds.sizes == {"train": num_train, "validation": num_val, "test": num_test}
    for inputs, targets in ds.parts.values():
        assert inputs.shape == (len(targets), *shape) and inputs.dtype == torch.float32
        assert targets.tolist() == [i % num_classes for i in range(len(targets))]


def test_synthetic_noise_has_its_standard_deviation_and_parts_are_independent():
    clean, noisy = synthetic(noise=0.0), synthetic(noise=2.0)
    train, val, test = (
        (part.inputs - bare.inputs).double()
        for part, bare in zip(noisy.parts.values(), clean.parts.values(), strict=True)
    )
    # 512 * 64 draws: the standard error is 2 / sqrt(2 * 32768), under 0.008; 5 of them.
    assert abs(train.std() - 2) < 0.04 and abs(train.mean()) < 0.06
    assert abs(val.std() - 2) < 0.06 and abs(test.std() - 2) < 0.06
    for one, other in ((train[:256], val), (train[:256], test), (val, test)):
        correlation = (one * other).mean() / (one.std() * other.std())
        assert abs(correlation) < 5 / math.sqrt(256 * 64)


def test_synthetic_seed_decides_the_bits():
    first, again, other = synthetic(seed=3), synthetic(seed=3), synthetic(seed=4)
    for name in PARTS:
        assert torch.equal(first.parts[name].inputs, again.parts[name].inputs)
        assert not torch.equal(first.parts[name].inputs, other.parts[name].inputs)


def test_synthetic_samples_stay_when_more_are_asked_for():
    few, many = synthetic(num_train=20, num_val=10, num_test=5), synthetic(num_train=50, num_val=30, num_test=8)
    for name, part in few.parts.items():
        assert torch.equal(part.inputs, many.parts[name].inputs[: part.size])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes: found 1, expected at least 2"),
        ({"num_classes": 0}, "num_classes: found 0, expected at least 2"),
        ({"num_train": 0}, "num_train: found 0, expected at least 1"),
        ({"num_val": -1}, "num_val: found -1, expected at least 1"),
        ({"num_test": 0}, "num_test: found 0, expected at least 1"),
        ({"input_shape": ()}, "input_shape: found (), expected one or more sizes, each at least 1"),
        ({"input_shape": (3, 0)}, "input_shape: found (3, 0), expected one or more sizes, each at least 1"),
        ({"noise": -1.0}, "noise: found -1.0, expected a finite number, not negative"),
        ({"noise": math.nan}, "noise: found nan, expected a finite number, not negative"),
        ({"seed": -1}, "seed: found -1, expected an integer in [0, 2**64)"),
    ],
)
def test_synthetic_names_a_wrong_argument(arguments, message):
    with pytest.raises(DatasetError) as caught:
        synthetic(**arguments)
    assert str(caught.value) == f"dataset 'synthetic': {message}"


# to


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_casts_inputs_alone(dtype):
    ds = small().to("cpu", dtype)
    assert {part.inputs.dtype for part in ds.parts.values()} == {dtype}
    assert {part.targets.dtype for part in ds.parts.values()} == {torch.int64}
    assert torch.equal(ds.train.inputs.float(), small().train.inputs)
    assert validate(ds) is ds


def test_to_moves_every_tensor():
    ds = small().to("meta", torch.float32)
    assert {value.device.type for part in ds.parts.values() for value in part} == {"meta"}


def test_to_refuses_integers():
    with pytest.raises(DatasetError, match=r"^dataset 'small': inputs: found a cast to torch.int32, expected a float"):
        small().to("cpu", torch.int32)


# validate


def with_value(tensor: torch.Tensor, index: int | tuple[int, ...], value: float) -> torch.Tensor:
    out = tensor.clone()
    out[index] = value
    return out


def changed(ds: Dataset, change: dict) -> Dataset:
    """The dataset with other fields, or with other fields of its parts ("train.inputs")."""
    for path, value in change.items():
        name, _, field = path.partition(".")
        ds = ds._replace(**{name: getattr(ds, name)._replace(**{field: value}) if field else value})
    return ds


S = small()
BROKEN = {
    "one class": ({"num_classes": 1}, "num_classes: found 1, expected an integer of at least 2"),
    "classes no integer": ({"num_classes": 2.5}, "num_classes: found 2.5, expected an integer of at least 2"),
    "classes a bool": ({"num_classes": True}, "num_classes: found True, expected an integer of at least 2"),
    "inputs an array": (
        {"train.inputs": S.train.inputs.numpy()},
        "train.inputs: found ndarray, expected a torch.Tensor",
    ),
    "targets a list": (
        {"validation.targets": S.validation.targets.tolist()},
        "validation.targets: found list, expected a torch.Tensor",
    ),
    "no training samples": (
        {"train.inputs": S.train.inputs[:0], "train.targets": S.train.targets[:0]},
        "train.inputs: found no samples (shape (0, 2, 3)), expected at least 1 sample",
    ),
    "no validation samples": (
        {"validation.inputs": S.validation.inputs[:0], "validation.targets": S.validation.targets[:0]},
        "validation.inputs: found no samples (shape (0, 2, 3)), expected at least 1 sample",
    ),
    "empty axis": (
        {"train.inputs": S.train.inputs[:, :0]},
        "train.inputs: found an empty axis (shape (12, 0, 3)), expected sizes of at least 1",
    ),
    "inputs of rank 1": (
        {"train.inputs": S.train.inputs[:, 0, 0]},
        "train.inputs: found rank 1 (shape (12,)), expected rank 2 or more, [samples, *shape]",
    ),
    "integer inputs": (
        {"validation.inputs": S.validation.inputs.to(torch.uint8)},
        "validation.inputs: found dtype torch.uint8, expected a floating dtype, or torch.int64 for tokens",
    ),
    "complex inputs": (
        {"train.inputs": S.train.inputs.to(torch.complex64)},
        "train.inputs: found dtype torch.complex64, expected a floating dtype, or torch.int64 for tokens",
    ),
    "int32 targets": (
        {"train.targets": S.train.targets.int()},
        "train.targets: found dtype torch.int32, expected torch.int64",
    ),
    "one-hot targets": (
        {"validation.targets": torch.eye(C)[S.validation.targets].long()},
        "validation.targets: found rank 2 (shape (7, 3)), expected rank 1, [samples]",
    ),
    "fewer targets": (
        {"train.targets": S.train.targets[:-1]},
        "train.targets: found 11 targets, expected 12, one for each sample of the inputs",
    ),
    "more targets": (
        {"validation.targets": S.train.targets},
        "validation.targets: found 12 targets, expected 7, one for each sample of the inputs",
    ),
    "sample shapes differ": (
        {"validation.inputs": S.validation.inputs.reshape(V, 3, 2)},
        "validation.inputs: found sample shape (3, 2), expected (2, 3) as in train.inputs",
    ),
    "sample ranks differ": (
        {"validation.inputs": S.validation.inputs.reshape(V, 6)},
        "validation.inputs: found sample shape (6,), expected (2, 3) as in train.inputs",
    ),
    "dtypes differ": (
        {"validation.inputs": S.validation.inputs.double()},
        "validation.inputs: found dtype torch.float64, expected torch.float32 as in train.inputs",
    ),
    "devices differ": (
        {"train.targets": S.train.targets.to("meta")},
        "train.targets: found device meta, expected cpu as train.inputs",
    ),
    "label too high": (
        {"train.targets": with_value(S.train.targets, 5, C)},
        "train.targets: found label 3 at index 5, expected labels in [0, 3)",
    ),
    "label negative": (
        {"validation.targets": with_value(S.validation.targets, 6, -100)},
        "validation.targets: found label -100 at index 6, expected labels in [0, 3)",
    ),
    "nan": (
        {"train.inputs": with_value(S.train.inputs, (4, 1, 2), math.nan)},
        "train.inputs: found 1 non-finite value(s), the first in sample 4, expected finite values only",
    ),
    "infinities": (
        {"validation.inputs": with_value(with_value(S.validation.inputs, 2, math.inf), 5, -math.inf)},
        "validation.inputs: found 12 non-finite value(s), the first in sample 2, expected finite values only",
    ),
    "no test samples": (
        {"test.inputs": S.test.inputs[:0], "test.targets": S.test.targets[:0]},
        "test.inputs: found no samples (shape (0, 2, 3)), expected at least 1 sample",
    ),
    "nan in the test part": (
        {"test.inputs": with_value(S.test.inputs, (4, 1, 2), math.nan)},
        "test.inputs: found 1 non-finite value(s), the first in sample 4, expected finite values only",
    ),
    "a test part that is none": ({"test": None}, "test: found NoneType, expected a Part(inputs, targets)"),
    "name of two lines": ({"name": "a\nb", "num_classes": 0}, None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_validate_names_what_is_wrong(case):
    change, message = BROKEN[case]
    with pytest.raises(DatasetError) as caught:
        validate(changed(small(), change))
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and "found" in text and "expected" in text
    if message is not None:
        assert text == f"dataset 'small': {message}"


def test_validate_returns_what_it_was_given():
    ds = small()
    assert validate(ds) is ds and validate(ds, (2, 3)) is ds and validate(ds, input_shape=None) is ds


def test_validate_holds_the_inputs_to_an_expected_shape():
    with pytest.raises(DatasetError) as caught:
        validate(small(), input_shape=(1, 8, 8))
    assert str(caught.value) == "dataset 'small': train.inputs: found sample shape (2, 3), expected (1, 8, 8)"


def test_validate_accepts_a_part_without_some_class():
    ds = small()
    validate(changed(ds, {"validation.targets": torch.zeros_like(ds.validation.targets)}))


def test_dataset_error_is_a_value_error():
    assert issubclass(DatasetError, ValueError)


@given(
    part=st.sampled_from(PARTS),
    place=st.integers(0, T * 6 - 1),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_validate_finds_one_non_finite_value(part, place, value, dtype):
    ds = small().to("cpu", dtype)
    field = f"{part}.inputs"
    inputs = ds.parts[part].inputs.clone()
    inputs.view(-1)[place] = value
    with pytest.raises(DatasetError) as caught:
        validate(changed(ds, {field: inputs}))
    assert f" {field}: found 1 non-finite value(s), the first in sample {place // 6}, " in str(caught.value)


@given(
    part=st.sampled_from(PARTS),
    place=st.integers(0, T - 1),
    value=st.one_of(st.integers(-(2**63), -1), st.integers(C, 2**63 - 1)),
)
def test_validate_finds_one_label_out_of_range(part, place, value):
    ds = small()
    field = f"{part}.targets"
    targets = ds.parts[part].targets.clone()
    targets[place] = value
    with pytest.raises(DatasetError) as caught:
        validate(changed(ds, {field: targets}))
    assert f" {field}: found label {value} at index {place}, expected labels in [0, 3)" in str(caught.value)
