"""Programs: a module's layers as instructions that the native library understands; ``run`` runs them.

A module is written as instructions between registers, each the feature map of one sample. A network and a pack of its
samples go through the whole program, forward or backward, while everything is in the cache. It starts without compiling
anything, and takes any number of networks.
"""

import ctypes
import struct
import weakref
from enum import IntEnum
from typing import NamedTuple

from esper.tezzeret.native.library import library


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
    TANH = 12
    GELU = 13
    GELU_TANH = 14
    SOFTPLUS = 15
    EXP = 16
    LOG = 17
    SQRT = 18
    RECIPROCAL = 19
    ABS = 20
    PLUS = 21
    LOAD = 22
    CONST = 23
    TAKE = 24
    MATMUL = 25
    SOFTMAX = 26
    LARGEST = 27
    NORMALISE = 28
    LINEAR = 29
    EMBED = 30
    GAIN = 31
    SHIFT = 32


class Instruction(NamedTuple):
    """One layer.

    Attributes:
      op: what it does.
      to: register it writes; every register is written once.
      source: register it reads, if it reads one.
      other: second register it reads, -1 if none.
      weight: where its weights begin in the row of parameters, -1 if it has none; those of a batch norm are its own.
      bias: likewise.
      groups: of channels, of neighbours that are normalised together, or of matrices; of pairs, how often the second
        one's numbers stand beside the first one's.
      kernel: side of a convolution; of MATMUL and LINEAR, columns of the left matrices; of EMBED, of its table; of GAIN
        and SHIFT, which are SCALE and ADD with numbers of the network, how many these are.
      rectify: a norm that is followed by a relu.
      constant: where AFFINE's mean and variance begin in the row of buffers; where the table begins of TAKE (places in
        the source, -1: 0) and CONST (``float_bits``); ``float_bits`` of the number of TIMES and PLUS, and of what
        NORMALISE adds to variances; whether LARGEST gives its gradient to the first of equals alone.
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
      tables: of instructions.
      setup: from the row of parameters, as one sample, to further numbers that weights are read from: what follows from
        parameters alone. They have the places behind ``num_params``.
    """

    registers: tuple[tuple[int, int, int], ...]
    instructions: tuple[Instruction, ...]
    output: int
    num_params: int
    num_buffers: int = 0
    tables: tuple[int, ...] = ()
    setup: "Code | None" = None


class Program:
    """Code, understood by the library."""

    def __init__(self, code: Code) -> None:
        built = library()
        assert built is not None, "there is no built library"
        self.setup: Program | None = Program(code.setup) if code.setup is not None else None
        head = (len(code.registers), len(code.instructions), code.output, code.num_params, len(code.tables))
        numbers = [*head, *(n for register in code.registers for n in register)]
        numbers += [*(int(field) for instruction in code.instructions for field in instruction), *code.tables]
        self.code = code
        self.handle: int
        setup = self.setup.handle if self.setup else None
        self.handle = built.esper_program((ctypes.c_int64 * len(numbers))(*numbers), setup)
        self.num_aux: int = built.esper_aux(self.handle)
        weakref.finalize(self, built.esper_release, self.handle)

    @property
    def joins_samples(self) -> bool:
        """Whether it contains a batch norm, which gives ``aux``: per norm the batch mean, then unbiased variance."""
        return self.num_aux > 0


class BlockProgram(NamedTuple):
    """A host block.

    Attributes:
      program: what it computes.
      params, buffers, aux: where its part begins in a network's row of parameters, of buffers, and of statistics.
      ties: numbers of earlier blocks that it reads behind its own: where they begin in the row, and how many.
    """

    program: Program
    params: int
    buffers: int
    aux: int
    ties: tuple[tuple[int, int], ...] = ()


class SlotPrograms(NamedTuple):
    """What can sit in a slot.

    Attributes:
      kinds: programs by kind; None where one does not fit.
      gate: of a learned gate; None without any.
      source: the point that a bypass reads; -1: where the slot acts.
    """

    kinds: tuple[Program | None, ...]
    gate: Program | None
    source: int = -1

    @property
    def num_aux(self) -> int:
        """The most statistics that a kind gives."""
        return max((kind.num_aux for kind in self.kinds if kind), default=0)


class NetworkProgram(NamedTuple):
    """A whole network: a host's blocks with the seeds of its slots in between.

    Attributes:
      blocks: in order.
      slots: by number.
      route: the way of the features: block i, or slot -1 - i.
      num_aux: statistics of all batch norms together.
    """

    blocks: tuple[BlockProgram, ...]
    slots: tuple[SlotPrograms, ...]
    route: tuple[int, ...]
    num_aux: int
