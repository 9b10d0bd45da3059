"""CIFAR-10's binary version: every pixel in its place, and what is wrong with a file said with its place."""

import statistics

import numpy as np
import pytest
import torch

from esper.tolaria.data import DatasetError
from esper.tolaria.formats.cifar10 import cifar10, read_cifar10
from esper.tolaria.formats.source import pixel_scale
from esper.tolaria.split import OWN_TEST, tenth

RECORDS = 3


@pytest.fixture
def folder(sound, tmp_path):
    return sound.write(tmp_path / "cifar", sound.cifar10(RECORDS))


def places():
    """Batch and record of every sample of every part: a tenth of the five batches validates."""
    trained = [(batch, record) for batch in range(5) for record in range(RECORDS)]
    taken = tenth(len(trained)).tolist()
    assert len(taken) == 1
    return {
        "train": [place for index, place in enumerate(trained) if index not in taken],
        "validation": [trained[index] for index in taken],
        "test": [(5, record) for record in range(RECORDS)],
    }


def test_every_pixel_and_label_is_where_the_format_says(folder, sound):
    source = read_cifar10(folder)
    for name, origins in places().items():
        part = getattr(source, name)
        assert part.inputs.shape == (len(origins), 3, 32, 32) and part.targets.shape == (len(origins),)
        for index, (batch, record) in enumerate(origins):
            assert part.targets[index] == sound.cifar_label(batch, record)
            for channel, row, column in ((0, 0, 0), (0, 0, 31), (0, 31, 0), (1, 5, 9), (2, 31, 31), (2, 0, 7)):
                value = sound.cifar_pixel(batch, record, channel, row, column)
                assert part.inputs[index, channel, row, column] == value


def test_inputs_are_standardised_per_channel_by_the_training_part(folder, sound):
    dataset = cifar10(folder)
    assert dataset.num_classes == 10 and dataset.train.inputs.dtype == torch.float32
    assert dataset.train.inputs.is_contiguous() and dataset.train.targets.dtype == torch.int64
    assert dataset.split == OWN_TEST
    for channel in range(3):
        pixels = {
            name: [
                sound.cifar_pixel(batch, record, channel, y, x)
                for batch, record in origins
                for y in range(32)
                for x in range(32)
            ]
            for name, origins in places().items()
        }
        mean, std = statistics.fmean(pixels["train"]), statistics.pstdev(pixels["train"])
        for name, part in dataset.parts.items():
            expected = torch.tensor([(pixel - mean) / std for pixel in pixels[name]], dtype=torch.float64)
            torch.testing.assert_close(part.inputs[:, channel].flatten().double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 1024, 1025, 2049])
def test_the_scale_is_that_of_all_pixels(count):
    pixels = np.arange(count * 4, dtype=np.int64).reshape(count, 2, 2, 1) ** 2 // 7 % 256
    mean, std = pixel_scale(pixels.astype(np.uint8))
    for channel in range(2):
        values = pixels[:, channel].ravel().tolist()
        assert mean[channel] == pytest.approx(statistics.fmean(values), rel=1e-14)
        assert std[channel] == pytest.approx(statistics.pstdev(values), rel=1e-14)


def test_the_folder_that_the_archive_unpacks_to_is_found_inside(sound, tmp_path, folder):
    sound.write(tmp_path / "outer" / "cifar-10-batches-bin", sound.cifar10(RECORDS))
    inner, plain = cifar10(tmp_path / "outer"), cifar10(folder)
    assert torch.equal(inner.train.inputs, plain.train.inputs) and torch.equal(
        inner.validation.targets, plain.validation.targets
    )


def test_class_names_are_read_and_may_be_absent(folder, sound):
    assert read_cifar10(folder).class_names == tuple(sound.CIFAR_NAMES)
    (folder / "batches.meta.txt").unlink()
    assert read_cifar10(folder).class_names == ()


def test_a_file_holds_ten_thousand_records_at_most(folder, sound):
    record = sound.cifar_batch(0, 2)
    path = folder / "data_batch_1.bin"
    path.write_bytes(record * 5000)
    with pytest.raises(DatasetError, match=r"data_batch_2\.bin: byte 9219: .* 10000, as many as data_batch_1\.bin"):
        cifar10(folder)
    path.write_bytes(record * 5000 + record[:3073])
    with pytest.raises(DatasetError, match=r"data_batch_1\.bin: file: found 30733073 bytes, .* 30730000 bytes"):
        cifar10(folder)


def test_errors_name_file_place_and_what_was_expected(folder, sound):
    path = folder / "data_batch_3.bin"
    whole = path.read_bytes()
    label = bytearray(whole)
    label[2 * 3073] = 10
    for content, message in (
        (whole[:-1], "record 2 (byte 6146): found 3072 bytes and the end of the file, expected 3073 bytes"),
        (whole[:3073], "byte 3073: found the end after 1 records, expected 3, as many as data_batch_1.bin holds"),
        (label, "record 2 (byte 6146): found label 10, expected a label from 0 to 9"),
        (b"", "file: found 0 bytes, expected 1 to 30730000 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError) as error:
            cifar10(folder)
        assert str(error.value) == f"{path}: {message}"


def test_the_pickled_version_is_named_and_not_read(folder):
    for path in sorted(folder.glob("*.bin")):
        path.rename(path.with_suffix(""))
    with pytest.raises(DatasetError, match=r"data_batch_1\.bin: file: found no such file but a pickled data_batch_1,"):
        cifar10(folder)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(DatasetError, match=r"found a file, expected the folder with data_batch_1\.bin"):
        cifar10(folder / "data_batch_1.bin")
