"""Datasets: what the digits are, what the synthetic clusters obey, and what a broken dataset is told."""

import hashlib
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.tolaria import data
from esper.tolaria.data import Dataset, DatasetError, digits, synthetic, validate

N, V, C = 12, 7, 3


def small() -> Dataset:
    """A sound dataset of 12 and 7 samples of shape [2, 3] in 3 classes."""
    return Dataset(
        "small",
        torch.arange(N * 6, dtype=torch.float32).reshape(N, 2, 3),
        torch.arange(N) % C,
        torch.arange(V * 6, dtype=torch.float32).reshape(V, 2, 3),
        torch.arange(V) % C,
        C,
    )


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
    assert ds.train_inputs.shape == (1437, 1, 8, 8) and ds.val_inputs.shape == (360, 1, 8, 8)
    assert ds.train_inputs.dtype == ds.val_inputs.dtype == torch.float32
    assert ds.train_targets.shape == (1437,) and ds.val_targets.shape == (360,)
    assert ds.train_targets.dtype == ds.val_targets.dtype == torch.int64


def test_digits_are_standardised_by_the_training_part():
    ds = digits()
    raw = pixels(ds.train_inputs) / 16
    assert round(float(raw.mean()), 4) == data.DIGITS_MEAN
    assert round(float(raw.std()), 4) == data.DIGITS_STD
    assert abs(ds.train_inputs.mean()) < 1e-3 and abs(ds.train_inputs.std() - 1) < 1e-3


