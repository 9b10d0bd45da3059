"""Checkpoints: named tensors and a small table, one file, written whole or not at all.

The file is an ``.npz`` without pickled objects; it is written beside its place, flushed to the disk, and renamed, so
that a reader sees the old one or the new one. A checksum covers every tensor's bytes and the table.
"""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.utils.documents import json_ready

TABLE = "__table__"
VERSION = 1

ARCHIVE = b"PK"
"""How NPZ archives begin."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; one line with the file, what was found and what was expected."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]
    table: dict[str, Any]


def _digest(arrays: dict[str, np.ndarray], table: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save(path: Path, tensors: dict[str, Tensor], table: dict[str, Any]) -> None:
    """Write a checkpoint.

    Args:
      path: the file; an existing one is replaced in one step.
      tensors: name -> tensor, any device.
      table: small facts; what JSON lacks is written as ``esper.utils.documents.json_ready`` says.
    """
    table = json_ready(table)
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    entry = {"version": VERSION, "sha256": _digest(arrays, table), "table": table}
    beside = path.with_name(path.name + f".tmp-{os.getpid()}")
    with beside.open("wb") as file:
        members: dict[str, Any] = {TABLE: np.frombuffer(json.dumps(entry).encode(), dtype=np.uint8), **arrays}
        np.savez(file, **members)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
      CheckpointError: missing, truncated, altered, or of another version.
    """
    try:
        data = path.read_bytes()
        if not data.startswith(ARCHIVE):
            raise ValueError("no NPZ archive")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        entry = json.loads(arrays.pop(TABLE).tobytes())
        version, sha256, table = entry["version"], entry["sha256"], entry["table"]
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path}: no such file") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path}: not readable ({reason}); expected an esper checkpoint") from None
    if version != VERSION:
        raise CheckpointError(f"checkpoint {path}: version {version}; expected {VERSION}")
    if _digest(arrays, table) != sha256:
        raise CheckpointError(f"checkpoint {path}: its bytes do not match its checksum; expected {sha256[:12]}")
    return Checkpoint({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, table)
