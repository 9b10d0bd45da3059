"""Modules written down from their Python functions, and what cannot be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from esper.kasmina.layers import apply_batch_norm, batch_norm, conv2d, group_norm, track
from esper.kasmina.layout import Layout, Param, constant, fan_in_uniform
from esper.tezzeret.native.capture import NORMS, NotCaptured, _fuse_relus, capture
from esper.tezzeret.native.programs import Instruction, Op


def conv(name: str, out: int, into: int, kernel: int = 3) -> Param:
    return fan_in_uniform(name, (out, into, kernel, kernel), into * kernel**2)


C, H, W = 4, 3, 5
SHAPE = (C, H, W)
PARAMS = Layout(
    (
        conv("conv", C, C),
        conv("flat", C, C, 1),
        constant("weight", (C,), 1.0),
        constant("bias", (C,), 0.0),
        constant("openness", (1,), 0.5),
    )
)
BUFFERS = Layout((constant("mean", (C,), 0.0), constant("variance", (C,), 1.0), conv("fixed", C, C)))


def norm(p: Any, x: Any) -> Any:
    return group_norm(x, p["weight"], p["bias"], 2)


def lifted(p: Any, x: Any) -> Any:
    """Written for one network, as the blueprint's documentation offers."""
    single = lambda p, x: x + torch.nn.functional.conv2d(x, p["conv"], padding=1)  # noqa: E731
    return torch.func.vmap(single)(p, x)


def branching(p: Any, x: Any) -> Any:
    return x * 2 if (x > 0).any() else x * 3


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "vmap": lifted,
    "tanh": lambda p, x: torch.tanh(x),
    "an activation": lambda p, x: torch.nn.functional.gelu(x),
    "an if on values": branching,
    "an if on features": lambda p, x: x * 2 if x else x * 3,
    "a comparison": lambda p, x: x * 2 if x == x * 1 else x * 3,
    "not": lambda p, x: x * 2 if not x else x * 3,
    "an index": lambda p, x: x[..., 0],
    "a range": lambda p, x: x[:, :, 1:] + x[:, :, :-1],
    "a mean of one axis": lambda p, x: x * x.mean((-1,))[..., None, None],
    "a mean of one number": lambda p, x: x.mean(-1),
    "a mean of all": lambda p, x: x * x.mean(),
    "a mean with its axes": lambda p, x: x * x.mean((-2, -1), keepdim=True),
    "a sum over positions": lambda p, x: x * x.sum((-2, -1))[..., None, None],
    "division": lambda p, x: x / 2,
    "difference": lambda p, x: x - 2 * x,
    "negation": lambda p, x: -x,
    "power": lambda p, x: x**2,
    "matrices": lambda p, x: x @ x.mT,
    "a product of maps": lambda p, x: x * x,
    "a sum with a number": lambda p, x: x + 1,
    "a number with a sum": lambda p, x: 1 + x,
    "a sum with a parameter": lambda p, x: x + p["conv"],
    "a parameter with a sum": lambda p, x: p["conv"] + x,
    "a product with a parameter": lambda p, x: p["openness"] * x,
    "a method of a parameter": lambda p, x: conv2d(x, p["conv"].flip(-1)),
    "a function of a parameter": lambda p, x: conv2d(x, torch.tanh(p["conv"])),
    "a part of a parameter": lambda p, x: conv2d(x, p["conv"][:, :1]),
    "the shape of a batch": lambda p, x: x.reshape(x.shape[0], -1),
    "a vector without axes times a vector": lambda p, x: x * x.mean((-2, -1)),
    "vectors times maps": lambda p, x: x.mean((-2, -1)) * x.mean((-2, -1))[..., None, None],
    "a sum of a vector and maps": lambda p, x: x + x.mean((-2, -1))[..., None, None],
    "a vector as the result": lambda p, x: x.mean((-2, -1))[..., None, None],
    "nothing": lambda p, x: x,
    "None": lambda p, x: None,
    "a new tensor": lambda p, x: torch.ones(3, 2, *SHAPE),
    "concatenation": lambda p, x: torch.cat((x, x), 2),
    "another function": lambda p, x: torch.nn.functional.max_pool2d(x, 2),
    "a dtype": lambda p, x: x.to(torch.float64),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_down(name: str) -> None:
    with pytest.raises(NotCaptured) as reason:
        capture(REFUSED[name], SHAPE, PARAMS)
    assert str(reason.value) and "\n" not in str(reason.value)


