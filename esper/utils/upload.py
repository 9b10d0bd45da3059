"""Arrays of the host on a device, in one copy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper.utils.tree import leaves_of, map_leaves

KINDS = {np.dtype(np.int64): torch.int64, np.dtype(bool): torch.bool}
"""What can be uploaded."""


def upload(tree: Any, device: torch.device) -> Any:
    """Every array of a tree as a tensor on the device.

    On the CPU a tensor shares its array's memory. Elsewhere all arrays go up together, in one asynchronous copy from
    memory that the driver can read by itself; torch keeps that memory from being used again before the copy has ended.

    Args:
      tree: with leaves of any kind; arrays are int64 or bool.
      device: where to.
    """
    if device.type == "cpu":
        return map_leaves(lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)
    arrays = [leaf for leaf in leaves_of(tree) if isinstance(leaf, np.ndarray)]
    buffer = torch.from_numpy(packed(arrays))
    buffer = buffer.pin_memory() if device.type == "cuda" else buffer
    moved = iter(unpacked(buffer.to(device, non_blocking=True), arrays))
    return map_leaves(lambda leaf: next(moved) if isinstance(leaf, np.ndarray) else leaf, tree)


def packed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The bytes of all arrays, those of many bytes a number first, so that each begins where its numbers may."""
    parts = [np.ascontiguousarray(arrays[place]).reshape(-1).view(np.uint8) for place in _order(arrays)]
    return np.concatenate([np.zeros(0, dtype=np.uint8), *parts])


def unpacked(buffer: Tensor, like: Sequence[np.ndarray]) -> list[Tensor]:
    """Views of the bytes that ``packed`` has laid side by side, in the order of the arrays."""
    order = _order(like)
    found = dict(zip(order, buffer.split([like[place].nbytes for place in order]), strict=True))
    kinds = [KINDS[array.dtype] for array in like]
    return [
        found[place].view(kind).view(array.shape) if array.size else buffer.new_empty(array.shape, dtype=kind)
        for place, (array, kind) in enumerate(zip(like, kinds, strict=True))
    ]


def _order(arrays: Sequence[np.ndarray]) -> list[int]:
    return sorted(range(len(arrays)), key=lambda place: -arrays[place].itemsize)
