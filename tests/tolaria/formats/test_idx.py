"""IDX: the MNIST family's four files, plain or gzipped."""

import gzip
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.tolaria.data import DatasetError
from esper.tolaria.formats.idx import IdxFiles, idx, read_idx, read_idx_dataset
from esper.tolaria.split import OWN_TEST, tenth

TRAIN, TEST = 6, 3


@pytest.fixture
def folder(sound, tmp_path):
    return sound.write(tmp_path / "mnist", sound.idx((TRAIN, TEST)))


def places():
    """File (0 = train, 1 = t10k) and record of every sample of every part: a tenth of the training images validates."""
    (taken,) = tenth(TRAIN).tolist()
    kept = [(0, record) for record in range(TRAIN) if record != taken]
    return {"train": kept, "validation": [(0, taken)], "test": [(1, record) for record in range(TEST)]}


@pytest.mark.parametrize(("mark", "gz"), [("-", False), (".", False), ("-", True), (".", True)])
def test_every_pixel_and_label_is_where_the_format_says(sound, tmp_path, mark, gz):
    source = read_idx_dataset(sound.write(tmp_path, sound.idx((TRAIN, TEST), mark, gz)))
    for name, origins in places().items():
        part = getattr(source, name)
        assert part.inputs.shape == (len(origins), 1, sound.ROWS, sound.COLUMNS) and part.inputs.dtype == np.uint8
        expected = [
            [[[sound.idx_pixel(file, n, y, x) for x in range(sound.COLUMNS)] for y in range(sound.ROWS)]]
            for file, n in origins
        ]
        assert part.inputs.tolist() == expected
        assert part.targets.tolist() == [sound.idx_label(file, n) for file, n in origins]


def test_inputs_are_standardised_by_the_training_part(folder, sound):
    dataset = idx(folder)
    places_of = [(y, x) for y in range(sound.ROWS) for x in range(sound.COLUMNS)]
    pixels = {
        name: [sound.idx_pixel(file, n, y, x) for file, n in origins for y, x in places_of]
        for name, origins in places().items()
    }
    mean, std = statistics.fmean(pixels["train"]), statistics.pstdev(pixels["train"])
    for name, part in dataset.parts.items():
        expected = torch.tensor([(pixel - mean) / std for pixel in pixels[name]], dtype=torch.float64)
        torch.testing.assert_close(part.inputs.flatten().double(), expected, rtol=1e-6, atol=1e-6)
    assert dataset.num_classes == 10 and dataset.train.targets.dtype == torch.int64 and dataset.split == OWN_TEST


@given(
    sizes=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    gz=st.booleans(),
    data=st.data(),
)
def test_any_array_reads_back(sound, tmp_path_factory, sizes, gz, data):
    content = data.draw(st.binary(min_size=int(np.prod(sizes)), max_size=int(np.prod(sizes))))
    path = tmp_path_factory.mktemp("any") / ("a.gz" if gz else "a")
    whole = sound.idx_array(sizes, content)
    path.write_bytes(gzip.compress(whole) if gz else whole)
    array = read_idx(path, rank=3)
    assert array.shape == tuple(sizes) and array.tobytes() == content


def test_files_may_be_named_one_by_one(folder, sound):
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    for place, name in enumerate(names):
        (folder / name).rename(folder / f"file{place}")
    dataset = idx(IdxFiles(*(folder / f"file{place}" for place in range(4))))
    assert dataset.train.targets.tolist() == [sound.idx_label(*place) for place in places()["train"]]
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte: file: found no such file, expected it or .*\.gz"):
        idx(folder)


def test_of_several_spellings_the_plain_one_with_a_dash_is_read(folder, sound):
    other = sound.idx((TRAIN, TEST), mark=".")
    sound.write(folder, {name: b"never read" for name in other})
    sound.write(folder, {name + ".gz": b"never read" for name in other})
    assert idx(folder).sizes == {"train": TRAIN - 1, "validation": 1, "test": TEST}


def test_more_classes_are_asked_for(folder, sound):
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(sound.idx_array((TRAIN,), (0, 1, 2, 46, 4, 5)))
    with pytest.raises(DatasetError) as error:
        idx(folder)
    assert str(error.value) == f"{path}: record 3 (byte 11): found label 46, expected a label from 0 to 9"
    assert idx(folder, num_classes=47).num_classes == 47


