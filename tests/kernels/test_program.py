"""Programs in C++ against torch in float64, network by network; what goes on around them; what they may depend on."""

import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from esper.kernels.program import Code, Instruction, Op, Program, Rows, float_bits, library, run
from esper.utils import rng

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")

Shape = tuple[int, int, int]
NORMS = (Op.GROUP_NORM, Op.BATCH_NORM, Op.AFFINE)
EPSILON = 1e-5
NEAR = 3e-6
"""How far from a relu's edge or a tie rounding can carry a number, in units of the largest; see ``exact``."""


class Writer:
    """Code, written instruction by instruction."""

    def __init__(self, shape: Shape) -> None:
        self.registers, self.params, self.buffers = [shape], 0, 0
        self.instructions: list[Instruction] = []

    def take(self, size: int) -> int:
        self.params += size
        return self.params - size

    def add(self, op: Op, source: int = -1, other: int = -1, out: int = 0, bias: bool = False, **fields: Any) -> int:
        """Add an instruction behind register ``source``; returns the register it writes."""
        source = len(self.registers) - 1 if source < 0 else source
        channels, height, width = self.registers[source]
        shape = {Op.POOL: (channels, height // 2, width // 2), Op.MEAN: (channels, 1, 1), Op.CONV: (out, height, width)}
        if op is Op.CONV:
            fields["weight"] = self.take(out * channels // fields.get("groups", 1) * fields.get("kernel", 1) ** 2)
            fields["bias"] = self.take(out) if bias else -1
        elif op in NORMS:
            fields["weight"], fields["bias"] = self.take(channels), self.take(channels)
        elif op is Op.FADE:
            fields["weight"] = self.take(1)
        if op is Op.AFFINE:
            fields["constant"], self.buffers = self.buffers, self.buffers + 2 * channels
        self.instructions.append(Instruction(op, len(self.registers), source, other, **fields))
        self.registers.append(shape.get(op, (channels, height, width)))
        return len(self.registers) - 1

    def code(self) -> Code:
        return Code(tuple(self.registers), tuple(self.instructions), len(self.registers) - 1, self.params, self.buffers)


class Case(NamedTuple):
    """Arguments of one call, of n networks that run one code, and the gradient of the output."""

    code: Code
    x: Tensor
    params: Tensor
    buffers: Tensor
    weight: Any  # Tensor or None
    grad: Tensor


def fan_in(code: Code, i: Instruction) -> int:
    return code.registers[i.source][0] // i.groups * i.kernel**2 if i.op is Op.CONV else 1


def deal(code: Code, n: int, batch: int, fades: bool = False, seed: int = 0) -> Case:
    """Standard normal inputs and gradients; weights that keep the size of what passes; positive variances."""
    keys = rng.split(rng.key(seed), 5)
    params, buffers = rng.normal(keys[0], (n, code.num_params)), rng.normal(keys[1], (n, code.num_buffers))
    for i in code.instructions:
        if i.op is Op.CONV:
            size = code.registers[i.to][0] * fan_in(code, i)
            params[:, i.weight : i.weight + size] /= fan_in(code, i) ** 0.5
        if i.op is Op.AFFINE:
            channels = code.registers[i.source][0]
            buffers[:, i.constant + channels : i.constant + 2 * channels].abs_().add_(0.3)
    shape = code.registers[0], code.registers[code.output]
    x, grad = (rng.normal(key, (n, batch, *each)) for key, each in zip(keys[2:4], shape, strict=True))
    return Case(code, x, params, buffers, rng.uniform(keys[4], (n, batch)) if fades else None, grad)


def larger(a: Tensor, b: Tensor, edge: float) -> Tensor:
    return torch.where(a - b > edge * a.detach().abs().max(), a, b)


def rectify(h: Tensor, edge: float) -> Tensor:
    return torch.where(h > edge * h.detach().abs().max(), h, 0.0)


def pool(h: Tensor, edge: float) -> Tensor:
    even = h[:, :, : h.shape[2] // 2 * 2, : h.shape[3] // 2 * 2]
    rows = larger(even[:, :, 0::2], even[:, :, 1::2], edge)
    return larger(rows[..., 0::2], rows[..., 1::2], edge)


def normalise(i: Instruction, h: Tensor, params: Tensor, buffers: Tensor) -> Tensor:
    channels = h.shape[1]
    affine = (params[i.weight :][:channels], params[i.bias :][:channels])
    if i.op is Op.GROUP_NORM:
        return F.group_norm(h, i.groups, *affine, EPSILON)
    if i.op is Op.BATCH_NORM:
        return F.batch_norm(h, None, None, *affine, training=True, eps=EPSILON)
    mean, variance = buffers[i.constant :][: 2 * channels].split(channels)
    return F.batch_norm(h, mean, variance, *affine, training=False, eps=EPSILON)


def convolve(code: Code, i: Instruction, h: Tensor, params: Tensor) -> Tensor:
    out = code.registers[i.to][0]
    weight = params[i.weight :][: out * fan_in(code, i)].view(out, -1, i.kernel, i.kernel)
    bias = None if i.bias < 0 else params[i.bias :][:out]
    return F.conv2d(h, weight, bias, padding=i.kernel // 2, groups=i.groups)


def layer(code: Code, i: Instruction, h: Tensor, other: Tensor, row: tuple[Tensor, Tensor], edge: float) -> Tensor:
    """One instruction for one network; h [B, C, H, W], row: its parameters and buffers."""
    if i.op is Op.CONV:
        return convolve(code, i, h, row[0])
    if i.op in NORMS:
        return normalise(i, h, *row)
    rest: dict[Op, Callable[[], Tensor]] = {
        Op.RELU: lambda: rectify(h, edge),
        Op.POOL: lambda: pool(h, edge),
        Op.MEAN: lambda: h.mean((2, 3), keepdim=True),
        Op.ADD: lambda: h + other,
        Op.SCALE: lambda: h * other,
        Op.SIGMOID: lambda: torch.sigmoid(h),
        Op.TIMES: lambda: struct.unpack("<d", struct.pack("<q", i.constant))[0] * h,
        Op.FADE: lambda: h + torch.tanh(row[0][i.weight]) * (other - h),
    }
    return rest[i.op]()


class Result(NamedTuple):
    """What a case gives; gradients are None for code that is for inference only."""

    y: Tensor
    grad_x: Any
    grad_params: Any
    grad_weight: Any


def is_trained(code: Code) -> bool:
    return all(i.op is not Op.AFFINE for i in code.instructions)


def one_network(case: Case, n: int, edge: float) -> tuple[list[Tensor | None], float]:
    """Output and gradients of network n in float64, and by how much its layers can enlarge a rounding error."""
    code, gain = case.code, 1.0
    x, params, buffers, grad = (t[n].double() for t in (case.x, case.params, case.buffers, case.grad))
    x.requires_grad_(), params.requires_grad_()
    values = [x]
    for i in code.instructions:
        h = values[i.source]
        if i.op in NORMS[:2]:
            groups = h.reshape(h.shape[0], i.groups, -1) if i.op is Op.GROUP_NORM else h.transpose(0, 1).flatten(1)
            gain *= max(1.0, groups.var(-1, correction=0).add(EPSILON).rsqrt().max().item())
        y = layer(code, i, h, values[i.other], (params, buffers), edge)
        values.append(rectify(y, edge) if i.rectify else y)
    out, weight = values[code.output], None
    if case.weight is not None:
        weight = case.weight[n].double().requires_grad_()
        out = torch.lerp(x, out, weight.view(-1, 1, 1, 1))
    leaves = (x, params, *values[1:], *(() if weight is None else (weight,)))
    grads = torch.autograd.grad(out, leaves, grad, allow_unused=True, materialize_grads=True)
    gain *= max(1.0, *(v.detach().abs().max().item() for v in values))
    gain *= max(1.0, *(g.abs().max().item() for g in grads[2 : 1 + len(values)]))
    kept = (*grads[:2], None if weight is None else grads[-1]) if is_trained(code) else (None, None, None)
    return [out.detach(), *kept], gain


def exact(case: Case, edge: float = 0.0) -> tuple[Result, float]:
    """By torch, one network after the other, in float64.

    Args:
      case: what to compute.
      edge: where relus open and maxima change sides. Rounding decides for numbers that are nearer to the edge than
        it carries; what they contribute is the difference between a rendering with this above and one with it below 0.
    """
    rows, gains = zip(*(one_network(case, n, edge) for n in range(case.x.shape[0])), strict=True)
    columns = zip(*rows, strict=True)
    return Result(*(None if c[0] is None else torch.stack(c) for c in columns)), max(gains)


def own(case: Case, rows: Rows | None = None) -> Result:
    rows = rows or Rows((Program(case.code),), (case.params.shape[0],))
    trained = is_trained(case.code)
    x, params = (t.clone().requires_grad_(trained) for t in (case.x, case.params))
    weight = None if case.weight is None else case.weight.clone().requires_grad_(trained)
    y, _ = run(rows, x, params, case.buffers, weight)
    if not trained:
        return Result(y, None, None, None)
    leaves = (x, params, *(() if weight is None else (weight,)))
    grads = torch.autograd.grad(y, leaves, case.grad)
    return Result(y.detach(), grads[0], grads[1], None if weight is None else grads[2])


def assert_agrees(found: Result, case: Case) -> None:
    """Up to the rounding of float32 sums of numbers as large as those that occur."""
    (truth, gain), (above, _), (below, _) = (exact(case, edge) for edge in (0.0, NEAR, -NEAR))
    wide = max(math.prod(shape[1:]) for shape in case.code.registers) * case.x.shape[1]
    fan = max(fan_in(case.code, i) for i in case.code.instructions)
    terms = {"y": fan, "grad_x": fan * case.code.registers[case.code.output][0], "grad_params": wide}
    terms["grad_weight"] = math.prod(case.code.registers[0])
    for name, value in found._asdict().items():
        if value is None:
            assert getattr(truth, name) is None
            continue
        wanted, one, two = (getattr(each, name) for each in (truth, above, below))
        allowed = 3e-6 * terms[name] ** 0.5 * gain + 2 * (one - two).abs()
        error = (value.double() - wanted).abs()
        assert (error <= allowed).all(), f"{name}: {(error - allowed).max()} farther off than allowed"


shapes = st.tuples(st.integers(1, 9), st.integers(1, 13), st.integers(1, 13))
networks, batches = st.integers(1, 4), st.integers(1, 70)
divisor = st.sampled_from([1, 2, 3, 4, 8])


def write(draw: Callable[..., Any], writer: Writer, op: Op, batch: int) -> None:
    """Add ``op`` behind a drawn register, or nothing where it does not fit."""
    source = draw(st.integers(max(0, len(writer.registers) - 3), len(writer.registers) - 1))
    channels, height, width = writer.registers[source]
    groups = math.gcd(channels, draw(divisor))
    normed = {Op.GROUP_NORM: channels // groups, Op.BATCH_NORM: batch, Op.AFFINE: 4}
    if op is Op.CONV:
        groups = math.gcd(channels, draw(st.sampled_from([1, 1, 2, channels])))
        out = groups * draw(st.integers(1, max(1, 10 // groups)))
        kernel = draw(st.sampled_from([1, 3, 5, 7]))
        writer.add(op, source, out=out, groups=groups, kernel=kernel, bias=draw(st.booleans()))
    elif op in NORMS:
        if normed[op] * height * width >= 4:
            writer.add(op, source, rectify=draw(st.booleans()), groups=groups if op is Op.GROUP_NORM else 1)
    elif op in (Op.SCALE, Op.ADD, Op.FADE):
        shape = (channels, 1, 1) if op is Op.SCALE else writer.registers[source]
        if shape not in writer.registers:
            writer.add(Op.MEAN, source)
        writer.add(op, source, draw(st.sampled_from([n for n, each in enumerate(writer.registers) if each == shape])))
    elif op is not Op.POOL or min(height, width) >= 2:
        writer.add(
            op,
            source,
            **({"constant": float_bits(draw(st.sampled_from([-2.5, 0.0, 0.3, 2.0])))} if op is Op.TIMES else {}),
        )


@st.composite
def cases(
    draw: Callable[..., Any], ops: tuple[Op, ...], shortest: int, longest: int
) -> tuple[Code, int, int, bool, int]:
    """Arguments of ``deal``."""
    n, batch, writer = draw(networks), draw(batches), Writer(draw(shapes))
    for op in draw(st.lists(st.sampled_from(ops), min_size=shortest, max_size=longest)):
        write(draw, writer, op, batch)
    if not writer.instructions:
        writer.add(Op.RELU)
    code = writer.code()
    joins = any(i.op is Op.BATCH_NORM for i in code.instructions)
    fades = code.registers[0] == code.registers[-1] and not joins and draw(st.booleans())
    return code, n, batch, fades, draw(st.integers(0, 999))


TRAINED = tuple(op for op in Op if op is not Op.AFFINE)
INFERRED = tuple(op for op in Op if op is not Op.BATCH_NORM)


@pytest.mark.parametrize("op", Op, ids=lambda op: op.name.lower())
@settings(max_examples=20)
@given(data=st.data())
def test_one_layer_equals_torch(op: Op, data: st.DataObject) -> None:
    case = deal(*data.draw(cases((op,), 1, 1)))
    assert_agrees(own(case), case)


@settings(max_examples=150)
@given(cases(TRAINED, 3, 7))
def test_a_program_equals_torch(drawn: tuple[Code, int, int, bool, int]) -> None:
    case = deal(*drawn)
    assert_agrees(own(case), case)


@settings(max_examples=40)
@given(cases(INFERRED, 2, 5))
def test_inference_equals_torch(drawn: tuple[Code, int, int, bool, int]) -> None:
    case = deal(*drawn)
    assert_agrees(own(case), case)


def test_a_norm_wider_than_the_output() -> None:
    writer = Writer((1, 1, 1))
    writer.add(Op.CONV, out=64), writer.add(Op.AFFINE), writer.add(Op.CONV, out=1)
    case = deal(writer.code(), 2, 20)
    assert_agrees(own(case), case)


def test_a_number_times_itself() -> None:
    writer = Writer((5, 1, 1))
    writer.add(Op.SCALE, 0, 0)
    case = deal(writer.code(), 2, 20)
    assert_agrees(own(case), case)


def block(channels: int = 4, out: int = 4, pool: bool = False) -> Writer:
    """A residual branch with every kind of joint: two readers, a relu in a norm, a gate by channel."""
    writer = Writer((channels, 6, 5))
    writer.add(Op.CONV, out=out, kernel=3), writer.add(Op.GROUP_NORM, groups=2, rectify=True)
    mean = writer.add(Op.MEAN, 2)
    writer.add(Op.SIGMOID, mean), writer.add(Op.SCALE, 2, 4), writer.add(Op.ADD, 5, 0 if out == channels else 2)
    if pool:
        writer.add(Op.POOL)
    return writer


def normed() -> Writer:
    writer = Writer((4, 6, 5))
    writer.add(Op.CONV, out=5, kernel=3), writer.add(Op.BATCH_NORM, rectify=True), writer.add(Op.CONV, out=4)
    writer.add(Op.BATCH_NORM), writer.add(Op.FADE, 0, 4)
    return writer


KINDS = {"samples apart": block, "samples joined": normed}


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=30)
def test_batch_statistics_equal_torch(batch: int, height: int, width: int) -> None:
    writer = Writer((3, height, width))
    writer.add(Op.CONV, out=4), writer.add(Op.BATCH_NORM), writer.add(Op.CONV, out=3), writer.add(Op.BATCH_NORM)
    case = deal(writer.code(), 2, batch)
    aux = run(Rows((Program(case.code),), (2,)), case.x, case.params)[1].double()
    x, params = case.x.double(), case.params.double()
    first = torch.einsum("nbihw,noi->nbohw", x, params[:, :12].view(2, 4, 3))
    torch.testing.assert_close(aux[:, :4], first.mean((1, 3, 4)), rtol=0, atol=2e-6)
    if batch * height * width == 1:
        assert not aux[:, 4:8].any()  # the plain form divides by max(count - 1, 1)
        return
    torch.testing.assert_close(aux[:, 4:8], first.var((1, 3, 4)), rtol=1e-5, atol=2e-6)
    normed = (first - first.mean((1, 3, 4), keepdim=True)) / (
        first.var((1, 3, 4), correction=0, keepdim=True) + EPSILON
    ).sqrt()
    normed = normed * params[:, None, 12:16, None, None] + params[:, None, 16:20, None, None]
    second = torch.einsum("nbihw,noi->nbohw", normed, params[:, 20:32].view(2, 3, 4))
    gain = 1 + (first.var((1, 3, 4), correction=0) + EPSILON).rsqrt().max().item()
    torch.testing.assert_close(aux[:, 8:11], second.mean((1, 3, 4)), rtol=0, atol=4e-6 * gain)
    torch.testing.assert_close(aux[:, 11:], second.var((1, 3, 4)), rtol=1e-5 * gain, atol=1e-5 * gain)


def test_statistics_of_numbers_far_from_zero() -> None:
    """The variance is that of the differences from the mean, not a difference of two squares."""
    writer = Writer((2, 4, 4))
    writer.add(Op.CONV, out=2, groups=2), writer.add(Op.BATCH_NORM)
    case = deal(writer.code(), 2, 40)
    x = (case.x + 4096).contiguous()
    case.params[:, :2] = 1
    aux = run(Rows((Program(case.code),), (2,)), x, case.params)[1].double()
    torch.testing.assert_close(aux[:, :2], x.double().mean((1, 3, 4)), rtol=1e-6, atol=0)
    torch.testing.assert_close(aux[:, 2:], x.double().var((1, 3, 4)), rtol=1e-4, atol=0)


class Around(NamedTuple):
    """A call among rows that take no part."""

    x: Tensor
    weight: Tensor
    rows: Rows
    own_grads: tuple[Tensor, ...]
    y: Tensor


LANES, TRAINING, ISOLATED = [5, 0, 3, 6], [True, False, False, True], [True, True, False, False]


def around(writer: Writer, batch: int = 21) -> tuple[Case, Around]:
    """Four networks on seven rows: training or not, isolated or not."""
    case = deal(writer.code(), 4, batch, fades=True)
    rows = Rows((Program(case.code),), (4,), *(torch.tensor(each) for each in (LANES, TRAINING, ISOLATED)))
    x, grad = (rng.normal(rng.key(seed), (7, *case.x.shape[1:])) for seed in (31, 32))
    case = case._replace(grad=grad)
    leaves = [t.clone().requires_grad_() for t in (x, case.params, case.weight)]
    y, _ = run(rows, leaves[0], leaves[1], weight=leaves[2])
    return case, Around(x, case.weight, rows, torch.autograd.grad(y, leaves, grad), y.detach())


def blended(case: Case, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Row by row from the definition, in float64: y and the gradients of x, params and weight."""
    leaves = [t.double().clone().requires_grad_() for t in (x, case.params, case.weight)]
    outputs = list(leaves[0].unbind(0))
    for n, (lane, trains, alone) in enumerate(zip(LANES, TRAINING, ISOLATED, strict=True)):
        h, values = leaves[0][lane], []
        values.append(h.detach() if alone else h)
        for i in case.code.instructions:
            out = layer(case.code, i, values[i.source], values[i.other], (leaves[1][n], leaves[1][n][:0]), 0.0)
            values.append(torch.relu(out) if i.rectify else out)
        s, weight = values[-1], leaves[2][n].view(-1, 1, 1, 1)
        outputs[lane] = h + s - s.detach() if trains else (1 - weight) * h + weight * s
    y = torch.stack(outputs)
    grads = torch.autograd.grad(y, leaves, case.grad.double(), materialize_grads=True)
    return y.detach(), grads


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_isolation(kind: str) -> None:
    case, found = around(KINDS[kind]())
    y, grads = blended(case, found.x)
    torch.testing.assert_close(found.y.double(), y, rtol=0, atol=2e-5)
    for name, value, wanted in zip(("x", "params", "weight"), found.own_grads, grads, strict=True):
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert (grads[1].abs().amax(1) > 1).all(), "every program is trained"
    assert not found.own_grads[2][[0, 3]].any(), "a silent row has no weight"


@pytest.mark.parametrize("kind", KINDS)
def test_what_keeps_its_bits(kind: str) -> None:
    case, found = around(KINDS[kind]())
    apart = [row for row in range(7) if row not in LANES]
    silent = [lane for lane, trains in zip(LANES, TRAINING, strict=True) if trains]
    hidden = [lane for lane, *both in zip(LANES, TRAINING, ISOLATED, strict=True) if all(both)]
    assert torch.equal(found.y[apart + silent], found.x[apart + silent])
    assert torch.equal(found.own_grads[0][apart + hidden], case.grad[apart + hidden])


def test_no_numbers_in_a_silent_program_do_not_leave_it() -> None:
    case, clean = around(block())
    case.params[0, 0] = torch.nan
    x, params, weight = (t.clone().requires_grad_() for t in (clean.x, case.params, case.weight))
    y, _ = run(clean.rows, x, params, weight=weight)
    assert torch.equal(y, clean.y)
    grad_x, grad_params = torch.autograd.grad(y, (x, params), case.grad)
    assert torch.equal(grad_x, clean.own_grads[0])
    assert torch.equal(grad_params[1:], clean.own_grads[1][1:]) and grad_params[0].isnan().any()


def test_without_lanes_every_row_is_replaced_in_order() -> None:
    case = deal(block().code(), 3, 18)
    listed = Rows((Program(case.code),), (3,), torch.arange(3))
    for a, b in zip(own(case), own(case, listed), strict=True):
        assert a is b is None or torch.equal(a, b)


def test_isolation_without_a_weight() -> None:
    case = deal(block().code(), 2, 18)
    rows = Rows((Program(case.code),), (2,), isolated=torch.tensor([True, False]))
    free, found = own(case), own(case, rows)
    assert torch.equal(found.y, free.y) and torch.equal(found.grad_params, free.grad_params)
    assert not found.grad_x[0].any() and torch.equal(found.grad_x[1], free.grad_x[1])


def test_training_without_a_weight() -> None:
    case = deal(block().code(), 2, 18)
    rows = Rows((Program(case.code),), (2,), training=torch.tensor([True, False]))
    free, found = own(case), own(case, rows)
    assert torch.equal(found.y[0], case.x[0]) and torch.equal(found.y[1], free.y[1])
    assert torch.equal(found.grad_params, free.grad_params) and torch.equal(found.grad_x[1], free.grad_x[1])
    torch.testing.assert_close(found.grad_x[0], free.grad_x[0] + case.grad[0], rtol=1e-6, atol=1e-6)


def several() -> tuple[list[Case], Case, Rows]:
    """Three programs of different widths, with 2, 0 and 3 networks; alone and in one call."""
    writers = [block(out=2), Writer((4, 6, 5)), block(out=6)]
    writers[0].add(Op.CONV, out=4), writers[1].add(Op.RELU), writers[2].add(Op.CONV, out=4, kernel=5)
    codes, counts = [writer.code() for writer in writers], (2, 0, 3)
    alone = [deal(code, count, 37, True, seed) for seed, (code, count) in enumerate(zip(codes, counts, strict=True))]
    width = max(code.num_params for code in codes)
    padded = torch.cat([F.pad(each.params, (0, width - each.params.shape[1]), value=7.0) for each in alone])
    x, weight, grad = (torch.cat([getattr(each, name) for each in alone]) for name in ("x", "weight", "grad"))
    together = Case(codes[0], x, padded, padded[:, :0], weight, grad)
    return alone, together, Rows(tuple(map(Program, codes)), counts)


def test_several_programs_in_one_call() -> None:
    alone, together, rows = several()
    found, at = own(together, rows), 0
    for case in alone:
        if not case.x.shape[0]:
            continue
        span, width = slice(at, at + case.x.shape[0]), case.params.shape[1]
        at = span.stop
        each = own(case)
        assert_agrees(each, case)
        for name in ("y", "grad_x", "grad_weight"):
            assert torch.equal(getattr(found, name)[span], getattr(each, name)), name
        assert torch.equal(found.grad_params[span, :width], each.grad_params)
        assert not found.grad_params[span, width:].any(), "padding has no gradient"


@pytest.mark.parametrize("first", KINDS)
def test_programs_that_join_samples_beside_others_that_do_not(first: str) -> None:
    order = sorted(KINDS, key=lambda kind: kind != first)
    alone = [deal(KINDS[kind]().code(), 2, 37, True, seed) for seed, kind in enumerate(order)]
    width = max(case.params.shape[1] for case in alone)
    padded = torch.cat([F.pad(case.params, (0, width - case.params.shape[1])) for case in alone])
    x, weight, grad = (torch.cat([getattr(each, name) for each in alone]) for name in ("x", "weight", "grad"))
    together = Case(alone[0].code, x, padded, padded[:, :0], weight, grad)
    found = own(together, Rows(tuple(Program(case.code) for case in alone), (2, 2)))
    for index, case in enumerate(alone):
        span, each = slice(2 * index, 2 * index + 2), own(case)
        assert torch.equal(found.y[span], each.y) and torch.equal(found.grad_x[span], each.grad_x)
        # the order of the sums over samples is the call's, not the program's
        torch.testing.assert_close(found.grad_params[span, : case.params.shape[1]], each.grad_params)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_depends_on_nothing_else(kind: str) -> None:
    """Not on other networks, their order, or the number of threads: to the bit."""
    case = deal(KINDS[kind]().code(), 5, 50, fades=True)
    together, order, threads = own(case), [3, 0, 4, 2, 1], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            alone, moved = (
                own(Case(case.code, *(part[rows] for part in case[1:])))  # type: ignore[arg-type, index]
                for rows in (slice(2, 3), order)
            )
            for one, other, whole in zip(alone, moved, together, strict=True):
                assert torch.equal(one[0], whole[2]) and torch.equal(other, whole[order])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("spread", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_no_number_stays_in_its_network(kind: str, spread: float) -> None:
    case = deal(KINDS[kind]().code(), 3, 21, fades=True)
    clean = own(case)
    case.x[1, 4, 2, 3, 3] = case.params[1, 5] = case.grad[1, 20, 0, 0, 0] = spread
    for found, wanted in zip(own(case), clean, strict=True):
        assert torch.equal(found[[0, 2]], wanted[[0, 2]])
        assert not found[1].isfinite().all()


def test_no_number_stays_in_its_sample() -> None:
    """Where samples are apart: in the output and in the input's gradient, also of the last, unfilled pack."""
    case = deal(block().code(), 1, 21, fades=True)
    clean = own(case)
    case.x[0, 18, 2, 3, 3] = torch.nan
    others = [sample for sample in range(21) if sample != 18]
    found = own(case)
    for name in ("y", "grad_x", "grad_weight"):
        assert torch.equal(getattr(found, name)[:, others], getattr(clean, name)[:, others]), name
    assert found.y[0, 18].isnan().all(), "the mean of a map with a NaN is in all its channel's positions"


VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, math.nan, math.inf, -math.inf])


@given(st.lists(VALUES, min_size=20, max_size=20))
@settings(max_examples=60)
def test_relu_and_pooling_of_ties_and_no_numbers(values: list[float]) -> None:
    """A NaN passes; equal numbers share the gradient: first those of a column, then the two columns."""
    writer = Writer((1, 4, 5))
    writer.add(Op.POOL), writer.add(Op.RELU)
    x = torch.tensor(values).reshape(1, 1, 1, 4, 5)
    case = deal(writer.code(), 1, 1)._replace(x=x)
    found = own(case)
    leaf = x.double().requires_grad_()
    columns = torch.maximum(leaf[..., 0::2, :4], leaf[..., 1::2, :4])
    wanted = torch.relu(torch.maximum(columns[..., 0::2], columns[..., 1::2]))
    torch.testing.assert_close(found.y.double(), wanted.detach(), rtol=0, atol=0, equal_nan=True)
    expected = torch.autograd.grad(wanted, leaf, case.grad.double())[0]
    torch.testing.assert_close(found.grad_x.double(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("order", ["samples first", "expanded", "channels last", "transposed", "spread", "strided"])
def test_any_layout(order: str) -> None:
    case = deal(block().code(), 3, 21, fades=True)

    def move(part: Tensor) -> Tensor:
        if order == "samples first":
            return part.transpose(0, 1).contiguous().transpose(0, 1)
        if order == "expanded":
            return part[:1, :1].expand_as(part)
        if order == "channels last":
            return part.movedim(2, 4).contiguous().movedim(4, 2)
        if order == "transposed":
            return part.mT.contiguous().mT
        if order == "spread":  # every second sample of a larger tensor
            return torch.stack((part, part + 1), 2)[:, :, 0]
        return torch.stack((part, part + 1), -1)[..., 0]

    wide = torch.cat((case.params, case.params), 1)[:, : case.params.shape[1]]
    moved = case._replace(x=move(case.x), grad=move(case.grad), params=wide, weight=case.weight.t().contiguous().t())
    plain = case._replace(x=moved.x.contiguous(), grad=moved.grad.contiguous())
    rows = Rows((Program(case.code),), (3,))
    y, _ = run(rows, moved.x, moved.params, weight=moved.weight)
    assert torch.equal(y, own(plain).y)
    leaves = [t.detach().requires_grad_() for t in (moved.x, moved.params, moved.weight)]
    y, _ = run(rows, leaves[0], leaves[1], weight=leaves[2])
    for found, wanted in zip(torch.autograd.grad(y, leaves, moved.grad), own(plain)[1:], strict=True):
        assert found.shape == wanted.shape and torch.equal(found, wanted)


def test_without_parameters() -> None:
    writer = Writer((2, 3, 3))
    writer.add(Op.SIGMOID), writer.add(Op.ADD, 1, 0)
    case = deal(writer.code(), 2, 40, fades=True)
    found = own(case)
    assert_agrees(found, case)
    assert found.grad_params.shape == (2, 0)


def test_one_network_of_a_wide_row() -> None:
    """Torch calls [1, P] contiguous whatever its first stride is."""
    case = deal(block().code(), 1, 37)
    wide = F.pad(case.params, (0, 2**22)).requires_grad_()
    y, _ = run(Rows((Program(case.code),), (1,)), case.x, wide[:, : case.params.shape[1]])
    (grad,) = torch.autograd.grad(y, wide, case.grad)
    assert torch.equal(grad[:, : case.params.shape[1]], own(case).grad_params)


def test_a_gradient_that_nobody_wants() -> None:
    """The first layer's input, or parameters that are fixed: what is left keeps its bits."""
    case = deal(block().code(), 2, 18)
    both, rows = own(case), Rows((Program(case.code),), (2,))
    params = case.params.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(rows, case.x, params)[0], params, case.grad)
    assert torch.equal(grad, both.grad_params)
    x = case.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(run(rows, x, case.params)[0], x, case.grad)
    assert torch.equal(grad, both.grad_x)


def test_what_forward_read_may_not_change_before_backward() -> None:
    case = deal(block().code(), 1, 3)
    x, params = case.x.clone(), case.params.clone().requires_grad_()
    y, _ = run(Rows((Program(case.code),), (1,)), x, params)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_of_gradients_are_refused_not_wrong() -> None:
    case = deal(block().code(), 1, 2)
    x, params = (part.clone().requires_grad_() for part in (case.x, case.params))
    y, _ = run(Rows((Program(case.code),), (1,)), x, params)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_inputs_keep_their_bits() -> None:
    case, copy = (deal(normed().code(), 2, 37, fades=True) for _ in range(2))
    leaves = [t.requires_grad_() for t in (case.x, case.params, case.weight)]
    y, _ = run(Rows((Program(case.code),), (2,)), leaves[0], leaves[1], weight=leaves[2])
    torch.autograd.grad(y, leaves, case.grad)
    for part, before in zip(case[1:], copy[1:], strict=True):
        assert torch.equal(part, before)  # type: ignore[arg-type]


def test_no_gradient_of_what_is_for_inference_and_no_batch_without_samples() -> None:
    writer = Writer((4, 3, 3))
    writer.add(Op.AFFINE)
    case = deal(writer.code(), 2, 5)
    rows = Rows((Program(case.code),), (2,))
    with pytest.raises(ValueError, match="inference form"):
        run(rows, case.x.clone().requires_grad_(), case.params, case.buffers)
    with pytest.raises(ValueError, match=r"\(2, 0, 4, 3, 3\)"):
        run(rows, case.x[:, :0], case.params, case.buffers)
