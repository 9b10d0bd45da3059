"""A host of one's own in ``torch.nn``, grown, exported, and used where there is no Esper: right to the sample."""

import gzip
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from esper.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
TASK = "py:bench.fashion:task"
REAL = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


def outside(folder: Path, data: Path) -> tuple[int, int]:
    """Right answers and samples, as counted in another process, away from the checkout."""
    script = folder / "outside.py"
    script.write_bytes((ROOT / "bench" / "outside.py").read_bytes())
    command = [sys.executable, script, folder / "grown.safetensors", data]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, encoding="utf-8", check=True)
    found = re.match(r"(\d+) of (\d+) right", done.stdout)
    return int(found[1]), int(found[2])


def expect_equal(folder: Path, data: Path) -> dict:
    """The card, of which the accuracy is that of the other process."""
    card = json.loads((folder / "grown.json").read_text(encoding="utf-8"))
    right, samples = outside(folder, data)
    assert card["test_accuracy"] == pytest.approx(100 * right / samples, abs=1e-4), "a sample counts 0.01 or more"
    return card


@pytest.fixture
def small_fashion(tmp_path):
    """300 images of noisy bars, one bar for each class, as gzipped IDX files."""
    draw, folder = np.random.default_rng(0), tmp_path / "idx"
    folder.mkdir()
    for part in ("train", "t10k"):
        labels = np.arange(300, dtype=np.uint8) % 10
        pixels = draw.integers(0, 100, (300, 28, 28))
        for image, label in zip(pixels, labels, strict=True):
            image[2 * label : 2 * label + 8, 4:24] += 150
        for kind, array in (("images-idx3", pixels.astype(np.uint8)), ("labels-idx1", labels)):
            head = struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return folder


def test_what_grew_in_a_module_of_ones_own_is_used_where_there_is_no_esper(small_fashion, tmp_path, monkeypatch):
    monkeypatch.setenv("FASHION_MNIST", str(small_fashion))
    monkeypatch.syspath_prepend(ROOT)
    quick = "steps_per_epoch=2,blend_epochs=1,min_improvement=-100,min_contribution=-100,min_gradient_ratio=0"
    played = ["--task", TASK, "--horizon", "6", "--env", "1", "--policy", "random", "--seed", "5", "--engine", quick]
    assert main(["export", *played, "--to", str(tmp_path / "grown.safetensors")]) == 0
    card = expect_equal(tmp_path, small_fashion)
    assert card["host"] == {"name": "Narrow", "parameters": 67} and card["parameters"] > 67


@pytest.mark.large
@pytest.mark.skipif(not REAL.is_dir(), reason="needs Debian's dataset-fashion-mnist, or FASHION_MNIST=FOLDER")
def test_fashion_mnist_from_a_starved_start(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("FASHION_MNIST", str(REAL))
    run = ["--task", TASK, "--num-envs", "8", "--rounds", "4", "--eval-envs", "0", "--out", str(tmp_path / "run")]
    assert main(["train", *run]) == 0
    grown = str(tmp_path / "grown.safetensors")
    assert main(["export", "--run", str(tmp_path / "run"), "--task", TASK, "--env", "3", "--to", grown]) == 0
    card = expect_equal(tmp_path, REAL)
    assert card["test_samples"] == 10_000 and card["parameters"] > card["host"]["parameters"]
