"""Chains of programs in C++ against torch in float64, network by network; and what a network may depend on."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_networks import (
    EPSILON,
    HERE,
    NORMS,
    Case,
    Shape,
    Writer,
    assert_agrees,
    deal,
    enclose,
    infer,
    seeded,
    train,
)
from torch import Tensor
from torch.nn import functional as F

from esper.tezzeret.native.library import library
from esper.tezzeret.native.programs import Code, Op, float_bits
from esper.tezzeret.native.run import NetworkGradients

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")

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


TRAINED = tuple(op for op in HERE if op is not Op.AFFINE)
INFERRED = tuple(op for op in HERE if op is not Op.BATCH_NORM)
APART = tuple(op for op in TRAINED if op is not Op.BATCH_NORM)


def draw_case(data: st.DataObject, ops: tuple[Op, ...], shortest: int, longest: int) -> Case:
    batch = data.draw(batches)
    code = data.draw(codes(ops, shortest, longest, batch))
    return deal(enclose(code), data.draw(networks), batch, data.draw(st.integers(0, 999)))


@pytest.mark.parametrize("op", HERE, ids=lambda op: op.name.lower())
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


def assert_same_rows(found: NetworkGradients, whole: NetworkGradients, case: Case, order: list[int]) -> None:
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
