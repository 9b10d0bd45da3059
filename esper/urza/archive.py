"""Checkpoints of format 1, which are read and no longer written: one NPZ archive of arrays, among them a table."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TABLE = "__table__"
VERSION = 1

ARCHIVE = b"PK"
"""How NPZ archives begin."""


def read_archive(path: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the table of an archive.

    Args:
      path: what messages call it.
      data: the whole file.

    Raises:
      ValueError: one line; truncated, altered, or no checkpoint. Arrays are never packed, so that none is larger than
        the file.
    """
    if not data.startswith(ARCHIVE):
        raise ValueError("no NPZ archive")
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        if any(member.compress_type != zipfile.ZIP_STORED for member in packed.infolist()):
            raise ValueError("a packed archive")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    entry = json.loads(arrays.pop(TABLE).tobytes())
    if entry["version"] != VERSION:
        raise ValueError(f"version {entry['version']} of {path.name}")
    if _digest(arrays, entry["table"]) != entry["sha256"]:
        raise ValueError("its bytes do not match its checksum")
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, entry["table"]


def _digest(arrays: dict[str, np.ndarray], table: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
