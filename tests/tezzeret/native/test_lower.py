"""Structures of a user's own layers as native networks, against the definition; and why some cannot be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tezzeret_states import Pair, batch_of

import esper
from esper.kasmina.blueprint import Blueprint, preserving
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.host import Host, HostBlock, Tie, plain_block
from esper.kasmina.layers import batch_norm, conv2d, group_norm, linear, max_pool2, tanh_mix, track
from esper.kasmina.layout import Param, Params, constant, fan_in_uniform
from esper.kasmina.site import Site, conv_site
from esper.leyline.config import ConfigError
from esper.tezzeret.native.library import library
from esper.tolaria.synthetic import synthetic

pytestmark = [
    pytest.mark.usefixtures("auto_as_shipped"),
    pytest.mark.skipif(library() is None, reason="no C++ compiler"),
]

C, SHAPE, ENVS = 4, (4, 3, 5), 12
SITE = conv_site(*SHAPE)


def conv(name: str, out: int = C, into: int = C, kernel: int = 3) -> Param:
    return fan_in_uniform(name, (out, into, kernel, kernel), into * kernel**2)


PARAMS = (conv("conv"), conv("flat", kernel=1), constant("weight", (C,), 1.0), constant("bias", (C,), 0.1))
PARAMS += (constant("openness", (1,), 0.5),)
FIRST = plain_block((conv("first"),), lambda p, x: conv2d(x, p["first"]), SITE, 1)
HEAD = plain_block((fan_in_uniform("head", (5, C), C),), lambda p, x: linear(x.mean((3, 4)), p["head"]), None, 1)


def task(
    block: HostBlock, *blueprints: Blueprint, slots: tuple[int | str, ...] = (0, 0), last: HostBlock = HEAD
) -> esper.Task:
    dataset = synthetic(SHAPE, num_classes=5, num_train=40, num_val=20)
    host = Host("own", SHAPE, 5, (FIRST, block, last))
    return esper.Task("own", host, blueprints or CONV_BLUEPRINTS, dataset, {"slots": slots})


def normed(p: Any, x: Any) -> Any:
    return group_norm(x, p["weight"], p["bias"], 2)


def twice_read(p: Any, x: Any) -> Any:
    y = normed(p, conv2d(x, p["conv"]))
    return torch.relu(y) + y + torch.relu(normed(p, x))


def unread(p: Any, x: Any) -> Any:
    y = normed(p, conv2d(x, p["conv"]))
    torch.relu(y)
    return y


OWN: dict[str, Callable[[Any, Any], Any]] = {
    "relus of what is read twice": twice_read,
    "a relu that nobody reads": unread,
    "a gate by channel": lambda p, x: x * torch.sigmoid(conv2d(x, p["flat"]).mean((-2, -1)))[..., None, None] + x,
    "a fade": lambda p, x: tanh_mix(x, 0.3 * conv2d(x, p["conv"]), p["openness"]),
    "a kernel in groups": lambda p, x: conv2d(x, p["grouped"]) * 2,
}


@pytest.mark.parametrize("name", OWN)
def test_a_users_own_block_equals_the_definition(name: str) -> None:
    params = (*PARAMS, conv("grouped", into=C // 2))
    pair = Pair(task(plain_block(params, OWN[name], SITE, 1)), ENVS)
    pair.assert_near(batch_of(pair.fast, 18), 3e-4)


def test_a_pool_and_a_linear_layer_of_a_users_own() -> None:
    """Shapes without maps: [n, B, F]."""
    params = fan_in_uniform("weight", (5, C), C), constant("bias", (5,), 0.3)

    def apply(p: Any, x: Any) -> Any:
        return linear(max_pool2(torch.relu(x)).mean((3, 4)), p["weight"], p["bias"])

    pair = Pair(task(plain_block(PARAMS, twice_read, SITE, 1), last=plain_block(params, apply, None, 0)), ENVS)
    pair.assert_near(batch_of(pair.fast, 18), 3e-4)


def test_statistics_of_two_norms_reach_their_buffers() -> None:
    """In another order than they are computed in."""
    buffers = tuple(constant(name, (C,), float(n)) for n, name in enumerate(("v2", "m1", "m2", "v1")))

    def train(p: Any, b: Any, x: Any, key: Any) -> Any:
        y, m1, v1 = batch_norm(conv2d(x, p["conv"]), p["weight"], p["bias"])
        z, m2, v2 = batch_norm(conv2d(torch.relu(y), p["flat"]), p["weight2"], p["bias2"])
        new = {"m1": m1, "v1": v1, "m2": m2, "v2": v2}
        return x + z, {name: track(b[name], value) for name, value in new.items()}

    more = constant("weight2", (C,), 0.8), constant("bias2", (C,), -0.1)
    block = HostBlock((*PARAMS, *more), buffers, train, lambda p, b, x: normed(p, x), SITE, 1)
    pair = Pair(task(block), ENVS)
    batch = batch_of(pair.fast, 32)
    pair.assert_near(batch, 3e-4)
    moved = pair.lessons(batch)[0].buffers - pair.state.buffers
    assert moved.shape == (ENVS, 4 * C) and (moved != 0).all()


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_hosts_with_all_sides_of_kernels(kernel: int) -> None:
    """Some blocks with and some without pooling; odd sizes of maps."""
    host = cnn_host((2, 7, 6), 5, num_blocks=2, base_channels=3, pool_blocks=1, kernel_size=kernel)
    dataset = synthetic((2, 7, 6), num_classes=5, num_train=40, num_val=20)
    pair = Pair(esper.Task("kernels", host, CONV_BLUEPRINTS, dataset, {"slots": (0, 1)}), ENVS)
    pair.assert_near(batch_of(pair.fast, 21), 3e-4)


def test_a_kernel_that_two_blocks_share() -> None:
    """Its gradients add up."""
    block = plain_block((), lambda p, x: torch.tanh(conv2d(x, p["first"])), SITE, 1, (Tie(0, FIRST.params[0]),))
    pair = Pair(task(block), ENVS)
    pair.assert_near(batch_of(pair.fast, 18), 3e-4)


def third_party(name: str, apply: Callable[[Any, Any], Any], params: bool = True) -> Blueprint:
    def of(site: Site) -> tuple[Param, ...]:
        c = site.channels
        return conv("conv", c, c), constant("weight", (c,), 0.5), constant("bias", (c,), 0.1)

    return preserving(name, frozenset({"conv"}), of if params else lambda site: (), apply, lambda site: 1, 9.0)


def lifted(p: Any, x: Any) -> Any:
    """Written for one network, as the blueprint's documentation offers."""
    single = lambda p, x: x + torch.nn.functional.conv2d(x, p["conv"], padding=1)  # noqa: E731
    return torch.func.vmap(single)(p, x)


