"""Chains of programs in C++ against torch in float64, network by network; and what a network may depend on."""

import math
import struct
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from esper.kernels import chain
from esper.kernels.chain import Chain, Lanes, Lesson, Link, Places, Seeds, SlotPrograms
from esper.kernels.program import Code, Instruction, Op, Program, float_bits
from esper.utils import rng

pytestmark = pytest.mark.skipif(chain.library() is None, reason="no C++ compiler")

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


def fan_in(code: Code, i: Instruction) -> int:
    return code.registers[i.source][0] // i.groups * i.kernel**2 if i.op is Op.CONV else 1


CLASSES = 5


class Held(NamedTuple):
    """Seeds in a slot behind the first program."""

    codes: tuple[Code, ...]
    kinds: tuple[int, ...]  # of every seed
    rows: tuple[int, ...]  # seed of every network, -1 without one
    alpha: Tensor
    params: Tensor  # [seeds, W]
    training: tuple[bool, ...]
    isolated: tuple[bool, ...]


class Case(NamedTuple):
    """Arguments of one call: n networks of a few programs one after the other."""

    codes: tuple[Code, ...]
    x: Tensor
    params: Tensor
    buffers: Tensor
    targets: Tensor
    held: Held | None = None

    @property
    def spans(self) -> list[slice]:
        """Columns of every program's parameters."""
        ends = list(accumulate((code.num_params for code in self.codes), initial=0))
        return [slice(*pair) for pair in pairwise(ends)]


def enclose(code: Code) -> tuple[Code, Code, Code]:
    """The code between two others: its input's gradient is seen in the first, every position of its output in the last.

    A mean of sigmoids tells positions apart.
    """
    first, last = Writer(code.registers[0]), Writer(code.registers[code.output])
    first.add(Op.CONV, out=code.registers[0][0], bias=True)
    last.add(Op.CONV, out=4, bias=True), last.add(Op.SIGMOID), last.add(Op.MEAN)
    last.add(Op.CONV, out=CLASSES, bias=True)
    return first.code(), code, last.code()


