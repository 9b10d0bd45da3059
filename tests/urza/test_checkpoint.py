"""Checkpoints: exact, whole or not at all; nothing altered passes, and nothing that is read executes or overwhelms."""

import hashlib
import json
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open

from esper.urza.archive import TABLE
from esper.urza.checkpoint import MANIFEST, TENSORS, CheckpointError, load, save
from esper.utils.failpoints import ERRORS, POINTS, Fault, awaiting

TREE = {
    "weight": torch.arange(12, dtype=torch.float64).reshape(3, 4) / 7,
    "steps": torch.tensor(5),
    "mask": torch.tensor([True, False]),
    "odd.name/x": torch.tensor([float("nan"), float("inf"), -0.0]),
    "turned": torch.arange(6).reshape(2, 3).T,
    "empty": torch.zeros(0, 3),
}


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_round_trip_is_exact(tmp_path):
    save(tmp_path / "a", TREE, {"round": 3, "name": "ü"})
    tensors, table = load(tmp_path / "a")
    assert table == {"round": 3, "name": "ü"} and set(tensors) == set(TREE)
    assert all(same(tensors[name], tensor) for name, tensor in TREE.items())
    assert listing(tmp_path) == ["a", f"a/{MANIFEST}", f"a/{TENSORS}"]


def test_what_is_written_is_what_others_read(tmp_path):
    """The tensors by the reader of the format's own library, the digests by hand."""
    save(tmp_path / "a", TREE, {})
    with safe_open(tmp_path / "a" / TENSORS, "numpy") as file:
        assert {name: file.get_tensor(name).shape for name in file.keys()} == {  # noqa: SIM118
            name: tuple(tensor.shape) for name, tensor in TREE.items()
        }
    manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
    data = (tmp_path / "a" / TENSORS).read_bytes()
    assert manifest["files"] == {TENSORS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}


def test_a_name_is_written_once(tmp_path):
    save(tmp_path / "a", TREE, {"round": 1})
    with pytest.raises(CheckpointError, match="there already"):
        save(tmp_path / "a", TREE, {"round": 2})
    assert load(tmp_path / "a").table == {"round": 1}


def test_every_operation_that_fails_leaves_nothing(tmp_path):
    """Every arrival at every point of a save, once as each error. Only a failure to flush the parent folder, when the
    checkpoint has its name, leaves it there; it is whole.
    """
    with awaiting(None) as counts:
        save(tmp_path / "whole", TREE, {"round": 0})
    assert dict(counts) == {"open": 2, "write": 2, "sync": 2, "sync-folder": 2, "rename": 1}
    tried = [Fault(point, kind, k) for point in POINTS for kind in ERRORS for k in range(1, counts[point] + 1)]
    for fault in tried:
        with awaiting(fault), pytest.raises(OSError, match="fault point"):
            save(tmp_path / "a", TREE, {"round": 1})
        if (fault.point, fault.first) == ("sync-folder", 2):
            assert load(tmp_path / "a").table == {"round": 1}
            for path in (tmp_path / "a").iterdir():
                path.unlink()
            (tmp_path / "a").rmdir()
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert len(tried) == 9 * len(ERRORS)


def test_every_truncation_and_a_thousand_flips_are_refused(tmp_path):
    save(tmp_path / "a", {"weight": torch.arange(64.0)}, {"round": 1})
    generator = np.random.default_rng(0)
    for name in (MANIFEST, TENSORS):
        path = tmp_path / "a" / name
        whole = path.read_bytes()
        changed = [whole[:length] for length in range(0, len(whole), 7)] + [whole + b"\n"]
        for _ in range(500):
            altered = bytearray(whole)
            altered[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
            changed.append(bytes(altered))
        for content in changed:
            path.write_bytes(content)
            with pytest.raises(CheckpointError) as refused:
                load(tmp_path / "a")
            assert "\n" not in str(refused.value) and str(tmp_path / "a") in str(refused.value)
        path.write_bytes(whole)
    assert load(tmp_path / "a").table == {"round": 1}


def resealed(folder, **changes):
    """A manifest with other entries, and the digest that fits them."""
    entry = json.loads((folder / MANIFEST).read_text()) | changes
    del entry["sha256"]
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(entry | {"sha256": digest}, indent=1, sort_keys=True) + "\n")


