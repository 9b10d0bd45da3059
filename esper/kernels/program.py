"""Programs: a module's layers run for many networks in one call, in C++ for float32 on a CPU.

A module is written as instructions between registers, each the feature map of one sample. The kernel takes a network
and a pack of its samples at a time through the whole program, forward or backward, while everything is in the cache: no
intermediate result is written to memory but what convolutions give, which backward needs. It starts without
compiling anything, and takes any number of networks.

Laws: a network's result depends on nothing but its own numbers and samples, neither on other networks nor on the
number of threads, to the bit; results and gradients equal the plain form's up to rounding.
"""

import ctypes
import functools
import struct
import weakref
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
      weight: where its weights begin in the row of parameters, -1 if it has none.
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
        assert built is not None, "there is no built library; modules take the plain form then"
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

    @property
    def for_inference(self) -> bool:
        """Whether it normalises with running statistics, for which there is no backward."""
        return any(instruction.op is Op.AFFINE for instruction in self.code.instructions)

    def kept(self, batch: int) -> int:
        """Numbers that one network keeps for backward."""
        built = library()
        assert built is not None
        return pack() * int(built.esper_kept(self.handle, batch))


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
        found.esper_kept.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        found.esper_kept.restype = ctypes.c_int64
        found.esper_aux.argtypes = [ctypes.c_void_p]
        found.esper_aux.restype = ctypes.c_int64
        for run in (found.esper_forward, found.esper_backward):
            run.argtypes, run.restype = [ctypes.c_void_p], None
    return found


@functools.cache
def pack() -> int:
    """Samples that are computed side by side: as many as a vector register holds where the library was built."""
    built = library()
    assert built is not None
    return int(built.esper_pack())


class _Call(ctypes.Structure):
    """``Call`` of ``kernels/program.cpp``, field by field."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("networks", "batch", "kinds", "threads", "programs", "counts"),
            *("x", "x_network", "x_sample", "lanes", "params", "params_network", "buffers", "buffers_network"),
            *("weight", "training", "isolated", "kept", "y", "aux", "aux_network"),
            *("grad", "grad_network", "grad_sample", "grad_x", "grad_params", "grad_weight", "partial"),
        )
    )


class Rows(NamedTuple):
    """Which network runs which program, and what happens around it.

    Attributes:
      programs: in the order in which their networks are listed; all map to the same shape.
      counts: networks of each.
      lanes: int64 [n]; row of x that each network reads and replaces; None if they are all rows in order.
      training: bool [n]; networks that are silent: y = x, while the program's output gets the gradient of y.
      isolated: bool [n]; networks whose programs give no gradient to x.
    """

    programs: tuple[Program, ...]
    counts: tuple[int, ...]
    lanes: Tensor | None = None
    training: Tensor | None = None
    isolated: Tensor | None = None


def run(
    rows: Rows, x: Tensor, params: Tensor, buffers: Tensor | None = None, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run programs.

    Args:
      rows: n networks.
      x: [L, B, C, H, W]; float32.
      params: [n, P]; every network's row, its program's numbers first.
      buffers: [n, N] or None.
      weight: [n, B] or None.

    Returns:
      y, with row ``lanes[i]`` being ``program(x)``, or ``lerp(x, program(x), weight)`` if there is a weight, and
      other rows of x as they are; and aux [n, A]. y is differentiable with respect to x, params and weight.

    Raises:
      ValueError: no samples; or a gradient is asked of a program in inference form.
    """
    if not x.shape[1]:
        raise ValueError(f"program's input of shape {tuple(x.shape)}: expected at least one sample")
    leaves = [leaf for leaf in (x, params, weight) if leaf is not None]
    trains = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    if trains and any(program.for_inference for program in rows.programs):
        raise ValueError("program in inference form: a gradient is asked for; expected none")
    y, aux = _Run.apply(rows, trains, inner(x), _inner_rows(params), buffers, weight)
    return y, aux


def inner(x: Tensor) -> Tensor:
    """The tensor with every sample in one piece."""
    return x if x.numel() == 0 or x[0, 0].is_contiguous() else x.contiguous()


def _inner_rows(rows: Tensor) -> Tensor:
    return rows if rows.stride(-1) == 1 or rows.numel() == 0 else rows.contiguous()


def address(tensor: Tensor | None) -> int:
    """Where the numbers are; 0 where there are none."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


class _Operands(NamedTuple):
    """What forward reads and backward reads again."""

    x: Tensor
    params: Tensor
    buffers: Tensor | None
    weight: Tensor | None
    kept: Tensor | None


def _call(rows: Rows, operands: _Operands) -> _Call:
    """The arguments of one call, but for what it writes."""
    x, params, buffers, weight, kept = operands
    handles = (ctypes.c_int64 * len(rows.programs))(*(program.handle for program in rows.programs))
    counts = (ctypes.c_int64 * len(rows.counts))(*rows.counts)
    call = _Call(
        *(params.shape[0], x.shape[1], len(rows.programs), torch.get_num_threads()),
        *(ctypes.addressof(handles), ctypes.addressof(counts)),
        *(address(x), x.stride(0), x.stride(1), address(rows.lanes)),
        *(address(params), params.stride(0), address(buffers), 0 if buffers is None else buffers.stride(0)),
        *(address(weight), address(rows.training), address(rows.isolated), address(kept)),
    )
    call.keeps_alive = (handles, counts)
    return call


def _around(rows: Rows, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Where a result goes: rows that no network replaces are those of x."""
    whole = rows.lanes is None or rows.lanes.shape[0] == x.shape[0]
    return x.new_empty(shape) if whole else x.clone(memory_format=torch.contiguous_format)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Rows, keeps: bool, x: Tensor, params: Tensor, buffers: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        built, program, batch = library(), rows.programs[0], x.shape[1]
        assert built is not None
        kept = None
        if keeps or any(each.joins_samples for each in rows.programs):
            sizes = (count * each.kept(batch) for each, count in zip(rows.programs, rows.counts, strict=True))
            kept = x.new_empty(sum(sizes))
        y = _around(rows, x, (x.shape[0], batch, *program.code.registers[program.code.output]))
        aux = x.new_empty(params.shape[0], max(each.num_aux for each in rows.programs))
        operands = _Operands(x, params, buffers, None if weight is None else weight.contiguous(), kept)
        call = _call(rows, operands)
        call.y, call.aux, call.aux_network = address(y), address(aux), aux.shape[1]
        built.esper_forward(ctypes.addressof(call))
        ctx.save_for_backward(*operands)
        ctx.rows = rows
        ctx.mark_non_differentiable(aux)
        return y, aux

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        built, rows, grad = library(), ctx.rows, inner(grad)
        assert built is not None
        operands = _Operands(*ctx.saved_tensors)
        x, params, weight = operands.x, operands.params.contiguous(), operands.weight
        grad_x = _around(rows, grad, x.shape) if ctx.needs_input_grad[2] else None
        grad_params = torch.empty_like(params)
        grad_weight = torch.empty_like(weight) if weight is not None and ctx.needs_input_grad[5] else None
        partial = params.new_empty(-(-x.shape[1] // pack()) * params.numel())
        call = _call(rows, operands._replace(params=params))
        call.params_network = params.shape[1]  # a single row's stride may be anything
        call.grad, call.grad_network, call.grad_sample = address(grad), grad.stride(0), grad.stride(1)
        call.grad_x, call.grad_params = address(grad_x), address(grad_params)
        call.grad_weight, call.partial = address(grad_weight), address(partial)
        built.esper_backward(ctypes.addressof(call))
        return None, None, grad_x, grad_params, None, grad_weight
