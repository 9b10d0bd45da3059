"""Checkpoints: exact, whole or not at all, and nothing altered passes."""

import os

import numpy as np
import pytest
import torch

from esper.urza import checkpoint
from esper.urza.checkpoint import CheckpointError, load, save

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float64).reshape(3, 4) / 7,
    "steps": torch.tensor(5),
    "mask": torch.tensor([True, False]),
    "odd.name/x": torch.tensor([float("nan"), float("inf"), -0.0]),
}


def test_round_trip_is_exact(tmp_path):
    save(tmp_path / "a.npz", TENSORS, {"round": 3, "name": "ü"})
    tensors, table = load(tmp_path / "a.npz")
    assert table == {"round": 3, "name": "ü"} and set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and tensors[name].shape == tensor.shape
        assert tensors[name].numpy().tobytes() == tensor.numpy().tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save(path, TENSORS, {"round": 1})

    def broken(file, **arrays):
        file.write(b"half a fi")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        save(path, TENSORS, {"round": 2})
    assert load(path).table == {"round": 1}


def test_every_truncation_and_a_thousand_bit_flips_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    save(path, {"weight": torch.arange(64.0)}, {"round": 1})
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    changed = [whole[:length] for length in range(0, len(whole), 7)]
    for _ in range(1000):
        altered = bytearray(whole)
        altered[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        changed.append(bytes(altered))
    survived = 0
    for content in changed:
        path.write_bytes(content)
        try:
            tensors, table = load(path)
        except CheckpointError as error:
            assert "\n" not in str(error) and "a.npz" in str(error)
        else:  # a flip in the archive's own padding or time stamps changes nothing that is read
            assert torch.equal(tensors["weight"], torch.arange(64.0)) and table == {"round": 1}
            survived += 1
    assert survived < 200


def test_pickles_are_not_executed(tmp_path):
    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "evil.npz"
    np.savez(path, **{checkpoint.TABLE: np.array([Canary()], dtype=object)})
    with pytest.raises(CheckpointError):
        load(path)
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.npz: no such file"):
        load(tmp_path / "nothing.npz")
