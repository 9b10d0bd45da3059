"""Programs: a module's layers as instructions that the C++ library understands; ``esper.kernels.chain`` runs them.

A module is written as instructions between registers, each the feature map of one sample. A network and a pack of its
samples go through the whole program, forward or backward, while everything is in the cache. It starts without compiling
anything, and takes any number of networks.
"""

import ctypes
import functools
import struct
import weakref
from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

from esper.kernels import native


class Op(IntEnum):
    """What an instruction does; the numbers are those of ``kernels/program.h``."""

    CONV = 0
    GROUP_NORM = 1
    BATCH_NORM = 2
    AFFINE = 3
    RELU = 4
    POOL = 5
    MEAN = 6
    ADD = 7
    SCALE = 8
    SIGMOID = 9
    TIMES = 10
    FADE = 11


class Instruction(NamedTuple):
    """One layer.

    Attributes:
      op: what it does.
      to: register it writes; every register is written once.
      source: register it reads.
      other: second register it reads, -1 if none.
      weight: where its weights begin in the row of parameters, -1 if it has none; those of a batch norm are its own.
      bias: likewise.
      groups: of channels.
      kernel: side of a convolution.
      rectify: a norm that is followed by a relu.
      constant: where AFFINE's mean and variance begin in the row of buffers; ``float_bits`` of the factor of TIMES.
    """

    op: Op
    to: int
    source: int
    other: int = -1
    weight: int = -1
    bias: int = -1
    groups: int = 1
    kernel: int = 1
    rectify: bool = False
    constant: int = 0


def float_bits(value: float) -> int:
    """A number as the integer of the same 64 bits."""
    return int.from_bytes(struct.pack("<d", value), "little", signed=True)


class Code(NamedTuple):
    """A module as instructions.

    Attributes:
      registers: shape (C, H, W) of each; the first is the input.
      instructions: in order.
      output: register of the result.
      num_params: length of a network's row of parameters.
      num_buffers: length of its row of buffers.
    """

    registers: tuple[tuple[int, int, int], ...]
    instructions: tuple[Instruction, ...]
    output: int
    num_params: int
    num_buffers: int = 0


class Program:
    """Code, understood by the library."""

    def __init__(self, code: Code) -> None:
        built = library()
        assert built is not None, "there is no built library"
        head = (len(code.registers), len(code.instructions), code.output, code.num_params, code.num_buffers)
        numbers = [*head, *(n for register in code.registers for n in register)]
        numbers += [int(field) for instruction in code.instructions for field in instruction]
        self.code = code
        self.handle = built.esper_program((ctypes.c_int64 * len(numbers))(*numbers))
        self.num_aux: int = built.esper_aux(self.handle)
        weakref.finalize(self, built.esper_release, self.handle)

    @property
    def joins_samples(self) -> bool:
        """Whether it contains a batch norm, which gives ``aux``: per norm the batch mean, then unbiased variance."""
        return self.num_aux > 0


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built kernel, or None where there is none."""
    found = native.load("program")
    if found is not None:
        found.esper_pack.restype = ctypes.c_int64
        found.esper_program.argtypes = [ctypes.c_void_p]
        found.esper_program.restype = ctypes.c_void_p
        found.esper_release.argtypes = [ctypes.c_void_p]
        found.esper_release.restype = None
        found.esper_aux.argtypes = [ctypes.c_void_p]
        found.esper_aux.restype = ctypes.c_int64
    return found


@functools.cache
def pack() -> int:
    """Samples that are computed side by side: as many as a vector register holds where the library was built."""
    built = library()
    assert built is not None
    return int(built.esper_pack())


def inner(x: Tensor) -> Tensor:
    """The tensor with every sample in one piece."""
    return x if x.numel() == 0 or x[0, 0].is_contiguous() else x.contiguous()


def address(tensor: Tensor | None) -> int:
    """Where the numbers are; 0 where there are none."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()
