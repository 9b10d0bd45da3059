"""NPZ: two arrays for each part, whoever wrote them, and nothing unpickled."""

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.tolaria.data import DatasetError
from esper.tolaria.formats.npy import DTYPES, read_npy
from esper.tolaria.formats.npz import NAMED, npz, read_npz
from esper.tolaria.split import HALVES, OWN_TEST

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
TARGETS = np.array([0, 1, 2, 1, 0, 2])


def arrays(inputs, targets=TARGETS):
    return {"train_inputs": inputs, "train_targets": targets, "val_inputs": inputs[:3], "val_targets": targets[:3]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.npz"


@pytest.mark.parametrize("method", METHODS)
def test_every_value_is_where_the_format_says(sound, path, method):
    path.write_bytes(sound.packed(sound.npz_members((6, 3, 4)), method))
    dataset = npz(path)
    assert dataset.num_classes == 3 and dataset.train.inputs.dtype == torch.float32
    assert dataset.sizes == {"train": 6, "validation": 3, "test": 4} and dataset.split == NAMED
    for part, (inputs, targets) in enumerate(dataset.parts.values()):
        count = len(targets)
        expected = [[[[sound.npz_value(part, n, 2 * y + x) for x in range(2)] for y in range(2)]] for n in range(count)]
        assert inputs.tolist() == expected and targets.tolist() == [n % 3 for n in range(count)]


def test_of_two_parts_the_held_out_one_is_split(path):
    """Every sample is a number of its own, so that it can be found again."""
    inputs, targets = np.arange(20.0)[:, None], np.arange(20) % 3
    held_out = {"val_inputs": inputs[:9] + 100, "val_targets": targets[:9]}
    np.savez(path, train_inputs=inputs, train_targets=targets, **held_out)
    data = npz(path)
    assert data.sizes == {"train": 20, "validation": 4, "test": 5} and data.split == HALVES
    assert data.train.inputs.flatten().tolist() == list(range(20))
    halves = [part.inputs.flatten().int().tolist() for part in (data.validation, data.test)]
    assert sorted(halves[0] + halves[1]) == list(range(100, 109)) and all(half == sorted(half) for half in halves)
    for part in data.parts.values():
        assert part.targets.tolist() == [int(value) % 100 % 3 for value in part.inputs.flatten().tolist()]
    np.savez(path, train_inputs=inputs, train_targets=targets, val_inputs=inputs[:1], val_targets=targets[:1])
    with pytest.raises(DatasetError, match="val_targets: found 1 sample, expected at least 2, to be split into"):
        npz(path)


@pytest.mark.parametrize("names", [("train", "test"), ("x_train", "x_test")])
def test_a_test_part_is_kept_and_validation_is_taken_out_of_training(path, names):
    inputs, targets = np.arange(30.0)[:, None], np.arange(30) % 3
    parts = {names[0]: (inputs, targets), names[1]: (inputs[:7] + 100, targets[:7])}
    labels = {name: (f"{name}_inputs", f"{name}_targets") for name in names}
    if names[0] == "x_train":
        labels = {name: (name, name.replace("x", "y")) for name in names}
    np.savez(path, **{label: array for name in names for label, array in zip(labels[name], parts[name], strict=True)})
    data = npz(path)
    assert data.sizes == {"train": 27, "validation": 3, "test": 7} and data.split == OWN_TEST
    assert data.test.inputs.flatten().tolist() == list(range(100, 107))
    shown = [part.inputs.flatten().int().tolist() for part in (data.train, data.validation)]
    assert sorted(shown[0] + shown[1]) == list(range(30)) and all(rows == sorted(rows) for rows in shown)
    for part in data.parts.values():
        assert part.targets.tolist() == [int(value) % 100 % 3 for value in part.inputs.flatten().tolist()]


def test_half_a_part_is_no_part(path):
    np.savez(path, **arrays(np.zeros((6, 2))), test_inputs=np.zeros((3, 2)))
    with pytest.raises(
        DatasetError, match=r"arrays: found .*'test_inputs', .*expected train_inputs, train_targets with"
    ):
        npz(path)


@given(
    descr=st.tuples(st.sampled_from("<>"), st.sampled_from(DTYPES)).map("".join),
    shape=st.lists(st.integers(1, 4), max_size=4).map(tuple),
    fortran=st.booleans(),
    version=st.sampled_from([1, 2, 3]),
)
def test_arrays_read_as_numpy_writes_them(descr, shape, fortran, version):
    array = (np.arange(int(np.prod(shape))).reshape(shape) % 100).astype(descr)
    array = np.asfortranarray(array) if fortran and shape else array
    whole = io.BytesIO()
    np.lib.format.write_array(whole, array, version=(version, 0))
    size = whole.tell()
    whole.seek(0)
    read = read_npy(Path("any.npz"), "array", whole, size)
    assert read.shape == shape and read.dtype == array.dtype.newbyteorder("=") and np.array_equal(read, array)
    assert read.flags.c_contiguous and read.flags.writeable


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpys_own_archives_load(path, save):
    inputs = np.linspace(-1, 1, 6 * 8).reshape(6, 8)
    save(path, **arrays(inputs), comment=np.array(["never read"]))
    dataset = npz(path)
    assert torch.equal(dataset.train.inputs, torch.from_numpy(inputs).float())
    assert dataset.train.targets.tolist() == TARGETS.tolist()


def test_pixels_are_standardised_per_channel(path):
    pixels = (np.arange(6 * 2 * 3 * 4).reshape(6, 2, 3, 4) * 7 % 256).astype(np.uint8)
    np.savez(path, **arrays(pixels))
    wide = pixels.astype(np.float64)
    expected = (wide - wide.mean((0, 2, 3), keepdims=True)) / wide.std((0, 2, 3), keepdims=True)
    torch.testing.assert_close(npz(path).train.inputs.double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    np.savez(path, **arrays(pixels[:, 0]))
    grey = npz(path)
    assert grey.input_shape == (1, 3, 4)
    expected = (wide[:, :1] - wide[:, :1].mean()) / wide[:, :1].std()
    torch.testing.assert_close(grey.train.inputs.double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)


def test_tokens_keep_their_numbers(path):
    tokens = np.arange(6 * 5).reshape(6, 5) % 11
    targets = (tokens + 1) % 11
    np.savez(path, **arrays(tokens.astype(np.int32), targets.astype(np.uint16)))
    dataset = npz(path)
    assert dataset.num_classes == 11 and dataset.train.inputs.dtype == torch.int64
    assert dataset.train.inputs.tolist() == tokens.tolist() and dataset.train.targets.tolist() == targets.tolist()
    for changed in (arrays(tokens, targets * 0 + 14), arrays(tokens + 4, targets)):
        np.savez(path, **changed)
        assert npz(path).num_classes == 15


def test_the_names_of_keras_are_accepted(path):
    pixels = (np.arange(6 * 3 * 4).reshape(6, 3, 4) * 7 % 256).astype(np.uint8)
    renamed = dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays(pixels).values(), strict=True))
    np.savez(path, **renamed)
    assert npz(path).input_shape == (1, 3, 4)


