"""Fingerprints: SHA-256 of the bits of tensors, by which two runs are compared without keeping what they computed."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

LENGTH = 16
"""Hexadecimal digits of a link: two runs that differ agree by chance once in 2**64."""


def tables_of(batch: TensorDictBase) -> dict[str, Tensor]:
    """The leaves of a tensordict by their names, those of parts as ``part.leaf``."""
    found = batch.items(include_nested=True, leaves_only=True)
    return {name if isinstance(name, str) else ".".join(name): leaf for name, leaf in found}


def row_fingerprints(tables: Mapping[str, Tensor]) -> list[bytes]:
    """A digest of every row.

    Args:
      tables: by name, all with the same n rows first.

    Returns:
      n digests of 32 bytes. Law: that of row i depends on nothing but the names, types and bits of row i: it is the
      same wherever the row stands and whatever the others hold. NaN has bits like any number.
    """
    names = sorted(tables)
    rows = [_as_bytes(tables[name]) for name in names]
    head = "".join(f"{name} {tables[name].dtype} {list(tables[name].shape[1:])}\n" for name in names).encode()
    digests = []
    for index in range(len(rows[0]) if rows else 0):
        digest = hashlib.sha256(head)
        for row in rows:
            digest.update(row[index].tobytes())
        digests.append(digest.digest())
    return digests


def _as_bytes(table: Tensor) -> np.ndarray:
    """The bits of a table, uint8 [n, b] on the CPU."""
    rows = table.detach().cpu().flatten(1) if table.dim() > 1 else table.detach().cpu().unsqueeze(1)
    return rows.contiguous().view(torch.uint8).numpy()


def link(previous: str, *parts: bytes) -> str:
    """The next link of a chain: ``LENGTH`` hexadecimal digits of the digest of the link before and what came since."""
    digest = hashlib.sha256(previous.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:LENGTH]
