"""Chains of programs, dealt at random, in C++ and by torch in float64, network by network."""

import math
import struct
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.tezzeret.native import run
from esper.tezzeret.native.programs import (
    BlockProgram,
    Code,
    Instruction,
    NetworkProgram,
    Op,
    Program,
    SlotPrograms,
)
from esper.tezzeret.native.run import Lanes, NetworkGradients, RowIndex, SeedRows
from esper.utils import rng

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


PLAIN: dict[Op, Callable[[Instruction, Tensor, Tensor, Tensor, float], Tensor]] = {
    Op.RELU: lambda i, h, other, row, edge: rectify(h, edge),
    Op.POOL: lambda i, h, other, row, edge: pool(h, edge),
    Op.MEAN: lambda i, h, other, row, edge: h.mean((2, 3), keepdim=True),
    Op.ADD: lambda i, h, other, row, edge: h + other,
    Op.SCALE: lambda i, h, other, row, edge: h * other,
    Op.SIGMOID: lambda i, h, other, row, edge: torch.sigmoid(h),
    Op.TIMES: lambda i, h, other, row, edge: struct.unpack("<d", struct.pack("<q", i.constant))[0] * h,
    Op.FADE: lambda i, h, other, row, edge: h + torch.tanh(row[i.weight]) * (other - h),
}
HERE = (Op.CONV, *NORMS, *PLAIN)
"""What this file has a second source of truth for; of the others ``test_graphs.py`` has it."""


def layer(code: Code, i: Instruction, h: Tensor, other: Tensor, row: tuple[Tensor, Tensor], edge: float) -> Tensor:
    """One instruction for one network; h [B, C, H, W], row: its parameters and buffers."""
    if i.op is Op.CONV:
        return convolve(code, i, h, row[0])
    if i.op in NORMS:
        return normalise(i, h, *row)
    return PLAIN[i.op](i, h, other, row[0], edge)


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


def build(case: Case) -> NetworkProgram:
    """The programs in order; a slot behind the first if there are seeds."""
    links, params, buffers, aux = [], 0, 0, 0
    for code in case.codes:
        links.append(BlockProgram(Program(code), params, buffers, aux))
        params, buffers, aux = params + code.num_params, buffers + code.num_buffers, aux + links[-1].program.num_aux
    slots, route = (), list(range(len(links)))
    if case.held is not None:
        slots = (SlotPrograms(tuple(map(Program, case.held.codes)), None),)
        route.insert(1, -1)
    return NetworkProgram(tuple(links), slots, tuple(route), aux)


def seeds_of(case: Case) -> list[SeedRows]:
    held = case.held
    if held is None:
        return []
    index = RowIndex(torch.tensor(held.kinds), torch.tensor(held.rows), None)
    flags = torch.tensor(held.training), torch.tensor(held.isolated)
    return [SeedRows(index, held.alpha, held.params, held.params[:, :0], None, held.params[:, :0], *flags)]


def train(case: Case) -> NetworkGradients:
    result = run.train(build(case), case.x, case.targets.unsqueeze(0), case.params, seeds_of(case))
    return result._replace(losses=result.losses[0], hits=result.hits[0])


def infer(case: Case) -> Tensor:
    n = torch.arange(case.x.shape[0])
    lanes = Lanes(torch.arange(case.x.shape[0] + 1), n, torch.full_like(n, -1), n)
    size, last = case.x.shape[1], case.codes[-1]
    logits = torch.empty(len(n), size, math.prod(last.registers[last.output]))
    samples = case.x, torch.zeros(size, dtype=torch.int64)
    run.score(build(case), samples, case.params, case.buffers, seeds_of(case), lanes, logits)
    return logits


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
    result = train(case)
    near("losses", result.losses, fan)
    for number, span in enumerate(case.spans):
        behind = fan * out if number == 0 else 1  # what reaches the first has passed through the others
        near("host", batch * result.host[:, span], wide * behind, span)
    if case.held is not None:
        near("seeds", batch * result.seeds[0], wide * fan)
    top = truth.logits.topk(2, dim=-1).values
    clear = top[..., 0] - top[..., 1] > 1e-3 * gain
    hits = truth.logits.argmax(-1) == case.targets
    assert torch.equal(result.hits[clear], hits[clear].float())