def test_where_the_number_of_classes_comes_from(path):
    inputs = np.zeros((6, 2))
    np.savez(path, **arrays(inputs))
    assert npz(path).num_classes == 3 and npz(path, num_classes=5).num_classes == 5
    np.savez(path, **arrays(inputs), num_classes=7)
    assert npz(path).num_classes == 7 and npz(path, num_classes=5).num_classes == 5
    assert read_npz(path).used[-1] == "num_classes"
    with pytest.raises(DatasetError, match=r"train_targets: found label 2 at index 2, expected labels in \[0, 2\)"):
        npz(path, num_classes=2)
    for wrong in (np.array([7]), np.array(7.0), np.array(-1), np.array(2**40)):
        np.savez(path, **arrays(inputs), num_classes=wrong)
        with pytest.raises(DatasetError, match=r"data\.npz: num_classes: found "):
            npz(path)
    np.savez(path, **arrays(inputs, TARGETS + 2**40))
    with pytest.raises(
        DatasetError, match=r"train_targets \(largest \+ 1\): found 1099511627779 classes, expected 2 to"
    ):
        npz(path)


def test_a_label_of_the_validation_part_alone_is_no_class(path):
    values = arrays(np.zeros((6, 2)))
    np.savez(path, **{**values, "val_targets": np.array([0, 1, 3])})
    with pytest.raises(
        DatasetError, match=r"data\.npz: val_targets: found label 3 at index 2, expected labels in \[0, 3"
    ):
        npz(path)


def test_other_names_are_listed(path):
    np.savez(path, images=np.zeros((6, 2)), train_targets=TARGETS)
    with pytest.raises(DatasetError) as error:
        npz(path)
    assert "arrays: found 'images', 'train_targets', expected train_inputs, train_targets with val_inputs" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"val_inputs": np.zeros((3, 2), np.float32)},
            "val_inputs: found dtype float32, expected float64, as train_inputs",
        ),
        ({"train_targets": TARGETS.astype(float)}, "train_targets: found dtype float64, expected integers"),
        (
            {"train_targets": TARGETS[:5]},
            r"train_targets: found shape \(5,\), expected a target for each sample of train_inputs, .* is \(6, 2\)",
        ),
        ({"train_inputs": np.full((6, 2), 1e300)}, "train_inputs: found inf at index 0, 0, expected finite numbers"),
        ({"train_inputs": np.zeros((6, 2), np.complex64)}, "elements '<c8', expected one of f2, f4"),
        ({"train_inputs": np.zeros((6, 2), bool)}, r"elements '\|b1', expected one of f2, f4"),
        ({"train_inputs": np.zeros((6, 0))}, r"shape \(6, 0\), expected at most 8 sizes from 1"),
        ({"train_inputs": np.zeros((6, *[1] * 9))}, "expected at most 8 sizes"),
        ({"train_inputs": np.zeros(6, [("a", "f4")])}, "the header .*, expected a dictionary of descr"),
        (
            {"train_inputs": np.zeros((6, 2), np.uint8), "val_inputs": np.zeros((3, 2), np.uint8)},
            r"uint8 of shape \(6, 2\), expected \[N, H, W\]",
        ),
    ],
)
def test_arrays_of_another_kind_are_refused(path, changes, message):
    np.savez(path, **{**arrays(np.zeros((6, 2))), **changes})
    with pytest.raises(DatasetError, match=message) as error:
        npz(path)
    assert "data.npz" in str(error.value) and "\n" not in str(error.value)