def test_members_of_a_gzip_file_follow_one_another(folder, sound):
    """RFC 1952, 2.2: a gzip file is a series of members."""
    whole = (folder / "train-images-idx3-ubyte").read_bytes()
    path = folder / "two.gz"
    path.write_bytes(gzip.compress(whole[:30]) + gzip.compress(whole[30:]))
    assert read_idx(path, rank=3).tobytes() == whole[16:]


@pytest.mark.parametrize("gz", [False, True])
def test_errors_name_file_place_and_what_was_expected(folder, sound, gz):
    path = folder / ("broken.gz" if gz else "broken")
    pixels = bytes(24)
    unsized = "the end" if gz else "39 bytes"
    place = "byte 39" if gz else "size"
    size = "40 bytes, as its header with sizes (2, 3, 4) says"
    magic = "expected 0x00000803: unsigned byte, images [records, rows, columns]"
    for whole, message in (
        (sound.idx_array((2, 3, 4), pixels[1:]), f"{place}: found {unsized}, expected {size}"),
        (
            sound.idx_array((2, 12), pixels),
            f"byte 0 (magic number): found 0x00000802: unsigned byte, 2 dimensions, {magic}",
        ),
        (
            sound.idx_array((2, 3, 4), pixels, kind=0x0D),
            f"byte 0 (magic number): found 0x00000D03: float (4 bytes), 3 dimensions, {magic}",
        ),
        (b"PK\x03\x04", f"byte 0 (magic number): found 0x504B0304: not an IDX file, {magic}"),
        (sound.idx_array((2, 0, 4), b""), "byte 8: found sizes (2, 0, 4), expected sizes of at least 1"),
        (sound.idx_array((2, 3, 4), b"")[:10], "byte 10: found the end, expected a header of 16 bytes"),
    ):
        path.write_bytes(gzip.compress(whole) if gz else whole)
        with pytest.raises(DatasetError) as error:
            read_idx(path, rank=3)
        assert str(error.value) == f"{path}: {message}"


def test_a_size_is_refused_before_the_data_are_read(folder, sound):
    """By the file's own size, and for gzip by what that could unpack to: 1032 bytes from a byte."""
    path = folder / "broken"
    path.write_bytes(sound.idx_array((2, 3, 4), bytes(25)))
    with pytest.raises(
        DatasetError, match=r"size: found 41 bytes, expected 40 bytes, as its header with sizes \(2, 3, 4\)"
    ):
        read_idx(path, rank=3)
    packed = gzip.compress(sound.idx_array((2, 1000, 1000), bytes(24)))
    path = path.rename(folder / "broken.gz")
    path.write_bytes(packed)
    room = f"room for at most {1032 * len(packed)} bytes"
    with pytest.raises(DatasetError, match=rf"size: found {room}, expected 2000016 bytes, as its header with sizes"):
        read_idx(path, rank=3)


def test_images_and_labels_belong_together(folder, sound):
    labels = folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(sound.idx_labels(1, TEST + 1))
    with pytest.raises(DatasetError) as error:
        idx(folder)
    expected = f"{TEST}, one for each image of t10k-images-idx3-ubyte"
    assert str(error.value) == f"{labels}: byte 4: found {TEST + 1} labels, expected {expected}"
    labels.write_bytes(sound.idx_labels(1, TEST))
    (folder / "t10k-images-idx3-ubyte").write_bytes(sound.idx_array((TEST, 4, 5), bytes(TEST * 20)))
    with pytest.raises(DatasetError, match=r"t10k-images-idx3-ubyte: byte 8: found images of 4x5, expected 5x4, as"):
        idx(folder)


def test_one_training_image_cannot_be_split(sound, tmp_path):
    path = sound.write(tmp_path, sound.idx((1, 1)))
    with pytest.raises(DatasetError) as error:
        idx(path)
    said = "byte 4: found 1 training sample, expected at least 2, to take some out for validation"
    assert str(error.value) == f"{path / 'train-images-idx3-ubyte'}: {said}"


def test_pixels_that_never_vary_are_refused(folder, sound):
    (folder / "train-images-idx3-ubyte").write_bytes(sound.idx_array((TRAIN, 5, 4), b"\x07" * (TRAIN * 20)))
    with pytest.raises(DatasetError, match="training inputs, channel 0: found only the pixel value 7, expected pixels"):
        idx(folder)


@pytest.mark.parametrize("classes", [0, 1, 257, 10**9])
def test_a_number_of_classes_that_no_byte_can_say_is_refused(folder, classes):
    with pytest.raises(DatasetError, match=rf"mnist: classes: found {classes}, expected 2 to 256"):
        idx(folder, classes)
