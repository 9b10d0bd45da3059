"""Data that stay in files: trained on to the bits of data in memory, refused by place, and within a cap of memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import esper
from esper.leyline.config import SampleOrder
from esper.runtime.tasks import named
from esper.tolaria import mapped
from esper.tolaria.data import DatasetError
from esper.tolaria.formats.detect import check
from esper.tolaria.formats.npy_folder import npy
from esper.tolaria.mapped import MappedFileError
from esper.tolaria.variations import with_levels

DRAW = np.random.default_rng(0)
PIXELS = {
    f"{part}_inputs": DRAW.integers(0, 256, (count, 3, 8, 8)).astype(np.uint8)
    for part, count in (("train", 90), ("test", 37))
}
ARRAYS = PIXELS | {"train_targets": np.arange(90) % 4, "test_targets": np.arange(37) % 4}


def folder_of(place, arrays):
    place.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    return place


@pytest.fixture
def both(tmp_path):
    """The same arrays as an archive and as a folder."""
    np.savez(tmp_path / "a.npz", **ARRAYS)
    return [named(f"npz:{tmp_path / 'a.npz'}"), named(f"npy:{folder_of(tmp_path / 'a', ARRAYS)}")]


@pytest.mark.parametrize("order", SampleOrder)
@pytest.mark.parametrize("settings", [{}, {"mirror": True, "crop_padding": 1}], ids=["plain", "augmented"])
def test_training_has_the_bits_of_data_in_memory(both, order, settings, monkeypatch):
    from esper.tolaria import evaluation

    monkeypatch.setattr(evaluation, "STREAMED", 16)
    small = {"batch_size": 8, "steps_per_epoch": 2, "val_samples": 5, "sample_order": order} | settings
    engines = [esper.make(task, 3, backend="eager", **small) for task in both]
    states, action = [engine.init(1) for engine in engines], torch.zeros(3, dtype=torch.int64)
    for _ in range(2):
        states = [engine.step(state, action)[0] for engine, state in zip(engines, states, strict=True)]
    for name in ("host", "signals"):
        assert all(
            torch.equal(one, other)
            for one, other in zip(states[0].get(name).values(), states[1].get(name).values(), strict=True)
        )
    held, read = (engine.test(state) for engine, state in zip(engines, states, strict=True))
    torch.testing.assert_close(torch.stack(held), torch.stack(read), rtol=1e-5, atol=1e-4)
    assert engines[0].data.scale == engines[1].data.scale and engines[1].data.sizes == engines[0].data.sizes
    assert isinstance(engines[1].data.validation.inputs, torch.Tensor)


def test_an_epoch_reads_the_samples_that_it_needs(both, monkeypatch):
    engine = esper.make(both[1], 2, backend="eager", batch_size=5, steps_per_epoch=2, val_samples=5)
    state, read = engine.init(0), []
    monkeypatch.setattr(
        mapped.ArrayFile,
        "read",
        lambda self, rows, own=mapped.ArrayFile.read: (read.append(len(rows)), own(self, rows))[1],
    )
    engine.step(state, torch.zeros(2, dtype=torch.int64))
    assert sum(read) == 10


def test_three_parts_or_two_and_numbers_or_pixels(tmp_path):
    floats = {name: (a / 7).astype(np.float32) if a.dtype == np.uint8 else a for name, a in ARRAYS.items()}
    data = npy(folder_of(tmp_path / "f", floats))
    assert data.sizes == {"train": 81, "validation": 9, "test": 37} and data.scale is None
    torch.testing.assert_close(data.test.held, torch.from_numpy(floats["test_inputs"]), rtol=0, atol=0)
    flat = {name: a[:, 0] if a.ndim == 4 else a for name, a in ARRAYS.items()}
    renamed = {name.replace("test", "val"): a for name, a in flat.items()}
    halved = npy(folder_of(tmp_path / "h", renamed), num_classes=5)
    assert halved.sizes == {"train": 90, "validation": 18, "test": 19} and halved.input_shape == (1, 8, 8)
    assert halved.num_classes == 5
    three = npy(folder_of(tmp_path / "h", {name: a for name, a in flat.items() if name.startswith("test")}))
    assert three.sizes == {"train": 90, "validation": 37, "test": 37}
    report = check(tmp_path / "h")
    assert (report.format, [part.records for part in report.parts]) == ("npy", [90, 37, 37])
    assert (report.parts[0].low, report.parts[0].high) == (flat["train_inputs"].min(), flat["train_inputs"].max())


BROKEN = {
    "float64": ({"train_inputs": np.zeros((4, 3, 8, 8))}, r"train_inputs.npy: header: found <f8"),
    "order": ({"train_inputs": np.asfortranarray(PIXELS["train_inputs"])}, "in Fortran order, expected uint8"),
    "tokens": ({"train_inputs": np.zeros((90, 5), dtype=np.int64)}, "train_inputs.npy: header: found <i8"),
    "shapes": (
        {"test_inputs": PIXELS["test_inputs"][:, :2]},
        r"found samples of uint8 \[2, 8, 8\], expected .*\[3",
    ),
    "targets": ({"test_targets": np.zeros(5, dtype=np.int64)}, r"test_targets.npy: array: .* expected integers \[37\]"),
    "label": ({"test_targets": np.full(37, 9)}, "found label 9 at index 0"),
    "alike": ({"train_inputs": np.zeros((90, 3, 8, 8), dtype=np.uint8)}, "pixels of one value"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_in_place_is_refused_by_its_place(name, tmp_path):
    arrays, expected = BROKEN[name]
    folder = folder_of(tmp_path / "a", ARRAYS | arrays)
    with pytest.raises(DatasetError, match=expected) as raised:
        npy(folder)
    assert "\n" not in str(raised.value)


def test_files_that_are_short_missing_or_changed(tmp_path):
    folder = folder_of(tmp_path / "a", ARRAYS)
    data = npy(folder)
    whole = (folder / "train_inputs.npy").read_bytes()
    (folder / "train_inputs.npy").write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match=r"train_inputs\.npy: size: found"):
        npy(folder)
    with pytest.raises(MappedFileError, match="was changed while it was used"):
        data.train.inputs[:2]
    (folder / "train_inputs.npy").write_bytes(whole)
    (folder / "train_targets.npy").unlink()
    with pytest.raises(DatasetError, match=r"train_targets\.npy: file"):
        npy(folder)
    nan = {name: a.astype(np.float32) if a.dtype == np.uint8 else a for name, a in ARRAYS.items()}
    nan["train_inputs"][50, 1, 2, 3] = np.nan
    with pytest.raises(DatasetError, match=r"1 non-finite value\(s\), the first in sample"):
        npy(folder_of(tmp_path / "n", nan))


def test_copies_with_noise_are_for_data_in_memory(both):
    from esper.leyline.contexts import Choice, Variation

    noisy = both[1].data._replace(variation=Variation({"input_noise": Choice((0.0, 1.0))}))
    with pytest.raises(DatasetError, match="samples that stay in a file"):
        with_levels(noisy)


CAP, SAMPLES = 2**30, 100_000
"""Bytes; and samples of 3 x 64 x 64 pixels: 1.2 GB as stored, 4.9 GB as float32."""


PEAK = """
import sys
from esper.__main__ import main
status = main(sys.argv[1:])
lines = open("/proc/self/status", encoding="utf-8").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(status)
"""
"""What the command does, and then the most memory that its process had resident, in KiB; the line comes last."""


@pytest.mark.large
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_a_set_larger_than_a_cap_of_memory_trains_within_it(tmp_path):
    """``esper train`` stays below a GiB of resident memory."""
    shape = (SAMPLES, 3, 64, 64)
    block = np.random.default_rng(0).integers(0, 256, (1000, *shape[1:])).astype(np.uint8)
    with open(tmp_path / "train_inputs.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for _ in range(SAMPLES // len(block)):
            file.write(block.tobytes())
    np.save(tmp_path / "train_targets.npy", np.arange(SAMPLES) % 10)
    np.save(tmp_path / "test_inputs.npy", block)
    np.save(tmp_path / "test_targets.npy", np.arange(1000) % 10)
    assert (tmp_path / "train_inputs.npy").stat().st_size > CAP
    small = "steps_per_epoch=2,batch_size=16,val_samples=64"
    command = ["train", "--task", f"npy:{tmp_path}", "--num-envs", "2", "--rounds", "1", "--horizon", "2"]
    command += ["--eval-envs", "0", "--out", str(tmp_path / "run"), "--engine", small]
    done = subprocess.run([sys.executable, "-c", PEAK, *command], check=True, capture_output=True, encoding="utf-8")
    kept = json.loads((tmp_path / "run" / "resolved.json").read_text(encoding="utf-8"))
    assert kept[f"npy:{tmp_path}"]["data"]["samples"]["train"] == SAMPLES // 10 * 9
    peak = 1024 * int(done.stderr.splitlines()[-1])
    assert peak < CAP, f"{peak / 2**20:.0f} MiB"
