"""Detection: one format for a path or an error, never a guess; and what a check reports."""

import os

import numpy as np
import pytest

from esper.tolaria.data import DatasetError
from esper.tolaria.formats.detect import FORMATS, check, detect
from esper.tolaria.formats.files import broken, listing
from esper.tolaria.split import HALVES, OWN_TEST, tenth


@pytest.fixture
def paths(sound, tmp_path):
    """A sound dataset of each format, by name."""
    sound.write(tmp_path / "text", {"a.txt": "zwei Wörter\n".encode()})
    sound.write(tmp_path / "npz", {"a.npz": sound.packed(sound.npz_members())})
    for part, count in (("train", 6), ("test", 3)):
        (tmp_path / "npy").mkdir(exist_ok=True)
        np.save(tmp_path / "npy" / f"{part}_inputs.npy", np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2))
        np.save(tmp_path / "npy" / f"{part}_targets.npy", np.arange(count) % 2)
    return {
        "cifar10": sound.write(tmp_path / "cifar10", sound.cifar10()),
        "idx": sound.write(tmp_path / "idx", sound.idx(gz=True)),
        "npz": tmp_path / "npz" / "a.npz",
        "npy": tmp_path / "npy",
        "text": tmp_path / "text" / "a.txt",
    }


def test_each_format_is_known(paths):
    assert {name: detect(path).name for name, path in paths.items()} == {name: name for name in paths}
    assert {kind.name for kind in FORMATS} | {"text"} == set(paths)


def test_archives_are_known_by_their_bytes_and_broken_ones_by_their_name(paths, tmp_path):
    paths["npz"].rename(tmp_path / "renamed")
    assert detect(tmp_path / "renamed").name == "npz"
    (tmp_path / "b.npz").write_bytes(b"garbage")
    assert detect(tmp_path / "b.npz").name == "npz"


def test_a_dataset_with_one_file_left_is_still_that_dataset(paths):
    for name, keep in (("cifar10", "test_batch.bin"), ("idx", "t10k-labels-idx1-ubyte.gz")):
        for path in sorted(paths[name].iterdir()):
            if path.name != keep:
                path.unlink()
        assert detect(paths[name]).name == name
        with pytest.raises(DatasetError, match="found no such file"):
            check(paths[name])
        assert detect(paths[name] / keep).name == name  # a file of the dataset stands for its format, and is refused
        with pytest.raises(DatasetError, match="found a file, expected the folder"):
            check(paths[name] / keep)


def test_nothing_and_several_are_refused(paths, sound, tmp_path):
    with pytest.raises(DatasetError, match="nowhere: path: found nothing, expected a dataset's folder or file"):
        detect(tmp_path / "nowhere")
    with pytest.raises(
        DatasetError, match=r"found no dataset, expected one of: a folder with data_batch_1\.bin \(cifar10\)"
    ):
        detect(sound.write(tmp_path / "empty", {}))
    sound.write(paths["idx"], sound.cifar10())
    with pytest.raises(DatasetError, match="found files of cifar10 and files of idx, expected one of"):
        detect(paths["idx"])


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "a/" * 3000])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(DatasetError, match="found nothing"):
        check(name)


def test_a_pipe_is_not_waited_for(paths, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="found no dataset"):
        check(tmp_path / "pipe")
    (paths["cifar10"] / "data_batch_2.bin").unlink()
    os.mkfifo(paths["cifar10"] / "data_batch_2.bin")
    with pytest.raises(
        DatasetError, match=r"data_batch_2\.bin: file: found a folder or device, expected a regular file"
    ):
        check(paths["cifar10"])


def test_errors_are_one_line_that_any_terminal_takes():
    error = broken("folder/a\nb\udcff\u2028c", "byte 1", "x\r\ny", "z")
    assert str(error) == "folder/a b\\udcff c: byte 1: found x y, expected z"
    assert str(error).splitlines() == [str(error)] and str(error).encode()


def test_reports(paths, sound):
    report = check(paths["cifar10"])
    assert report.num_classes == 10 and report.class_names == tuple(sound.CIFAR_NAMES) and len(report.used) == 7
    train, validation, test = report.parts
    labels = [sound.cifar_label(batch, record) for batch in range(6) for record in range(2)]
    taken = labels.pop(int(tenth(10)))
    assert train.counts == tuple(labels[:9].count(label) for label in range(10))
    assert validation.counts == tuple(int(label == taken) for label in range(10))
    assert test.counts == tuple(labels[9:].count(label) for label in range(10))
    assert (train.name, train.records, train.shape, train.dtype) == ("train", 9, (3, 32, 32), "uint8")
    assert (validation.name, validation.records, test.name) == ("validation", 1, "test") and report.split == OWN_TEST
    pixels = [
        sound.cifar_pixel(5, n, c, y, x) for n in range(2) for c in range(3) for y in range(32) for x in range(32)
    ]
    assert (test.records, test.low, test.high) == (2, min(pixels), max(pixels))
    report = check(paths["npz"])
    assert [part.records for part in report.parts] == [6, 1, 2] and report.split == HALVES
    part = report.parts[0]
    assert (part.records, part.shape, part.dtype, part.low, part.high) == (6, (1, 2, 2), "float32", -3.0, 1.25)
    part = check(paths["text"]).parts[0]
    assert (part.records, part.low, part.high) == (12, ord("\n"), ord("ö")) and check(paths["text"]).num_classes == 10


def test_a_number_of_classes_is_heeded_or_refused(paths):
    assert check(paths["idx"], num_classes=12).num_classes == 12
    assert check(paths["npz"], num_classes=12).num_classes == 12
    assert check(paths["cifar10"], num_classes=10).num_classes == 10
    for name in ("cifar10", "text"):
        with pytest.raises(DatasetError, match="number of classes: found 12 asked for"):
            check(paths[name], num_classes=12)


def test_listing_names_files_and_sizes_two_levels_deep(sound, tmp_path):
    sound.write(tmp_path / "b" / "deep", {"hidden": b""})
    sound.write(tmp_path / "b", {"inner": b"12"})
    sound.write(tmp_path, {"z": b"1", "a": b""})
    assert [tuple(entry) for entry in listing(tmp_path)] == [("a", 0), ("z", 1), ("b/inner", 2)]
    assert listing(tmp_path / "z") == (("z", 1),)