def test_a_newer_format_is_refused_naming_both(tmp_path):
    save(tmp_path / "a", TREE, {})
    resealed(tmp_path / "a", format=3)
    with pytest.raises(CheckpointError, match="format 3, written by a newer version; expected 2 or less"):
        load(tmp_path / "a")


def test_sizes_are_compared_before_anything_is_allocated(tmp_path):
    """A header that promises a petabyte, and one of 100 MB of nothing, each with digests that fit."""
    save(tmp_path / "a", TREE, {})
    promise = json.dumps({"w": {"dtype": "F32", "shape": [1 << 48], "data_offsets": [0, 1 << 50]}}).encode()
    for header in (promise, b"{" + b" " * 1000):
        data = struct.pack("<Q", len(header) if header is promise else 1 << 40) + header
        (tmp_path / "a" / TENSORS).write_bytes(data)
        resealed(tmp_path / "a", files={TENSORS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})
        with pytest.raises(CheckpointError, match="not readable"):
            load(tmp_path / "a")


def test_links_and_pipes_are_refused_at_once(tmp_path):
    save(tmp_path / "a", TREE, {})
    for name in (TENSORS, MANIFEST):
        (tmp_path / "a" / name).rename(tmp_path / "aside")
        (tmp_path / "a" / name).symlink_to(tmp_path / "aside")
        with pytest.raises(CheckpointError):
            load(tmp_path / "a")
        (tmp_path / "a" / name).unlink()
        os.mkfifo(tmp_path / "a" / name)
        with pytest.raises(CheckpointError, match="no ordinary file"):
            load(tmp_path / "a")
        (tmp_path / "a" / name).unlink()
        (tmp_path / "aside").rename(tmp_path / "a" / name)
    os.mkfifo(tmp_path / "b.npz")
    with pytest.raises(CheckpointError, match="no ordinary file"):
        load(tmp_path / "b.npz")
    assert load(tmp_path / "a").table == {}


def test_what_is_missing_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.npz: no such file$"):
        load(tmp_path / "nothing.npz")
    save(tmp_path / "a", TREE, {})
    (tmp_path / "a" / TENSORS).unlink()
    with pytest.raises(CheckpointError, match=rf"a: no such file \({TENSORS}\)$"):
        load(tmp_path / "a")


class Canary:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


def archive(path, table, arrays, saving=np.savez):
    """A checkpoint of format 1, as it was written."""
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    for name in sorted(arrays):
        shape = arrays[name].shape or (1,)  # so it was
        digest.update(f"{name} {arrays[name].dtype.str} {shape}".encode())
        digest.update(arrays[name].tobytes())
    entry = {"version": 1, "sha256": digest.hexdigest(), "table": table}
    saving(path, **{TABLE: np.frombuffer(json.dumps(entry).encode(), dtype=np.uint8)}, **arrays)


def test_format_1_is_read(tmp_path):
    arrays = {name: tensor.contiguous().numpy() for name, tensor in TREE.items()}
    archive(tmp_path / "a.npz", {"round": 7}, arrays)
    tensors, table = load(tmp_path / "a.npz")
    assert table == {"round": 7} and all(same(tensors[name], tensor) for name, tensor in TREE.items())
    altered = bytearray((tmp_path / "a.npz").read_bytes())
    altered[altered.index(arrays["weight"].tobytes())] ^= 1
    (tmp_path / "a.npz").write_bytes(altered)
    with pytest.raises(CheckpointError, match="not readable"):
        load(tmp_path / "a.npz")


def test_a_packed_archive_is_not_unpacked(tmp_path):
    """Two megabytes that would take two gigabytes."""
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(f"{TABLE}.npy", b"\0" * (1 << 24))
    with pytest.raises(CheckpointError, match="a packed archive"):
        load(tmp_path / "bomb.npz")


def test_pickles_are_not_executed(tmp_path):
    np.savez(tmp_path / "evil.npz", **{TABLE: np.array([Canary(str(tmp_path / "executed"))], dtype=object)})
    torch.save({"x": Canary(str(tmp_path / "executed"))}, tmp_path / "evil.pt")
    save(tmp_path / "a", TREE, {})
    data = (tmp_path / "evil.pt").read_bytes()
    (tmp_path / "a" / TENSORS).write_bytes(data)
    resealed(tmp_path / "a", files={TENSORS: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})
    for path in (tmp_path / "evil.npz", tmp_path / "evil.pt", tmp_path / "a"):
        with pytest.raises(CheckpointError):
            load(path)
    assert not (tmp_path / "executed").exists()