def test_digits_split_is_stratified(archive):
    ds = digits()
    total = np.bincount(archive[1])
    val = np.bincount(ds.val_targets.numpy())
    assert np.array_equal(np.bincount(ds.train_targets.numpy()) + val, total)
    assert ((val == total // 5) | (val == -(-total // 5))).all()


def test_digits_split_is_the_documented_one(archive):
    # The rule again, by plain counting: which fifth of a class is held out follows from the samples before it.
    images, labels = archive
    by_class = [i for c in range(10) for i in range(len(labels)) if labels[i] == c]
    val = sorted(i for place, i in enumerate(by_class) if place % 5 == 0)
    train = sorted(set(range(len(labels))) - set(val))
    assert (len(train), len(val)) == (1437, 360)  # disjoint, and together the whole file
    ds = digits()
    for index, inputs, targets in ((train, ds.train_inputs, ds.train_targets), (val, ds.val_inputs, ds.val_targets)):
        assert np.array_equal(pixels(inputs), images[index])
        assert np.array_equal(targets.numpy(), labels[index])


def test_digits_parts_share_no_image(archive):
    # The file itself repeats no image, so a byte-equal image in both parts would be a leak.
    assert len({image.tobytes() for image in archive[0]}) == 1797
    ds = digits()
    train = {image.tobytes() for image in pixels(ds.train_inputs)}
    val = {image.tobytes() for image in pixels(ds.val_inputs)}
    assert not train & val and len(train | val) == 1797


def test_digits_are_the_same_bits_each_time():
    for a, b in zip(digits(), digits(), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_digits_labels_belong_to_images():
    ds = digits()
    train = ds.train_inputs.double().numpy().reshape(1437, -1)
    val = ds.val_inputs.double().numpy().reshape(360, -1)
    distance = (val**2).sum(1)[:, None] - 2 * val @ train.T + (train**2).sum(1)
    guess = ds.train_targets.numpy()[distance.argmin(1)]
    assert (guess == ds.val_targets.numpy()).mean() > 0.95


def test_digits_without_the_archive(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "DIGITS_PATH", tmp_path / "digits.npz")
    with pytest.raises(DatasetError, match=r"^dataset 'digits': archive: found no file at .*, expected .*$"):
        digits()


# synthetic


def nearest_prototype_accuracy(ds: Dataset) -> float:
    """Validation accuracy of the class means of the training part, in numpy."""
    x, y = ds.train_inputs.numpy().reshape(len(ds.train_inputs), -1), ds.train_targets.numpy()
    means = np.stack([x[y == c].mean(0) for c in range(ds.num_classes)])
    val = ds.val_inputs.numpy().reshape(len(ds.val_inputs), -1)
    guess = ((val[:, None] - means) ** 2).sum(2).argmin(1)
    return float((guess == ds.val_targets.numpy()).mean())


def test_synthetic_is_learnable_at_low_noise_and_not_at_high():
    assert nearest_prototype_accuracy(synthetic(noise=0.1)) == 1.0
    assert nearest_prototype_accuracy(synthetic(noise=1.0)) > 0.95
    assert nearest_prototype_accuracy(synthetic(noise=100.0)) < 0.3


def test_synthetic_without_noise_is_its_prototypes():
    ds = synthetic((5,), num_classes=4, num_train=12, num_val=8, noise=0.0)
    assert torch.equal(ds.train_inputs[:4], ds.train_inputs[4:8])
    assert torch.equal(ds.train_inputs[:4], ds.val_inputs[:4])
    assert len({tuple(row) for row in ds.train_inputs.tolist()}) == 4


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    num_classes=st.integers(2, 7),
    num_train=st.integers(1, 40),
    num_val=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
)
def test_synthetic_shapes_and_balance(shape, num_classes, num_train, num_val, seed):
    ds = synthetic(shape, num_classes, num_train, num_val, seed=seed)
    assert ds.input_shape == shape and ds.num_classes == num_classes
    for inputs, targets, size in (
        (ds.train_inputs, ds.train_targets, num_train),
        (ds.val_inputs, ds.val_targets, num_val),
    ):
        assert inputs.shape == (size, *shape) and inputs.dtype == torch.float32
        assert targets.tolist() == [i % num_classes for i in range(size)]


def test_synthetic_noise_has_its_standard_deviation_and_parts_are_independent():
    clean, noisy = synthetic(noise=0.0), synthetic(noise=2.0)
    train = (noisy.train_inputs - clean.train_inputs).double()
    val = (noisy.val_inputs - clean.val_inputs).double()
    # 512 * 64 draws: the standard error is 2 / sqrt(2 * 32768), under 0.008; 5 of them.
    assert abs(train.std() - 2) < 0.04 and abs(train.mean()) < 0.06
    assert abs(val.std() - 2) < 0.06
    correlation = (train[:256] * val).mean() / (train[:256].std() * val.std())
    assert abs(correlation) < 5 / math.sqrt(256 * 64)


def test_synthetic_seed_decides_the_bits():
    first, again, other = synthetic(seed=3), synthetic(seed=3), synthetic(seed=4)
    assert torch.equal(first.train_inputs, again.train_inputs) and torch.equal(first.val_inputs, again.val_inputs)
    assert not torch.equal(first.train_inputs, other.train_inputs)
    assert not torch.equal(first.val_inputs, other.val_inputs)


def test_synthetic_samples_stay_when_more_are_asked_for():
    few, many = synthetic(num_train=20, num_val=10), synthetic(num_train=50, num_val=30)
    assert torch.equal(few.train_inputs, many.train_inputs[:20])
    assert torch.equal(few.val_inputs, many.val_inputs[:10])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes: found 1, expected at least 2"),
        ({"num_classes": 0}, "num_classes: found 0, expected at least 2"),
        ({"num_train": 0}, "num_train: found 0, expected at least 1"),
        ({"num_val": -1}, "num_val: found -1, expected at least 1"),
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
    assert ds.train_inputs.dtype == ds.val_inputs.dtype == dtype
    assert ds.train_targets.dtype == ds.val_targets.dtype == torch.int64
    assert torch.equal(ds.train_inputs.float(), small().train_inputs)
    assert validate(ds) is ds


def test_to_moves_every_tensor():
    ds = small().to("meta", torch.float32)
    assert {value.device.type for value in ds if isinstance(value, torch.Tensor)} == {"meta"}


def test_to_refuses_integers():
    with pytest.raises(DatasetError, match=r"^dataset 'small': inputs: found a cast to torch.int32, expected a float"):
        small().to("cpu", torch.int32)


# validate


def with_value(tensor: torch.Tensor, index: int | tuple[int, ...], value: float) -> torch.Tensor:
    out = tensor.clone()
    out[index] = value
    return out


S = small()
BROKEN = {
    "one class": ({"num_classes": 1}, "num_classes: found 1, expected an integer of at least 2"),
    "classes no integer": ({"num_classes": 2.5}, "num_classes: found 2.5, expected an integer of at least 2"),
    "classes a bool": ({"num_classes": True}, "num_classes: found True, expected an integer of at least 2"),
    "inputs an array": (
        {"train_inputs": S.train_inputs.numpy()},
        "train_inputs: found ndarray, expected a torch.Tensor",
    ),
    "targets a list": (
        {"val_targets": S.val_targets.tolist()},
        "val_targets: found list, expected a torch.Tensor",
    ),
    "no training samples": (
        {"train_inputs": S.train_inputs[:0], "train_targets": S.train_targets[:0]},
        "train_inputs: found no samples (shape (0, 2, 3)), expected at least 1 sample",
    ),
    "no validation samples": (
        {"val_inputs": S.val_inputs[:0], "val_targets": S.val_targets[:0]},
        "val_inputs: found no samples (shape (0, 2, 3)), expected at least 1 sample",
    ),
    "empty axis": (
        {"train_inputs": S.train_inputs[:, :0]},
        "train_inputs: found an empty axis (shape (12, 0, 3)), expected sizes of at least 1",
    ),
    "inputs of rank 1": (
        {"train_inputs": S.train_inputs[:, 0, 0]},
        "train_inputs: found rank 1 (shape (12,)), expected rank 2 or more, [samples, *shape]",
    ),
    "integer inputs": (
        {"val_inputs": S.val_inputs.to(torch.uint8)},
        "val_inputs: found dtype torch.uint8, expected a floating dtype, or torch.int64 for tokens",
    ),
    "complex inputs": (
        {"train_inputs": S.train_inputs.to(torch.complex64)},
        "train_inputs: found dtype torch.complex64, expected a floating dtype, or torch.int64 for tokens",
    ),
    "int32 targets": (
        {"train_targets": S.train_targets.int()},
        "train_targets: found dtype torch.int32, expected torch.int64",
    ),
    "one-hot targets": (
        {"val_targets": torch.eye(C)[S.val_targets].long()},
        "val_targets: found rank 2 (shape (7, 3)), expected rank 1, [samples]",
    ),
    "fewer targets": (
        {"train_targets": S.train_targets[:-1]},
        "train_targets: found 11 targets, expected 12, one for each sample of the inputs",
    ),
    "more targets": (
        {"val_targets": S.train_targets},
        "val_targets: found 12 targets, expected 7, one for each sample of the inputs",
    ),
    "sample shapes differ": (
        {"val_inputs": S.val_inputs.reshape(V, 3, 2)},
        "val_inputs: found sample shape (3, 2), expected (2, 3) as in train_inputs",
    ),
    "sample ranks differ": (
        {"val_inputs": S.val_inputs.reshape(V, 6)},
        "val_inputs: found sample shape (6,), expected (2, 3) as in train_inputs",
    ),
    "dtypes differ": (
        {"val_inputs": S.val_inputs.double()},
        "val_inputs: found dtype torch.float64, expected torch.float32 as in train_inputs",
    ),
    "devices differ": (
        {"train_targets": S.train_targets.to("meta")},
        "train_targets: found device meta, expected cpu as train_inputs",
    ),
    "label too high": (
        {"train_targets": with_value(S.train_targets, 5, C)},
        "train_targets: found label 3 at index 5, expected labels in [0, 3)",
    ),
    "label negative": (
        {"val_targets": with_value(S.val_targets, 6, -100)},
        "val_targets: found label -100 at index 6, expected labels in [0, 3)",
    ),
    "nan": (
        {"train_inputs": with_value(S.train_inputs, (4, 1, 2), math.nan)},
        "train_inputs: found 1 non-finite value(s), the first in sample 4, expected finite values only",
    ),
    "infinities": (
        {"val_inputs": with_value(with_value(S.val_inputs, 2, math.inf), 5, -math.inf)},
        "val_inputs: found 12 non-finite value(s), the first in sample 2, expected finite values only",
    ),
    "name of two lines": ({"name": "a\nb", "num_classes": 0}, None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_validate_names_what_is_wrong(case):
    change, message = BROKEN[case]
    with pytest.raises(DatasetError) as caught:
        validate(small()._replace(**change))
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
    assert str(caught.value) == "dataset 'small': train_inputs: found sample shape (2, 3), expected (1, 8, 8)"


def test_validate_accepts_a_part_without_some_class():
    ds = small()
    validate(ds._replace(val_targets=torch.zeros_like(ds.val_targets)))


def test_dataset_error_is_a_value_error():
    assert issubclass(DatasetError, ValueError)


@given(
    part=st.sampled_from(["train", "val"]),
    place=st.integers(0, V * 6 - 1),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_validate_finds_one_non_finite_value(part, place, value, dtype):
    ds = small().to("cpu", dtype)
    field = f"{part}_inputs"
    inputs = getattr(ds, field).clone()
    inputs.view(-1)[place] = value
    with pytest.raises(DatasetError) as caught:
        validate(ds._replace(**{field: inputs}))
    assert f" {field}: found 1 non-finite value(s), the first in sample {place // 6}, " in str(caught.value)


@given(
    part=st.sampled_from(["train", "val"]),
    place=st.integers(0, V - 1),
    value=st.one_of(st.integers(-(2**63), -1), st.integers(C, 2**63 - 1)),
)
def test_validate_finds_one_label_out_of_range(part, place, value):
    ds = small()
    field = f"{part}_targets"
    targets = getattr(ds, field).clone()
    targets[place] = value
    with pytest.raises(DatasetError) as caught:
        validate(ds._replace(**{field: targets}))
    assert f" {field}: found label {value} at index {place}, expected labels in [0, 3)" in str(caught.value)