def numbers(code: Code, key: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Parameters that keep the size of what passes, and buffers with positive variances."""
    keys = rng.split(key, 2)
    params, buffers = rng.normal(keys[0], (n, code.num_params)), rng.normal(keys[1], (n, code.num_buffers))
    for i in code.instructions:
        if i.op is Op.CONV:
            size = code.registers[i.to][0] * fan_in(code, i)
            params[:, i.weight : i.weight + size] /= fan_in(code, i) ** 0.5
        if i.op is Op.AFFINE:
            channels = code.registers[i.source][0]
            buffers[:, i.constant + channels : i.constant + 2 * channels].abs_().add_(0.3)
    return params, buffers


def deal(codes: tuple[Code, ...], n: int, batch: int, seed: int = 0) -> Case:
    """Standard normal inputs, random targets."""
    keys = rng.split(rng.key(seed), 2 + len(codes))
    rows = [numbers(code, key, n) for code, key in zip(codes, keys[2:], strict=True)]
    params, buffers = (torch.cat(parts, dim=1) for parts in zip(*rows, strict=True))
    x = rng.normal(keys[0], (n, batch, *codes[0].registers[0]))
    return Case(codes, x, params, buffers, (rng.uniform(keys[1], (n, batch)) * CLASSES).long())


def seeded(codes: tuple[Code, ...], n: int, batch: int, seed: int = 0) -> Case:
    """Every third network without a seed; training or not, isolated or not, of all kinds in turn."""
    first, _, last = enclose(codes[0])
    rows, count = [], 0
    for network in range(n):
        rows.append(-1 if network % 3 == 1 else count)
        count += rows[-1] >= 0
    keys = rng.split(rng.key(seed + 1000), 1 + count)
    width = max(code.num_params for code in codes)
    kinds = tuple(index % len(codes) for index in range(count))
    params = [numbers(codes[kind], key, 1)[0] for kind, key in zip(kinds, keys[1:], strict=True)]
    padded = torch.cat([F.pad(row, (0, width - row.shape[1])) for row in params])
    flags = [tuple(bool(index >> bit & 1) for index in range(count)) for bit in (0, 1)]
    held = Held(codes, kinds, tuple(rows), rng.uniform(keys[0], (count,)), padded, *flags)
    return deal((first, last), n, batch, seed)._replace(held=held)


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


def through(code: Code, h: Tensor, row: tuple[Tensor, Tensor], edge: float) -> tuple[list[Tensor], float]:
    """All registers of a program of one network, and by how much its norms can enlarge a rounding error."""
    values, gain = [h], 1.0
    for i in code.instructions:
        h = values[i.source]
        if i.op in NORMS[:2]:
            groups = h.reshape(h.shape[0], i.groups, -1) if i.op is Op.GROUP_NORM else h.transpose(0, 1).flatten(1)
            gain *= max(1.0, groups.var(-1, correction=0).add(EPSILON).rsqrt().max().item())
        y = layer(code, i, h, values[i.other], row, edge)
        values.append(rectify(y, edge) if i.rectify else y)
    return values, gain


def blend(held: Held, seed: int, h: Tensor, row: Tensor, edge: float) -> tuple[list[Tensor], float]:
    """What a slot makes of the features: last of the list."""
    code = held.codes[held.kinds[seed]]
    values, gain = through(code, h.detach() if held.isolated[seed] else h, (row, row[:0]), edge)
    s = values[code.output]
    out = h + (s - s.detach()) if held.training[seed] else torch.lerp(h, s, held.alpha[seed].double())
    return [*values, out], gain


class Result(NamedTuple):
    """What a case gives; gradients are of the sum over samples."""

    losses: Tensor  # [n, B]
    logits: Tensor  # [n, B, C]
    host: Tensor
    seeds: Tensor


def one_network(case: Case, n: int, edge: float) -> tuple[list[Tensor], float]:
    """Of network n in float64; and by how much its layers can enlarge a rounding error."""
    params, buffers = (rows[n].double() for rows in (case.params, case.buffers))
    held, seed, gain = case.held, -1 if case.held is None else case.held.rows[n], 1.0
    row = case.params.new_zeros(0).double() if held is None else held.params[seed].double()
    h, values, at = case.x[n].double(), list[Tensor](), 0
    params.requires_grad_(), row.requires_grad_()
    for number, (code, span) in enumerate(zip(case.codes, case.spans, strict=True)):
        own, more = through(code, h, (params[span], buffers[at : at + code.num_buffers]), edge)
        h, values, gain, at = own[code.output], [*values, *own[1:]], gain * more, at + code.num_buffers
        if number == 0 and held is not None and seed >= 0:
            own, more = blend(held, seed, h, row, edge)
            h, values, gain = own[-1], [*values, *own[1:]], gain * more
    logits = h.flatten(1)
    losses = F.cross_entropy(logits, case.targets[n], reduction="none")
    leaves = (params, row, *(value for value in values if value.requires_grad))
    grads = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True)
    gain *= max(1.0, *(v.detach().abs().max().item() for v in values))
    gain *= max(1.0, *(g.abs().max().item() for g in grads[2:]))
    return [losses.detach(), logits.detach(), grads[0], grads[1]], gain


def exact(case: Case, edge: float = 0.0) -> tuple[Result, float]:
    """By torch, one network after the other, in float64.

    Args:
      case: what to compute.
      edge: where relus open and maxima change sides. Rounding decides for numbers that are nearer to the edge than
        it carries; what they contribute is the difference between a rendering with this above and one with it below 0.
    """
    rows, gains = zip(*(one_network(case, n, edge) for n in range(case.x.shape[0])), strict=True)
    losses, logits, host, seeds = zip(*rows, strict=True)
    if case.held is not None:
        seeds = tuple(grad for grad, row in zip(seeds, case.held.rows, strict=True) if row >= 0)
    return Result(*map(torch.stack, (losses, logits, host, seeds))), max(gains)


def build(case: Case) -> Chain:
    """The programs in order; a slot behind the first if there are seeds."""
    links, params, buffers, aux = [], 0, 0, 0
    for code in case.codes:
        links.append(Link(Program(code), params, buffers, aux))
        params, buffers, aux = params + code.num_params, buffers + code.num_buffers, aux + links[-1].program.num_aux
    slots, route = (), list(range(len(links)))
    if case.held is not None:
        slots = (SlotPrograms(tuple(map(Program, case.held.codes)), None),)
        route.insert(1, -1)
    return Chain(tuple(links), slots, tuple(route), aux)


def seeds_of(case: Case) -> list[Seeds]:
    held = case.held
    if held is None:
        return []
    places = Places(torch.tensor(held.kinds), torch.tensor(held.rows), None)
    flags = torch.tensor(held.training), torch.tensor(held.isolated)
    return [Seeds(places, held.alpha, held.params, None, held.params[:, :0], *flags)]


def train(case: Case) -> Lesson:
    return chain.train(build(case), case.x, case.targets, case.params, seeds_of(case))


def infer(case: Case) -> Tensor:
    n = torch.arange(case.x.shape[0])
    lanes = Lanes(torch.arange(case.x.shape[0] + 1), n, torch.full_like(n, -1), n)
    return chain.infer(build(case), case.x, case.params, case.buffers, seeds_of(case), lanes)


def assert_near(name: str, found: Tensor, renderings: tuple[Tensor, Tensor, Tensor], terms: float, gain: float) -> None:
    """Up to the rounding of float32 sums of so many numbers, as large as those that occur."""
    truth, above, below = renderings
    allowed = 3e-6 * terms**0.5 * gain + 2 * (above - below).abs()
    error = (found.double() - truth).abs()
    assert (error <= allowed).all(), f"{name}: {(error - allowed).max()} farther off than allowed"


def assert_agrees(case: Case) -> None:
    every = (*case.codes, *(case.held.codes if case.held else ()))
    batch = case.x.shape[1]
    wide = max(math.prod(shape[1:]) for code in every for shape in code.registers) * batch
    fan = max(fan_in(code, i) for code in every for i in code.instructions)
    out = max(shape[0] for code in every for shape in code.registers)
    (truth, gain), (above, _), (below, _) = (exact(case, edge) for edge in (0.0, NEAR, -NEAR))

    def near(name: str, found: Tensor, terms: float, columns: slice = slice(None)) -> None:
        three = tuple(getattr(each, name)[:, columns] for each in (truth, above, below))
        assert_near(name, found, three, terms, gain)

    if any(i.op is Op.AFFINE for code in every for i in code.instructions):
        near("logits", infer(case), fan)
        return
    lesson = train(case)
    near("losses", lesson.losses, fan)
    for number, span in enumerate(case.spans):
        behind = fan * out if number == 0 else 1  # what reaches the first has passed through the others
        near("host", batch * lesson.host[:, span], wide * behind, span)
    if case.held is not None:
        near("seeds", batch * lesson.seeds[0], wide * fan)
    top = truth.logits.topk(2, dim=-1).values
    clear = top[..., 0] - top[..., 1] > 1e-3 * gain
    hits = truth.logits.argmax(-1) == case.targets
    assert torch.equal(lesson.hits[clear], hits[clear].float())


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
def codes(draw: Callable[..., Any], ops: tuple[Op, ...], shortest: int, longest: int, batch: int) -> Code:
    """Random layers."""
    writer = Writer(draw(shapes))
    for op in draw(st.lists(st.sampled_from(ops), min_size=shortest, max_size=longest)):
        write(draw, writer, op, batch)
    if not writer.instructions:
        writer.add(Op.RELU)
    return writer.code()


TRAINED = tuple(op for op in Op if op is not Op.AFFINE)
INFERRED = tuple(op for op in Op if op is not Op.BATCH_NORM)
APART = tuple(op for op in TRAINED if op is not Op.BATCH_NORM)


def draw_case(data: st.DataObject, ops: tuple[Op, ...], shortest: int, longest: int) -> Case:
    batch = data.draw(batches)
    code = data.draw(codes(ops, shortest, longest, batch))
    return deal(enclose(code), data.draw(networks), batch, data.draw(st.integers(0, 999)))


@pytest.mark.parametrize("op", Op, ids=lambda op: op.name.lower())
@settings(max_examples=20)
@given(data=st.data())
def test_one_layer_equals_torch(op: Op, data: st.DataObject) -> None:
    assert_agrees(draw_case(data, (op,), 1, 1))


@settings(max_examples=120)
@given(data=st.data())
def test_layers_one_after_the_other_equal_torch(data: st.DataObject) -> None:
    assert_agrees(draw_case(data, TRAINED, 3, 7))


@settings(max_examples=40)
@given(data=st.data())
def test_inference_equals_torch(data: st.DataObject) -> None:
    assert_agrees(draw_case(data, INFERRED, 2, 5))


def keeping(draw: Callable[..., Any], shape: Shape) -> Code:
    """Random layers that end in the shape they began with."""
    writer = Writer(shape)
    for op in draw(st.lists(st.sampled_from([op for op in APART if op is not Op.POOL]), min_size=1, max_size=4)):
        write(draw, writer, op, 1)
    same = [n for n, each in enumerate(writer.registers) if each[1:] == shape[1:]]
    writer.add(Op.CONV, same[-1], out=shape[0], kernel=3)
    return writer.code()


@settings(max_examples=60)
@given(data=st.data())
def test_seeds_equal_torch(data: st.DataObject) -> None:
    """Of two kinds, absent, training, blended, isolated or not."""
    shape = data.draw(shapes)
    kinds = tuple(keeping(data.draw, shape) for _ in range(2))
    assert_agrees(seeded(kinds, data.draw(st.integers(1, 12)), data.draw(batches), data.draw(st.integers(0, 999))))


def test_a_norm_wider_than_the_output() -> None:
    writer = Writer((1, 1, 1))
    writer.add(Op.CONV, out=64), writer.add(Op.AFFINE), writer.add(Op.CONV, out=1)
    assert_agrees(deal(enclose(writer.code()), 2, 20))


def test_a_number_times_itself() -> None:
    writer = Writer((5, 1, 1))
    writer.add(Op.SCALE, 0, 0)
    assert_agrees(deal(enclose(writer.code()), 2, 20))


def block(channels: int = 4, out: int = 4) -> Code:
    """A residual branch with every kind of joint: two readers, a relu in a norm, a gate by channel."""
    writer = Writer((channels, 6, 5))
    writer.add(Op.CONV, out=out, kernel=3), writer.add(Op.GROUP_NORM, groups=2, rectify=True)
    mean = writer.add(Op.MEAN, 2)
    writer.add(Op.SIGMOID, mean), writer.add(Op.SCALE, 2, 4), writer.add(Op.ADD, 5, 0 if out == channels else 2)
    return writer.code()


def normed() -> Code:
    writer = Writer((4, 6, 5))
    writer.add(Op.CONV, out=5, kernel=3), writer.add(Op.BATCH_NORM, rectify=True), writer.add(Op.CONV, out=4)
    writer.add(Op.BATCH_NORM), writer.add(Op.FADE, 0, 4)
    return writer.code()


def with_norms(n: int, batch: int) -> Case:
    """Seeds in front of a program that joins its samples."""
    case = seeded((block(), keeping_small()), n, batch)
    codes = (case.codes[0], normed(), case.codes[1])
    return deal(codes, n, batch)._replace(held=case.held)


def keeping_small() -> Code:
    writer = Writer((4, 6, 5))
    writer.add(Op.SIGMOID), writer.add(Op.CONV, out=4)
    return writer.code()


KINDS: dict[str, Callable[[int, int], Case]] = {
    "samples apart": lambda n, batch: seeded((block(), keeping_small()), n, batch),
    "samples joined": with_norms,
}
KIND = pytest.mark.parametrize("kind", KINDS)


@KIND
@pytest.mark.parametrize("batch", [1, 16, 37])
def test_seeds_in_a_network_equal_torch(kind: str, batch: int) -> None:
    assert_agrees(KINDS[kind](7, batch))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=30)
def test_batch_statistics_equal_torch(batch: int, height: int, width: int) -> None:
    writer = Writer((3, height, width))
    writer.add(Op.CONV, out=4), writer.add(Op.BATCH_NORM), writer.add(Op.CONV, out=3), writer.add(Op.BATCH_NORM)
    case = deal((writer.code(), enclose(writer.code())[2]), 2, batch)
    aux = train(case).aux.double()
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
    case = deal((writer.code(), enclose(writer.code())[2]), 2, 40)
    x = (case.x + 4096).contiguous()
    case.params[:, :2] = 1
    aux = train(case._replace(x=x)).aux.double()
    torch.testing.assert_close(aux[:, :2], x.double().mean((1, 3, 4)), rtol=1e-6, atol=0)
    torch.testing.assert_close(aux[:, 2:], x.double().var((1, 3, 4)), rtol=1e-4, atol=0)


def take(case: Case, order: list[int]) -> Case:
    """Some networks in another order, with their seeds."""
    parts = {name: getattr(case, name)[order] for name in ("x", "params", "buffers", "targets")}
    assert case.held is not None
    held = case.held
    chosen = [held.rows[n] for n in order if held.rows[n] >= 0]
    places = iter(range(len(chosen)))
    rows = tuple(-1 if held.rows[n] < 0 else next(places) for n in order)
    own = {name: tuple(getattr(held, name)[row] for row in chosen) for name in ("kinds", "training", "isolated")}
    held = held._replace(rows=rows, alpha=held.alpha[chosen], params=held.params[chosen], **own)
    return case._replace(held=held, **parts)


def assert_same_rows(found: Lesson, whole: Lesson, case: Case, order: list[int]) -> None:
    for name in ("losses", "hits", "aux", "host"):
        assert torch.equal(getattr(found, name), getattr(whole, name)[order]), name
    assert case.held is not None
    assert torch.equal(found.seeds[0], whole.seeds[0][[case.held.rows[n] for n in order if case.held.rows[n] >= 0]])


@KIND
def test_a_network_depends_on_nothing_else(kind: str) -> None:
    """Not on other networks and kinds, their order, or the number of threads: to the bit."""
    case = KINDS[kind](7, 50)
    apart, threads, together = kind == "samples apart", torch.get_num_threads(), train(case)
    answers = infer(case) if apart else together.losses
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for order in ([2], [4], [3, 0, 6, 4, 2, 1, 5], [1, 4]):
                assert_same_rows(train(take(case, order)), together, case, order)
                if apart:
                    assert torch.equal(infer(take(case, order)), answers[order])
    finally:
        torch.set_num_threads(threads)


def test_padding_has_no_gradient() -> None:
    case = KINDS["samples apart"](7, 20)
    assert case.held is not None
    width = keeping_small().num_params
    grads = train(case).seeds[0][[kind == 1 for kind in case.held.kinds]]
    assert grads.shape[1] > width and grads[:, :width].any() and not grads[:, width:].any()


def spoil(case: Case, place: str, value: float) -> Case:
    """The second network with a seed, which is in the third place, holds a number that is none."""
    assert case.held is not None
    held = case.held._replace(params=case.held.params.clone())
    case = case._replace(x=case.x.clone(), params=case.params.clone(), held=held)
    {"x": case.x[2, 4, 2, 3], "host": case.params[2], "seed": held.params[1]}[place][3] = value
    return case


@pytest.mark.parametrize("spread", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["x", "host", "seed"])
@KIND
def test_no_number_stays_in_its_network(kind: str, place: str, spread: float) -> None:
    case = KINDS[kind](6, 21)
    assert case.held is not None and case.held.rows[2] == 1
    case = case._replace(held=case.held._replace(training=(False,) * len(case.held.kinds)))
    clean, found = train(case), train(spoil(case, place, spread))
    for name in ("losses", "hits", "aux", "host"):
        others = [0, 1, 3, 4, 5]
        assert torch.equal(getattr(found, name)[others], getattr(clean, name)[others]), name
    assert torch.equal(found.seeds[0][[0, 2, 3]], clean.seeds[0][[0, 2, 3]])
    assert not found.host[2].isfinite().all() and not found.seeds[0][1].isfinite().all()
    assert spread == spread or not found.losses[2].isfinite().all()


def test_no_number_stays_in_its_sample() -> None:
    """Where samples are apart: also of the last, unfilled pack."""
    case = KINDS["samples apart"](2, 21)
    losses, logits = train(case).losses, infer(case)
    case.x[0, 18, 2, 3, 3] = torch.nan
    others = [sample for sample in range(21) if sample != 18]
    assert torch.equal(train(case).losses[:, others], losses[:, others])
    assert torch.equal(infer(case)[:, others], logits[:, others])
    assert infer(case)[0, 18].isnan().all()


VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, math.nan, math.inf, -math.inf])


def pooled(channels: int) -> Writer:
    """Windows of four, of which the logits are the maxima."""
    writer = Writer((channels, 2, 3))
    writer.add(Op.POOL), writer.add(Op.RELU)
    return writer


def by_torch(x: Tensor) -> Tensor:
    columns = torch.maximum(x[..., 0, :2], x[..., 1, :2])
    return torch.relu(torch.maximum(columns[..., 0], columns[..., 1]))


@given(st.lists(VALUES, min_size=60, max_size=60))
@settings(max_examples=60)
def test_relu_and_pooling_pass_no_numbers(values: list[float]) -> None:
    x = torch.tensor(values).reshape(1, 2, 5, 2, 3)
    case = deal((pooled(5).code(),), 1, 2)._replace(x=x)
    torch.testing.assert_close(infer(case), by_torch(x), rtol=0, atol=0, equal_nan=True)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]), min_size=30, max_size=30), st.integers(0, 4))
@settings(max_examples=60)
def test_equal_numbers_share_the_gradient(values: list[float], target: int) -> None:
    """First those of a column, then the two columns. The input shows every position of itself in a channel."""
    positions, weight = torch.eye(6).reshape(1, 1, 6, 2, 3), torch.tensor(values).reshape(5, 6)
    writer = Writer((6, 2, 3))
    writer.add(Op.CONV, out=5)
    case = deal((writer.code(), pooled(5).code()), 1, 1)
    case = case._replace(x=positions, params=weight.reshape(1, 30), targets=torch.tensor([[target]]))
    leaf = weight.double().reshape(1, 5, 2, 3).requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(by_torch(leaf), case.targets[0]), leaf)
    torch.testing.assert_close(train(case).host.double(), expected.reshape(1, 30), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("order", ["samples first", "expanded", "channels last", "transposed", "spread", "strided"])
@KIND
def test_any_layout(kind: str, order: str) -> None:
    case = KINDS[kind](3, 21)

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

    moved = case._replace(x=move(case.x), targets=case.targets.t().contiguous().t())
    found, wanted = train(moved), train(case._replace(x=moved.x.contiguous()))
    for one, other in zip(found[:4] + found.seeds, wanted[:4] + wanted.seeds, strict=True):
        assert torch.equal(one, other)
    if kind == "samples apart":
        assert torch.equal(infer(moved), infer(case._replace(x=moved.x.contiguous())))


def test_without_parameters() -> None:
    writer = Writer((2, 3, 3))
    writer.add(Op.SIGMOID), writer.add(Op.ADD, 1, 0)
    assert_agrees(deal(enclose(writer.code()), 2, 40))
    assert_agrees(seeded((writer.code(),), 4, 40))


def test_inputs_keep_their_bits() -> None:
    case, copy = (KINDS["samples joined"](4, 37) for _ in range(2))
    train(case)
    assert case.held is not None and copy.held is not None
    for part, before in zip((*case[1:5], *case.held[3:5]), (*copy[1:5], *copy.held[3:5]), strict=True):
        assert torch.equal(part, before)