SHARP = third_party("sharp", lambda p, x: x + torch.sigmoid(conv2d(x, p["conv"])) * 0.5)
BARE = third_party("bare", lambda p, x: x + torch.sigmoid(x), params=False)
LIFTED = third_party("lifted", lifted)
BOXES = {
    "lifted": (LIFTED, *CONV_BLUEPRINTS[:2]),
    "one of a third party": (SHARP, *CONV_BLUEPRINTS),
    "without parameters": (BARE, *CONV_BLUEPRINTS[:2]),
}


@pytest.mark.parametrize("box", BOXES)
def test_a_users_own_blueprint_equals_the_definition(box: str) -> None:
    pair = Pair(task(plain_block(PARAMS, twice_read, SITE, 1), *BOXES[box], slots=(0, 1, 1)), ENVS)
    assert (pair.state.slots.blueprint == 0).any()
    pair.assert_near(batch_of(pair.fast, 18), 3e-4)


def noisy(blueprint: Blueprint) -> Blueprint:
    return blueprint._replace(draws=True)


def counting(p: Params, b: Params, x: torch.Tensor, key: Any) -> Any:
    return normed(p, x), {"count": b["count"] + 1}


HEADS = Blueprint(
    name="heads",
    fits=lambda source, target: source.kind == "conv" and target.kind == "logits",
    params=lambda source, target: (constant("head", (target.channels, source.channels), 0.0),),
    train=lambda p, b, x, key: (linear(x.mean((3, 4)), p["head"]), b),
    infer=lambda p, b, x: linear(x.mean((3, 4)), p["head"]),
    flops=lambda source, target: 1,
    identity_bound=0.0,
    is_bypass=True,
)


def joined(p: Params, b: Params, x: torch.Tensor, key: Any) -> Any:
    y = batch_norm(conv2d(x, p["conv"]), p["weight"], p["bias"])[0]
    return batch_norm(y, p["weight"], p["bias"])[0], b


BATCHED = third_party(
    "batched", lambda p, x: x + torch.relu(batch_norm(conv2d(x, p["conv"]), p["weight"], p["bias"])[0])
)
COUNT = (constant("count", (2,), 0.0),)
SOUND = plain_block(PARAMS, twice_read, SITE, 1)
REFUSED: dict[str, tuple[esper.Task, str]] = {
    "a layer": (task(plain_block((), lambda p, x: torch.cumsum(x, 2), SITE, 0)), "own, block 1: operation cumsum"),
    "a blueprint's layer": (
        task(SOUND, SHARP, third_party("soft", lambda p, x: torch.nn.functional.hardswish(x))),
        "slot 0, blueprint 'soft': operation hardswish",
    ),
    "another shape": (
        task(SOUND, SHARP, third_party("narrow", lambda p, x: x[..., 1:])),
        r"slot 0, blueprint 'narrow': gives \(4, 3, 4\); expected \(4, 3, 5\)",
    ),
    "batch statistics": (task(SOUND, BATCHED), "slot 0, blueprint 'batched': batch statistics"),
    "a blueprint's buffers": (
        task(SOUND, SHARP._replace(buffers=lambda source, target: COUNT)),
        "slot 0, blueprint 'sharp': buffers that are no running averages",
    ),
    "a blueprint's draws": (task(SOUND, noisy(SHARP)), "slot 0, blueprint 'sharp': draws"),
    "a block's draws": (task(SOUND._replace(draws=True)), "own, block 1: draws"),
    "a block's buffers": (
        task(HostBlock(PARAMS, COUNT, counting, lambda p, b, x: normed(p, x), SITE, 1)),
        "own, block 1: ",
    ),
    "statistics in inference": (
        task(plain_block(PARAMS, lambda p, x: batch_norm(x, p["weight"], p["bias"])[0], SITE, 1)),
        "own, block 1: batch statistics in inference",
    ),
    "two norms of one weight": (
        task(HostBlock(PARAMS, (), joined, lambda p, b, x: normed(p, x), SITE, 1)),
        "own, block 1: a batch norm whose weights another layer uses",
    ),
    "a slot at the input": (task(SOUND, slots=("input:input",)), "slot 0: acts at the input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_native_network_is_told_by_module_and_reason(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Asked for, it is an error; ``auto`` goes on to the next backend, and says why in one line."""
    refused, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=f"^backend 'native': {reason}") as error:
        esper.make(refused, 2, backend="native")
    assert "\n" not in str(error.value)
    with caplog.at_level("INFO", logger="esper"):
        engine = esper.make(refused, 2)
    assert engine.backend.name == "inductor" and str(error.value) in engine.describe()
    assert [record.getMessage() for record in caplog.records] == [f"esper: {error.value}"]
