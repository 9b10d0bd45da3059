"""The native form: a blueprint's two programs, run in the library as everything else is.

The library trains whole networks, so a network is made around the program: before it a table, whose row b is what
sample b reads, so that the table's gradient is that of the input; behind it the linear map of the goal.
"""

import json
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from esper.kasmina.layers import RUNNING_MOMENTUM, embed, linear
from esper.kasmina.layout import Layout, Param, Params
from esper.tezzeret.backend import BackendError
from esper.tezzeret.native import run
from esper.tezzeret.native.emit import Emitted
from esper.tezzeret.native.graph import Shape
from esper.tezzeret.native.library import as_numbers, library, pack
from esper.tezzeret.native.lower import Input, lower, lower_blueprint
from esper.tezzeret.native.programs import BlockProgram, Code, Instruction, NetworkProgram, Op, Program
from esper.tezzeret.native.run import Lanes
from esper.tezzeret.stages.forms import BlueprintForm, Goal, Subject, Trained
from esper.tezzeret.toolchain import check_isa

ISA = {"x86_64": {4: "sse", 8: "avx2", 16: "avx512"}, "aarch64": {4: "neon"}, "arm64": {4: "neon"}}
"""What instruction sets are called, by machine and by how many numbers a vector holds."""


def native_form(subject: Subject) -> BlueprintForm:
    """A blueprint as the native library runs it.

    Raises:
      BackendError: no library, another instruction set asked for than there is, or an operation that it lacks.
    """
    try:
        check_isa()
    except ValueError as error:
        raise BackendError(str(error)) from None
    if library() is None:
        raise BackendError("backend 'native': no built library (no C++ compiler, or ESPER_NATIVE=0); expected one")
    x = Input(subject.source.shape, subject.vocabulary)
    place, rows = f"blueprint {subject.blueprint.name!r}", (subject.layout, subject.buffer_layout)
    lowered = lower_blueprint(place, subject.blueprint, x, rows, subject.target.shape)
    return form_of_code(subject, lowered.train.emitted, lowered.infer.emitted)


def form_of_code(subject: Subject, train: Emitted, infer: Emitted) -> BlueprintForm:
    """A blueprint's form from its programs, in training and in inference."""
    code, facts = to_bytes(train, infer), {"instructions": len(train.code.instructions), "lanes": pack()}
    trained, inferred = Program(train.code), Program(infer.code)

    def run_train(params: Tensor, buffers: Tensor, x: Tensor, goal: Goal) -> Trained:
        return _train(subject, trained, train.tracked, (params, buffers), x, goal)

    def run_infer(params: Tensor, buffers: Tensor, x: Tensor) -> Tensor:
        return _infer(inferred, params, buffers, as_numbers(x)).reshape(*x.shape[:2], *subject.target.shape)

    return BlueprintForm("native", run_infer, run_train, facts, code)


def _infer(program: Program, params: Tensor, buffers: Tensor, x: Tensor) -> Tensor:
    """[n, B, numbers of the output]."""
    each = torch.arange(x.shape[0])
    lanes = Lanes(torch.arange(x.shape[0] + 1), each, torch.full_like(each, -1), each)
    network = NetworkProgram((BlockProgram(program, 0, 0, 0),), (), (0,), 0)
    outputs = torch.empty(*x.shape[:2], prod(program.code.registers[program.code.output]))
    samples = x, torch.zeros(x.shape[1], dtype=torch.int64)
    run.score(network, samples, params.contiguous(), buffers.contiguous(), (), lanes, outputs)
    return outputs


def _train(
    subject: Subject,
    program: Program,
    tracked: tuple[int, ...],
    rows: tuple[Tensor, Tensor],
    x: Tensor,
    goal: Goal,
) -> Trained:
    (params, buffers), (count, samples), size = rows, x.shape[:2], params_of(program)
    head = _head(subject.target.shape, goal.weight.shape[0])
    given = goal.weight.flatten().expand(count, -1)
    programs: tuple[Program, ...] = (program, head)
    numbers: tuple[Tensor, ...] = (params, given)
    inputs, first = as_numbers(x), 0
    if not subject.vocabulary:
        programs, numbers = (_table(subject.source.shape, samples), *programs), (x.flatten(1), *numbers)
        inputs = torch.arange(samples, dtype=torch.float32).reshape(1, samples, 1).expand(count, -1, -1)
        first = numbers[0].shape[1]
    blocks, begin = list[BlockProgram](), 0
    for each, part in zip(programs, numbers, strict=True):
        blocks.append(BlockProgram(each, begin, 0, 0))
        begin += part.shape[1]
    network = NetworkProgram(tuple(blocks), (), tuple(range(len(blocks))), program.num_aux)
    found = run.train(network, inputs, goal.targets.unsqueeze(0), torch.cat(numbers, dim=1).contiguous(), ())
    new = buffers
    if tracked:
        new = torch.lerp(buffers, found.aux[:, list(tracked)], RUNNING_MOMENTUM)
    pulled = None if subject.vocabulary else found.host[:, :first].reshape(x.shape)
    return Trained(found.losses[0], found.host[:, first : first + size], pulled, new)


def params_of(program: Program) -> int:
    """Numbers of a network that a program reads."""
    return program.code.num_params


@cache
def _table(shape: Shape, samples: int) -> Program:
    """Sample b is row b of the parameters."""
    layout = Layout((Param("table", (samples, prod(shape)), "constant", 0.0),))

    def look_up(params: Params, x: Tensor) -> Tensor:
        return embed(x, params["table"]).reshape(*x.shape[:2], *shape)

    return lower("a table", look_up, False, Input((1,), samples), layout).program


@cache
def _head(shape: Shape, outputs: int) -> Program:
    """The linear map of a goal."""
    layout = Layout((Param("head", (outputs, prod(shape)), "constant", 0.0),))

    def project(params: Params, y: Tensor) -> Tensor:
        return linear(y.flatten(2), params["head"])

    return lower("a linear map", project, False, Input(shape), layout).program


def to_bytes(train: Emitted, infer: Emitted) -> bytes:
    """Both programs as JSON; canonical."""
    return json.dumps([_emitted(train), _emitted(infer)], separators=(",", ":"), allow_nan=False).encode()


def from_bytes(data: bytes) -> tuple[Emitted, Emitted]:
    """What ``to_bytes`` wrote.

    Raises:
      ValueError: it did not write this.
    """
    try:
        train, infer = (_emitted_from(*each) for each in json.loads(data))
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no native code: {error}") from None
    return train, infer


def _emitted(each: Emitted) -> list[Any]:
    return [_code(each.code), each.shape, each.tracked]


def _code(code: Code) -> list[Any]:
    setup = None if code.setup is None else _code(code.setup)
    instructions = [[int(field) for field in each] for each in code.instructions]
    return [code.registers, instructions, code.output, code.num_params, code.num_buffers, code.tables, setup]


def _emitted_from(code: list[Any], shape: list[int], tracked: list[int]) -> Emitted:
    return Emitted(_code_from(*code), tuple(shape), tuple(tracked))


def _code_from(
    registers: list[Any], instructions: list[Any], output: int, params: int, buffers: int, tables: list[int], setup: Any
) -> Code:
    rectify = Instruction._fields.index("rectify")
    listed = tuple(Instruction(*each)._replace(op=Op(each[0]), rectify=bool(each[rectify])) for each in instructions)
    shapes = tuple((channels, height, width) for channels, height, width in registers)
    return Code(shapes, listed, output, params, buffers, tuple(tables), None if setup is None else _code_from(*setup))
