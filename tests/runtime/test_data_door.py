"""Datasets as people have them: ``data check`` and training accept the same, and say why not in the same words."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import esper
from esper.__main__ import main
from esper.leyline.config import ConfigError
from esper.runtime.data_check import data_check
from esper.runtime.scripts import play
from esper.runtime.tasks import SOURCES, named
from esper.tolaria.data import DatasetError
from esper.tolaria.formats.npz import npz

TINY = {"steps_per_epoch": 1, "batch_size": 4, "val_samples": 4}


def arrays(shape, dtype=np.uint8, count=24, first=0, classes=4):
    draw = np.random.default_rng(0)
    found = {}
    for part, number in (("train", count), ("test", max(count // 2, 1))):
        found[f"x_{part}"] = draw.integers(0, 256 if dtype == np.uint8 else classes, (number, *shape)).astype(dtype)
        found[f"y_{part}"] = first + np.arange(number) % classes
    return found


def save(path: Path, **contents) -> str:
    np.savez(path, **contents)
    return str(path)


def idx_folder(folder: Path, labels, nested: bool = False) -> str:
    folder.mkdir()
    for part in ("train", "t10k"):
        pixels = np.random.default_rng(1).integers(0, 256, (len(labels), 8, 8)).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", np.asarray(labels, dtype=np.uint8))):
            place = folder / f"{part}-{kind}-ubyte"
            if nested:
                place.mkdir()
                place = place / place.name.replace("-idx", ".idx")
            head = struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape)
            place.write_bytes(head + array.tobytes())
    return str(folder)


TOKENS = np.random.default_rng(2).integers(0, 5, (40, 6))
SETS = {
    "channels last": lambda at: "npz:" + save(at / "a.npz", **arrays((8, 8, 3))),
    "grey, channels last": lambda at: "npz:" + save(at / "a.npz", **arrays((9, 7, 1))),
    "floats, channels last": lambda at: "npz:" + save(at / "a.npz", **arrays((8, 8, 3), np.float32)),
    "channels first": lambda at: "npz:" + save(at / "a.npz", **arrays((3, 8, 8))),
    "5x5": lambda at: "npz:" + save(at / "a.npz", **arrays((1, 5, 5))),
    "1x1": lambda at: "npz:" + save(at / "a.npz", **arrays((3, 1, 1))),
    "tables": lambda at: "npz:" + save(at / "a.npz", **arrays((7,), np.float32)),
    "maps without channels": lambda at: "npz:" + save(at / "a.npz", **arrays((8, 8), np.float32)),
    "volumes": lambda at: "npz:" + save(at / "a.npz", **arrays((2, 3, 8, 8), np.float32)),
    "two samples": lambda at: "npz:" + save(at / "a.npz", **arrays((1, 8, 8), count=2)),
    "one sample": lambda at: "npz:" + save(at / "a.npz", **arrays((1, 8, 8), count=1)),
    "labels from 1, declared": lambda at: "npz:" + save(at / "a.npz", num_classes=4, **arrays((1, 8, 8), first=1)),
    "tokens": lambda at: "npz:" + save(at / "a.npz", **of_tokens(TOKENS)),
    "labels in a column": lambda at: "npz:" + save(at / "a.npz", **column(arrays((8, 8), np.float64))),
    "labels in two columns": lambda at: "npz:" + save(at / "a.npz", **column(arrays((8, 8)), times=2)),
    "tokens of one position": lambda at: "npz:" + save(at / "a.npz", **of_tokens(TOKENS[:, :1])),
    "an empty text": lambda at: "text:" + text(at / "a.txt", ""),
    "a text too large for texts": lambda at: "text:" + sparse(at / "a.txt", 2**28 + 1),
    "a text too large for anything": lambda at: "text:" + sparse(at / "a.txt", 2**32 + 1),
    "a short text": lambda at: "text:" + text(at / "a.txt", "ab" * 30),
    "a text of one character": lambda at: "text:" + text(at / "a.txt", "a" * 3000),
    "mnist": lambda at: "idx:" + idx_folder(at / "a", np.arange(30) % 10),
    "mnist, labels from 1": lambda at: "idx:" + idx_folder(at / "a", np.arange(30) % 10 + 1),
    "mnist, label 11": lambda at: "idx:" + idx_folder(at / "a", np.arange(30) % 12),
    "folders named like files": lambda at: "idx:" + idx_folder(at / "a", np.arange(30) % 10, nested=True),
    "a folder named like the archive": lambda at: "npz:" + inside(at / "a.npz"),
}
TRAINS = {
    "channels last",
    "grey, channels last",
    "floats, channels last",
    "channels first",
    "5x5",
    "1x1",
    "two samples",
}
TRAINS |= {"labels from 1, declared", "tokens", "mnist", "mnist, labels from 1", "folders named like files"}
TRAINS |= {"a folder named like the archive", "maps without channels", "labels in a column", "tokens of one position"}


def of_tokens(tokens):
    return {f"{axis}_{part}": tokens for axis in "xy" for part in ("train", "test")}


def column(found, times=1):
    return {name: np.stack([array] * times, 1) if name.startswith("y") else array for name, array in found.items()}


def sparse(path: Path, size: int) -> str:
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def text(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def inside(folder: Path) -> str:
    folder.mkdir()
    save(folder / folder.name, **arrays((1, 8, 8)))
    return str(folder)


def told(run) -> str | None:
    try:
        run()
    except (DatasetError, ConfigError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", SETS)
def test_the_check_and_the_trainer_agree(kind, tmp_path):
    name = SETS[kind](tmp_path)

    def step():
        engine = esper.make(name, 2, backend="eager", **TINY)
        engine.step(engine.init(0), torch.zeros(2, dtype=torch.int64))

    checked = told(lambda: data_check(["check", name.partition(":")[2]], io.StringIO()))
    assert told(step) == checked and (checked is None) == (kind in TRAINS)
    assert checked is None or ("\n" not in checked and "expected" in checked)


def test_images_with_their_channels_last_are_those_with_their_channels_first(tmp_path):
    first = arrays((3, 8, 6))
    last = {name: np.moveaxis(array, 1, -1) if name.startswith("x") else array for name, array in first.items()}
    one, other = npz(save(tmp_path / "a.npz", **first)), npz(save(tmp_path / "b.npz", **last))
    assert all(torch.equal(mine.inputs, theirs.inputs) for mine, theirs in zip(one[1:4], other[1:4], strict=True))
    assert "channels were the last axis" in other.split and "channels" not in one.split
    assert npz(save(tmp_path / "c.npz", **arrays((3, 5, 3)))).input_shape == (3, 5, 3)  # either way: as documented


def test_maps_of_floats_have_one_channel_as_pixels_have(tmp_path):
    flat = arrays((8, 6), np.float32)
    deep = {name: array[:, None] for name, array in flat.items()}
    one, other = npz(save(tmp_path / "a.npz", **flat)), npz(save(tmp_path / "b.npz", **deep))
    assert one.input_shape == (1, 8, 6)
    for mine, theirs in zip(one[1:4], other[1:4], strict=True):
        assert torch.equal(mine.inputs, theirs.inputs) and torch.equal(mine.targets, theirs.targets)


def test_labels_from_1_become_classes_from_0_and_that_is_said(tmp_path):
    from_0 = named("idx:" + idx_folder(tmp_path / "a", np.arange(30) % 10)).data
    from_1 = named("idx:" + idx_folder(tmp_path / "b", np.arange(30) % 10 + 1)).data
    assert torch.equal(from_0.train.targets, from_1.train.targets) and from_1.num_classes == 10
    assert "labels 1 to 10 are classes 0 to 10 - 1" in from_1.split and "labels" not in from_0.split


@pytest.mark.parametrize(("first", "classes"), [(0, 27), (1, 26), (0, 47)])
def test_the_trainer_is_told_the_classes_of_emnist_as_the_check_is(first, classes, tmp_path, capsys):
    folder = idx_folder(tmp_path / "emnist", first + np.arange(94) % classes)
    assert main(["data", "check", folder, "--classes", str(classes)]) == 0
    task = f"idx:{folder}#classes={classes}"
    assert named(task).data.num_classes == classes and named(task).name == task
    words = ["--num-envs", "2", "--rounds", "1", "--horizon", "1", "--eval-envs", "0", "--progress", "off"]
    words += ["--engine", "steps_per_epoch=1,batch_size=4,val_samples=4", "--out", str(tmp_path / "run")]
    if classes == 27:
        assert main(["train", "--task", task, *words, "--features", "8", "--lstm", "8"]) == 0
        assert (tmp_path / "run" / "checkpoints").is_dir()
    assert main(["train", "--task", f"idx:{folder}", *words[:-1], str(tmp_path / "other")]) == 2
    assert "found label" in capsys.readouterr().err


def test_a_folder_can_be_given_to_environments_that_differ(tmp_path):
    task = named("fashion_varied:" + idx_folder(tmp_path / "a", np.arange(30) % 10))
    engine = esper.make(task, 16, backend="eager", **TINY)
    assert {play(engine, script).name for script in task.scripts} == {script.name for script in task.scripts}
    assert engine.data.at_levels is not None and engine.init(0).context.price.unique().numel() == 2
    assert task.name.startswith("fashion_varied:") and engine.data.num_classes == 10


def test_only_kinds_that_can_be_told_take_classes(tmp_path):
    path = text(tmp_path / "a.txt", "ab" * 400)
    with pytest.raises(ConfigError, match="#classes is for idx and npz and npy"):
        named(f"text:{path}#classes=3")
    assert set(SOURCES) == {"cifar10", "idx", "npz", "npy", "text", "fashion_varied"}


@pytest.mark.parametrize("task", ["synthetic_tokens", "chars"])
@pytest.mark.parametrize("setting", ["mirror=true", "crop_padding=2", "crop_padding=1,mirror=true"])
def test_a_setting_of_images_is_refused_before_the_run_directory_is_made(task, setting, tmp_path, capsys):
    words = ["train", "--task", task, "--out", str(tmp_path / "run"), "--backend", "eager", "--engine", setting]
    assert main(words) == 2 and "is for images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