def test_objects_are_not_unpickled(tmp_path, path):
    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    np.savez(path, **{**arrays(np.zeros((6, 2))), "train_targets": np.array([Canary()] * 6, dtype=object)})
    with pytest.raises(
        DatasetError, match=r"array train_targets: found elements '\|O' \(Python objects, which are never"
    ):
        npz(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6, 2), 'more': 1}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (6, 2)}",
        "{'descr': '<f4', 'shape': (6, 2)}",
        "{'descr': '>|f4', 'fortran_order': False, 'shape': (6, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6, -2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 20 + ",)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').mkdir('executed')}",
        "(" * 5000,
        "",
    ],
)
def test_headers_are_matched_and_not_evaluated(tmp_path, header):
    whole = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(48)
    with pytest.raises(DatasetError, match="array a: found "):
        read_npy(tmp_path, "array a", io.BytesIO(whole), len(whole))


def test_the_order_and_spacing_of_a_header_do_not_matter(tmp_path):
    header = b"{ 'shape':(2,3) , 'descr' : '<i2','fortran_order':True }  \n"
    whole = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + struct.pack("<6h", *range(6))
    array = read_npy(tmp_path, "array", io.BytesIO(whole), len(whole))
    assert array.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_an_array_has_the_size_that_header_and_container_say(sound, tmp_path):
    content = sound.npy("<i2", (2, 3), bytes(12))
    says = f"{len(content)} bytes, as its header with shape (2, 3) of int16 says"
    for stream, size, found in (
        (content, len(content) + 1, f"{len(content) + 1} bytes"),
        (content + b"x", len(content), f"more than {len(content)} bytes"),
        (content[:-1], len(content), "its end"),
    ):
        with pytest.raises(DatasetError) as error:
            read_npy(tmp_path, "array a", io.BytesIO(stream), size)
        assert str(error.value) == f"{tmp_path}: array a: found {found}, expected {says}"


def test_a_header_is_ten_thousand_bytes_at_most(tmp_path):
    for length, message in ((10_001, "a header of 10001 bytes, expected at most 10000"), (10_000, "the header '',")):
        whole = b"\x93NUMPY\x02\x00" + struct.pack("<I", length) + b" " * length
        with pytest.raises(DatasetError, match=message):
            read_npy(tmp_path, "array a", io.BytesIO(whole), len(whole))


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        (6, b"\xff\x00", r"zip archive: found damage \(zip file version 25\.5\)"),
        (8, b"\x01\x00", r"zip archive: found damage \(.*train_inputs\.npy.* is encrypted"),
        (8, b"\x20\x00", r"zip archive: found damage \(compressed patched data"),
        (10, b"\x63\x00", r"array train_inputs: found zip method 99, expected 0 \(stored\) or 8 \(DEFLATE\)"),
        (16, b"\x00\x00\x00\x00", r"zip archive: found damage \(Bad CRC-32 for file 'train_inputs\.npy'\)"),
        (24, b"\x00\x00\x00\x7f", r"train_inputs: found 2130706432 bytes packed into 224, expected at most 224 bytes"),
        (42, b"\xff\xff\xff\xff", r"zip archive: found damage \(.*integer\), expected an intact archive"),
    ],
)
def test_entries_of_the_directory_that_are_not_sound(sound, path, place, content, message):
    """Fields of the first central directory header (APPNOTE.TXT, 4.3.12), one changed in each case."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, member in sound.npz_members().items():
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)  # where the entry is, if its own field says to look here
            archive.writestr(info, member)
    changed = bytearray(whole.getvalue())
    start = changed.index(b"PK\x01\x02") + place
    path.write_bytes(changed)
    assert npz(path).num_classes == 3
    changed[start : start + len(content)] = content
    path.write_bytes(changed)
    with pytest.raises(DatasetError, match=message):
        npz(path)


def test_an_array_may_not_be_there_twice(sound, path):
    whole = bytearray(sound.packed({**sound.npz_members(), "val_target$.npy": b""}))
    path.write_bytes(whole.replace(b"val_target$", b"val_targets"))
    with pytest.raises(DatasetError, match=r"zip archive: found an array twice, expected every array once"):
        npz(path)