@pytest.mark.parametrize("sides", [(1, 3), (3, 1), (2, 2)])
def test_kernels_that_are_not_odd_squares(sides: tuple[int, int]) -> None:
    layout = Layout((fan_in_uniform("conv", (C, C, *sides), C),))
    with pytest.raises(NotCaptured):
        capture(lambda p, x: conv2d(x, p["conv"]), SHAPE, layout)


BLOCKS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "a weight among the buffers": lambda p, b, x: conv2d(x, b["fixed"]),
    "statistics among the parameters": lambda p, b, x: apply_batch_norm(
        x, p["weight"], p["bias"], p["weight"], p["bias"]
    ),
    "buffers that stay": lambda p, b, x: (norm(p, x), b),
    "buffers exchanged": lambda p, b, x: (
        norm(p, x),
        {"mean": track(b["variance"], x.mean((-2, -1))), "variance": b["mean"], "fixed": b["fixed"]},
    ),
    "a variance before its mean": lambda p, b, x: apply_batch_norm(x, p["weight"], p["bias"], b["variance"], b["mean"]),
    "a buffer as features": lambda p, b, x: x + b["mean"],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_that_cannot_be_written_down(name: str) -> None:
    with pytest.raises(NotCaptured):
        capture(BLOCKS[name], SHAPE, PARAMS, BUFFERS)


def test_a_residual_block_as_instructions() -> None:
    def block(p: Any, b: Any, x: Any) -> Any:
        y, mean, variance = batch_norm(conv2d(x, p["conv"]), p["weight"], p["bias"])
        new = {"mean": track(b["mean"], mean), "variance": track(b["variance"], variance)}
        return x + torch.relu(y), new

    buffers = Layout(BUFFERS.params[:2])
    found = capture(block, SHAPE, PARAMS, buffers)
    start = {name: PARAMS.columns(name).start for name in ("conv", "weight", "bias")}
    assert found.code.instructions == (
        Instruction(Op.CONV, 1, 0, weight=start["conv"], kernel=3),
        Instruction(Op.BATCH_NORM, 3, 1, weight=start["weight"], bias=start["bias"], rectify=True),
        Instruction(Op.ADD, 4, 0, 3),
    )
    assert (found.shape, found.tracked) == (SHAPE, tuple(range(2 * C)))
    assert (found.code.num_params, found.code.num_buffers) == (PARAMS.size, buffers.size)


NORMED = Instruction(Op.GROUP_NORM, 1, 0, weight=0, bias=4)
RELU = Instruction(Op.RELU, 2, 1)


@pytest.mark.parametrize("op", NORMS)
def test_a_relu_becomes_part_of_the_norm_that_it_alone_reads(op: Op) -> None:
    code = [NORMED._replace(op=op), RELU, Instruction(Op.ADD, 3, 2, 0)]
    fused = _fuse_relus(code, 3)
    assert fused == [NORMED._replace(op=op, to=2, rectify=True), code[2]]


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ([NORMED, RELU, Instruction(Op.ADD, 3, 2, 1)], 3),  # read twice
        ([NORMED, RELU, Instruction(Op.ADD, 3, 1, 1)], 3),  # read thrice, once by the relu
        ([NORMED, RELU], 1),  # the result itself
        ([Instruction(Op.CONV, 1, 0, weight=0), RELU], 2),  # no norm
    ],
)
def test_a_relu_stays_apart_where_others_read_the_norm(code: list[Instruction], output: int) -> None:
    assert _fuse_relus(code, output) == code
