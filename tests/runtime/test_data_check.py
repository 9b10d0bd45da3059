"""``esper data check``: what it says of sound and broken datasets."""

import io
import json
import struct

import numpy as np
import pytest

from esper.runtime.data_check import data_check
from esper.tolaria.data import DatasetError
from esper.tolaria.split import tenth
from esper.utils.settings import SettingsError


def said(*words):
    out = io.StringIO()
    data_check(["check", *map(str, words)], out)
    return out.getvalue()


@pytest.fixture
def mnist(tmp_path):
    """Two classes of 2x3 images: four to train on, of which one validates, two to test with."""
    for name, count in (("train", 4), ("t10k", 2)):
        pixels, labels = bytes(range(6 * count)), bytes(n % 2 for n in range(count))
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 2, 3) + pixels
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels)
    (tmp_path / "readme").write_text("not a part of it")
    return tmp_path


def test_a_folder(mnist):
    taken = int(tenth(4))
    kept = [record for record in range(4) if record != taken]
    names = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"
    assert said(mnist, "--classes", 2).splitlines() == [
        str(mnist),
        "  readme                              16 bytes",
        "  t10k-images-idx3-ubyte              28 bytes",
        "  t10k-labels-idx1-ubyte              10 bytes",
        "  train-images-idx3-ubyte             40 bytes",
        "  train-labels-idx1-ubyte             12 bytes",
        f"format idx, read: {names}",
        "split       test: its own; validation: a tenth of the training samples, drawn by a fixed key",
        f"train       3 records of uint8 1x2x3, values {kept[0] * 6} to {kept[-1] * 6 + 5}",
        f"            2 classes: 0 {sum(n % 2 == 0 for n in kept)}, 1 {sum(n % 2 for n in kept)}",
        f"validation  1 records of uint8 1x2x3, values {taken * 6} to {taken * 6 + 5}",
        f"            2 classes: 0 {1 - taken % 2}, 1 {taken % 2}",
        "test        2 records of uint8 1x2x3, values 0 to 11",
        "            2 classes: 0 1, 1 1",
        "ok",
    ]
    assert "10 classes: 0 1, 1 1, 2 0, 3 0, 4 0, 5 0, 6 0, 7 0, 8 0, 9 0\n" in said(mnist)


def test_a_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(100 * "ab\r\nbä".encode())
    assert said(path).splitlines()[2:] == [
        "format text, read: a.txt",
        "text        500 characters, 4 different, U+000A to U+00E4",
        "ok",
    ]


def test_many_classes_are_summed_up(tmp_path):
    targets = np.repeat(np.arange(100), 2)
    targets[0] = 1
    inputs = np.linspace(-1.5, 2, 200)[:, None, None, None]
    held_out = {
        f"{part}_{kind}": rows[2:3]
        for part in ("val", "test")
        for kind, rows in (("inputs", inputs), ("targets", targets))
    }
    np.savez(tmp_path / "a.npz", train_inputs=inputs, train_targets=targets, **held_out)
    report = said(tmp_path / "a.npz").splitlines()
    assert report[2:] == [
        "format npz, read: train_inputs, train_targets, val_inputs, val_targets, test_inputs, test_targets",
        "split       the three parts as the archive names them",
        "train       200 records of float32 1x1x1, values -1.5 to 2",
        "            100 classes: 1 to 3 of each, 0 absent",
        f"validation  1 records of float32 1x1x1, values {inputs[2].item():.7g} to {inputs[2].item():.7g}",
        "            100 classes: 0 to 1 of each, 99 absent",
        f"test        1 records of float32 1x1x1, values {inputs[2].item():.7g} to {inputs[2].item():.7g}",
        "            100 classes: 0 to 1 of each, 99 absent",
        "ok",
    ]


def test_json(mnist):
    answer = json.loads(said(mnist, "--json", "--classes", "2"))
    assert answer["ok"] and answer["error"] is None and answer["format"] == answer["report"]["format"] == "idx"
    assert {"name": "readme", "size": 16} in answer["files"] and answer["path"] == str(mnist)
    assert [part["name"] for part in answer["report"]["parts"]] == ["train", "validation", "test"]
    assert "a tenth" in answer["report"]["split"]
    assert answer["report"]["parts"][2] == {
        "name": "test",
        "records": 2,
        "shape": [1, 2, 3],
        "dtype": "uint8",
        "low": 0,
        "high": 11,
        "counts": [1, 1],
    }


def test_a_broken_dataset_is_listed_and_then_refused(mnist):
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    out = io.StringIO()
    with pytest.raises(DatasetError, match=r"t10k-labels-idx1-ubyte: file: found no such file"):
        data_check(["check", str(mnist)], out)
    assert "train-labels-idx1-ubyte             12 bytes" in out.getvalue() and "\nok" not in out.getvalue()
    out = io.StringIO()
    with pytest.raises(DatasetError) as error:
        data_check(["check", str(mnist), "--json"], out)
    answer = json.loads(out.getvalue())
    assert answer["error"] == str(error.value) and answer["ok"] is False and answer["report"] is None


def test_nothing_and_no_dataset_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: path: found nothing"):
        said(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="found no dataset, expected one of"):
        said(tmp_path)
    out = io.StringIO()
    with pytest.raises(DatasetError):
        data_check(["check", str(tmp_path / "nowhere"), "--json"], out)
    answer = json.loads(out.getvalue())
    assert answer["files"] == [] and answer["format"] is None and "found nothing" in answer["error"]


@pytest.mark.parametrize(
    "words",
    [[], ["check"], ["list", "x"], ["check", "x", "y\nz"], ["check", "x", "--classes", "two"], ["check", "--x"]],
)
def test_other_words_are_one_line(words):
    with pytest.raises(SettingsError, match=r"^(?!esper)[^\n]+$"):
        data_check(words, io.StringIO())


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        data_check(["--help"])
    assert stop.value.code == 0 and "--classes N" in capsys.readouterr().out


def test_an_undecodable_name_is_escaped(tmp_path):
    path = tmp_path / "a\udcff.txt"
    path.write_bytes(150 * b"abc")
    assert "a\\udcff.txt" in said(path) and said(path).encode()
    path.write_bytes(b"a\0c")
    with pytest.raises(DatasetError, match=r"a\\udcff\.txt: byte 1: found NUL"):
        said(path)
