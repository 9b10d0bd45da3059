"""The block function Threefry-2x32 with 20 rounds: for tensors, and on the CPU for what takes less time there.

Words lie in [0, 2**32) and are int64. Source: J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random
numbers: as easy as 1, 2, 3" (SC'11).
"""

import functools
import math
import sys
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esper.utils.torch_private import is_plain

MASK = 0xFFFFFFFF
"""The bits of a word."""

_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))

Words = TypeVar("Words", Tensor, int)
Narrow = npt.NDArray[np.uint32]

FEW = 128
"""Blocks up to which one long integer on the CPU takes less time than a hundred operations on arrays."""

MANY = 2**16
"""Blocks up to which 32-bit words of one thread take less time than tensors of 64 bits in several."""


def block(k0: Tensor, k1: Tensor, c0: Tensor, c1: Tensor) -> tuple[Tensor, Tensor]:
    """Threefry-2x32-20 on words: k0, k1 of one shape and c0, c1 of one shape, broadcast; two fresh tensors.

    Law: the same bits on every device, by whichever way.
    """
    words = (k0, k1, c0, c1)
    if not all(map(is_plain, words)):
        return _rounds(*words)
    shape = np.broadcast_shapes(k0.shape, c0.shape)
    count = math.prod(shape)
    if not 0 < count <= MANY:
        return _rounds(*words)
    arrays = tuple(word.numpy() for word in words)
    if count > FEW:
        x0, x1 = (torch.from_numpy(x.astype(np.int64)) for x in _rounds_of_words(*map(_narrow, arrays)))
        return x0, x1
    key0, key1, count0, count1 = (int.from_bytes(np.full(shape, each).tobytes(), sys.byteorder) for each in arrays)
    wide = _rounds(key0, key1, count0, count1, _ones(count))
    found = (bytearray(x.to_bytes(8 * count, sys.byteorder)) for x in wide)
    x0, x1 = (torch.frombuffer(x, dtype=torch.int64).reshape(shape) for x in found)
    return x0, x1


@functools.cache
def _ones(count: int) -> int:
    """A 1 in each of so many places of 64 bits."""
    return sum(1 << 64 * place for place in range(count))


def _narrow(word: npt.NDArray[np.int64]) -> Narrow:
    return word.astype(np.uint32)


def _rounds_of_words(k0: Narrow, k1: Narrow, c0: Narrow, c1: Narrow) -> tuple[Narrow, Narrow]:
    """The block function on arrays of 32 bits, not all of no dimension; sums wrap as they are meant to."""
    schedule = (k0, k1, k0 ^ k1 ^ np.uint32(_PARITY))
    x0, x1 = c0 + k0, c1 + k1
    carried = np.empty_like(x1)
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 += x1
            np.right_shift(x1, 32 - rotation, out=carried)
            x1 <<= rotation
            x1 |= carried
            x1 ^= x0
        x0 += schedule[(group + 1) % 3]
        x1 += schedule[(group + 2) % 3]
        x1 += np.uint32(group + 1)
    return x0, x1


def _rounds(k0: Words, k1: Words, c0: Words, c1: Words, ones: int = 1) -> tuple[Words, Words]:
    """The same in tensors, or in long integers that hold a word in every 64 bits; ``ones`` has a 1 in each of these.

    x0 is left unmasked to the end (it grows below 2**38) and x1 is masked once a round, where it enters a shift; a
    shift by at most 29 keeps a word below 2**61, so no sum or shift comes near the sign bit, or the next word. What a
    shift to the right takes from the next word is masked, too.
    """
    mask = MASK * ones
    schedule = (k0, k1, k0 ^ k1 ^ (_PARITY * ones))
    x0, x1 = c0 + k0, c1 + k1
    x1 &= mask
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 += x1
            carried = x1 >> (32 - rotation)
            x1 <<= rotation
            x1 |= carried
            x1 ^= x0
            x1 &= mask
        x0 += schedule[(group + 1) % 3]
        x1 += schedule[(group + 2) % 3] + (group + 1) * ones
        x1 &= mask
    x0 &= mask
    return x0, x1
