"""Samples that stay in a file: a memory map is read by index, and what is read becomes the tensor that training wants.

The map lives as long as one read does, so that pages which were looked at are no part of the process's memory behind
it.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")

BLOCK_BYTES = 2**22
"""Bytes of a file that are read at a time where all of it is."""


class Scale(NamedTuple):
    """Mean and standard deviation of each channel's pixels, C of them, in units of a pixel value (0 to 255)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class MappedFileError(OSError):
    """The file is not what it was when it was opened first; one line."""


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """An array in a file, in C order, in the machine's byte order.

    Attributes:
      path: where.
      dtype: uint8, pixels; or float32.
      offset: bytes before the array.
      shape: [N, *shape].
      stamp: size and time of the file's last change.
    """

    path: Path
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    stamp: tuple[int, int]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Some of its samples, a copy; rows int64 [n].

        Raises:
          MappedFileError: it was changed, or is not there any more.
        """
        if stamp_of(self.path) != self.stamp:
            raise MappedFileError(f"{self.path}: was changed while it was used; expected the file as it was")
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)[rows]


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of the last change of a file; (-1, -1) of one that is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True, eq=False)
class MappedInputs:
    """Inputs of a part of a dataset, as a tensor of them would be; what is read is on the device.

    Attributes:
      file: where they are.
      rows: int64 [N]; which of its samples.
      scale: what pixels are standardised by; None: they are numbers already.
      device: where what is read shall be.
      dtype: floating.
    """

    file: ArrayFile
    rows: np.ndarray
    scale: Scale | None
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> torch.Size:
        """[N, *shape]."""
        return torch.Size((len(self.rows), *self.file.shape[1:]))

    @property
    def ndim(self) -> int:
        """Axes, that of samples included."""
        return len(self.file.shape)

    def __len__(self) -> int:
        """Samples N."""
        return len(self.rows)

    def is_floating_point(self) -> bool:
        """What is read always is."""
        return True

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Samples by place, int64 [n], or bool [N], or a slice."""
        wanted = index if isinstance(index, slice) else index.cpu().numpy()
        stored = torch.from_numpy(self.file.read(self.rows[wanted]))
        if self.scale is None:
            return stored.to(self.device, self.dtype)
        return standardise(stored.to(self.device), self.scale).to(self.dtype)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "MappedInputs":
        """The same, read to elsewhere, or as another type."""
        return replace(self, device=torch.device(device), dtype=dtype or self.dtype)

    def cpu(self) -> "MappedInputs":
        """The same, read to the CPU."""
        return self.to("cpu")

    def contiguous(self) -> "MappedInputs":
        """What is read lies one after the other."""
        return self

    def split(self, size: int) -> Iterator[Tensor]:
        """All samples, ``size`` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def blocks(self) -> Iterator[np.ndarray]:
        """All samples as stored, some ``BLOCK_BYTES`` at a time."""
        each = max(1, BLOCK_BYTES // (math.prod(self.file.shape[1:]) * self.file.dtype.itemsize))
        return (self.file.read(self.rows[start : start + each]) for start in range(0, len(self), each))


def standardise(pixels: Tensor, scale: Scale) -> Tensor:
    """``(pixel - mean) / std`` per channel: uint8 [n, C, H, W] to float32 of that shape."""
    mean, std = (torch.tensor(moment, device=pixels.device)[:, None, None] for moment in scale)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)
