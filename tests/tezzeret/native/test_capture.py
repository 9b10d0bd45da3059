"""Modules written down from their Python functions, and what cannot be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from esper.kasmina.layers import apply_batch_norm, batch_norm, conv2d, group_norm, track
from esper.kasmina.layout import Layout, Param, constant, fan_in_uniform
from esper.tezzeret.native.capture import capture
from esper.tezzeret.native.emit import NORMS, emit, fuse_relus
from esper.tezzeret.native.observe import NotCaptured
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


def branching(p: Any, x: Any) -> Any:
    return x * 2 if (x > 0).any() else x * 3


def swallowing(p: Any, x: Any) -> Any:
    try:
        return torch.cumsum(x, -1)
    except Exception:  # whatever a function makes of it, it is not captured
        return x * 2


def written(p: Any, x: Any) -> Any:
    y = x * 2
    y += x
    return y


def mixed(p: Any, x: Any) -> Any:
    """Samples in another order."""
    return x * 2 + x.flip(1)


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a foreign operation": (lambda p, x: torch.cumsum(x, -1), "operation cumsum"),
    "one whose refusal is swallowed": (swallowing, "operation cumsum"),
    "a foreign function": (lambda p, x: torch.nn.functional.hardswish(x), "operation hardswish"),
    "an if on values": (branching, "operation gt"),
    "an if on features": (lambda p, x: x * 2 if x else x * 3, "operation __bool__"),
    "a comparison": (lambda p, x: x * 2 if x == x * 1 else x * 3, "operation __eq__"),
    "not": (lambda p, x: x * 2 if not x else x * 3, "operation __bool__"),
    "numbers taken out": (lambda p, x: x * p["openness"].sum().item(), "operation sum over networks"),
    "a place written to": (written, "operation add_"),
    "a mean of all": (lambda p, x: x * x.mean(), "operation mean over networks or samples"),
    "a mean over samples": (lambda p, x: x - x.mean(1, keepdim=True), "operation mean over networks or samples"),
    "samples exchanged": (mixed, "networks and samples on other axes"),
    "the number of samples": (lambda p, x: x / x.shape[1], "operations that depend on the number of"),
    "the number of networks": (lambda p, x: x * len(x), "operations that depend on the number of"),
    "a layer of one network": (
        lambda p, x: torch.nn.functional.max_pool2d(x[0], 1)[None],
        "networks and samples on other axes",
    ),
    "wrong shapes": (lambda p, x: x + p["conv"], "RuntimeError: The size of tensor"),
    "None": (lambda p, x: None, "no features"),
    "a new tensor": (lambda p, x: torch.ones(3, 2, *SHAPE), "no features"),
    "parameters alone": (lambda p, x: p["conv"] * 2, "no features"),
    "samples lost": (lambda p, x: x[:, 0], "networks and samples"),
    "a dtype": (lambda p, x: x.to(torch.float64), "operation to to torch.float64"),
    "a setting": (lambda p, x: torch.nn.functional.softplus(x, beta=2), "operation softplus with beta = 2"),
    "an index by values": (lambda p, x: x[..., p["openness"][0].long()], "operation long"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_down(name: str) -> None:
    function, line = REFUSED[name]
    with pytest.raises(NotCaptured) as reason:
        capture(function, SHAPE, PARAMS)
    assert str(reason.value).startswith(line) and "\n" not in str(reason.value)


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
        emit(capture(BLOCKS[name], SHAPE, PARAMS, BUFFERS), PARAMS.size, BUFFERS.size)


def test_a_residual_block_as_instructions() -> None:
    def block(p: Any, b: Any, x: Any) -> Any:
        y, mean, variance = batch_norm(conv2d(x, p["conv"]), p["weight"], p["bias"])
        new = {"mean": track(b["mean"], mean), "variance": track(b["variance"], variance)}
        return x + torch.relu(y), new

    buffers = Layout(BUFFERS.params[:2])
    found = emit(capture(block, SHAPE, PARAMS, buffers), PARAMS.size, buffers.size)
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
    fused = fuse_relus(code, 3)
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
    assert fuse_relus(code, output) == code
