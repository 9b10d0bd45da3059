"""Blueprints as people write them, in plain torch: all run on the native backend, and equal the definition."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tezzeret_states import Pair, batch_of, double, evaluated, largest_gap
from torch import Tensor
from torch.nn import functional as F

import esper
from esper.kasmina.blueprint import Blueprint, preserving
from esper.kasmina.cnn import cnn_host
from esper.kasmina.counterfactuals import single_changes
from esper.kasmina.layout import Param, Params, constant, fan_in_uniform
from esper.kasmina.slot_table import take_table
from esper.leyline.config import Isolation
from esper.tezzeret.native.library import library
from esper.tolaria.synthetic import synthetic

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler")

ENVS, BATCH = 10, 13


def weight(name: str, *shape: int) -> Param:
    return fan_in_uniform(name, shape, max(1, torch.Size(shape[1:]).numel()))


def ones(name: str, *shape: int) -> Param:
    return constant(name, shape, 1.0)


def zeros(name: str, *shape: int) -> Param:
    return constant(name, shape, 0.0)


def seed(name: str, params: Callable[..., tuple[Param, ...]], apply: Callable[[Params, Tensor], Tensor]) -> Blueprint:
    return preserving(
        name, frozenset({"conv"}), lambda site: params(*site.shape), apply, lambda site: 1, identity_bound=9.0
    )


def for_one(function: Callable[[Params, Tensor], Tensor]) -> Callable[[Params, Tensor], Tensor]:
    """Written for one network: parameters without networks, x [B, C, H, W]."""
    return torch.func.vmap(function)


def squeeze_excite(p: Params, x: Tensor) -> Tensor:
    squeezed = F.adaptive_avg_pool2d(x, 1).flatten(1)
    hidden = F.relu(F.linear(squeezed, p["down"], p["down_bias"]))
    return x * torch.sigmoid(F.linear(hidden, p["up"], p["up_bias"]))[:, :, None, None]


def depthwise_separable(p: Params, x: Tensor) -> Tensor:
    y = F.conv2d(x, p["depth"], p["depth_bias"], padding=1, groups=x.shape[1])
    return x + F.relu(F.group_norm(F.conv2d(y, p["point"]), 1, p["norm"], p["norm_bias"]))


def gated_linear_unit(p: Params, x: Tensor) -> Tensor:
    return x + F.glu(F.conv2d(x, p["both"], p["bias"]), dim=1)


def mixer(p: Params, x: Tensor) -> Tensor:
    tokens = x.flatten(2)
    y = F.layer_norm(tokens.transpose(1, 2), x.shape[1:2], p["norm"], p["norm_bias"]).transpose(1, 2)
    tokens = tokens + F.linear(F.gelu(F.linear(y, p["wide"])), p["narrow"])
    return tokens.view_as(x)


def film(p: Params, x: Tensor) -> Tensor:
    scale, shift = F.linear(x.mean((2, 3)), p["film"], p["film_bias"]).chunk(2, dim=1)
    return x * (1 + scale[..., None, None]) + shift[..., None, None]


def lora(p: Params, x: Tensor) -> Tensor:
    matrix = p["frozen"] + 0.5 * (p["up"] @ p["down"])
    return x + F.conv2d(x, matrix[:, :, None, None])


def relative_bias_attention(p: Params, x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    y, heads = x.flatten(2).transpose(1, 2), 2
    query, key, value = F.linear(y, p["qkv"]).unflatten(-1, (3, heads, channels // heads)).permute(2, 0, 3, 1, 4)
    rows = torch.arange(height * width) // width
    columns = torch.arange(height * width) % width
    offset = (rows[:, None] - rows + height - 1) * (2 * width - 1) + columns[:, None] - columns + width - 1
    scores = query @ key.transpose(-2, -1) / (channels // heads) ** 0.5 + p["bias"][:, offset]
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return x + F.linear(mixed, p["out"]).transpose(1, 2).reshape(count, channels, height, width)


def inverted_residual(p: Params, x: Tensor) -> Tensor:
    wide = F.silu(F.conv2d(x, p["expand"]))
    small = F.silu(F.conv2d(wide, p["depth"], stride=2, padding=1, groups=wide.shape[1]))
    y = F.conv2d(small, p["project"])
    return x + F.interpolate(y, size=x.shape[-2:], mode="nearest")


def layer_scale(p: Params, x: Tensor) -> Tensor:
    y = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], p["norm"], p["norm_bias"], eps=1e-6)
    y = F.softplus(y @ p["wide"] + p["wide_bias"]) @ p["narrow"]
    return x + (p["gamma"] * y).permute(0, 3, 1, 2)


def two_branches(p: Params, x: Tensor) -> Tensor:
    local = torch.tanh(F.conv2d(x, p["local"], padding="same"))
    pooled = F.avg_pool2d(x, 3, stride=1, padding=1) - F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=1)
    return x + p["mix"][0] * local + p["mix"][1] * F.conv2d(pooled, p["far"])


STYLES: dict[str, Blueprint] = {
    "readme": seed(
        "scale", lambda c, h, w: (zeros("gain", c),), lambda p, x: x * (1 + p["gain"][:, None, :, None, None])
    ),
    "squeeze-excite": seed(
        "excite",
        lambda c, h, w: (weight("down", 2, c), ones("down_bias", 2), weight("up", c, 2), zeros("up_bias", c)),
        for_one(squeeze_excite),
    ),
    "depthwise separable": seed(
        "separable",
        lambda c, h, w: (
            *(weight("depth", c, 1, 3, 3), zeros("depth_bias", c), weight("point", c, c, 1, 1)),
            *(ones("norm", c), zeros("norm_bias", c)),
        ),
        for_one(depthwise_separable),
    ),
    "gated linear unit": seed(
        "glu", lambda c, h, w: (weight("both", 2 * c, c, 1, 1), zeros("bias", 2 * c)), for_one(gated_linear_unit)
    ),
    "mixer": seed(
        "mixer",
        lambda c, h, w: (
            *(ones("norm", c), zeros("norm_bias", c)),
            *(weight("wide", 2 * h * w, h * w), weight("narrow", h * w, 2 * h * w)),
        ),
        for_one(mixer),
    ),
    "FiLM": seed("film", lambda c, h, w: (weight("film", 2 * c, c), zeros("film_bias", 2 * c)), for_one(film)),
    "LoRA": seed(
        "lora",
        lambda c, h, w: (weight("frozen", c, c), weight("up", c, 2), weight("down", 2, c)),
        for_one(lora),
    ),
    "relative-bias attention": seed(
        "attend",
        lambda c, h, w: (
            *(weight("qkv", 3 * c, c), weight("out", c, c)),
            weight("bias", 2, (2 * h - 1) * (2 * w - 1)),
        ),
        for_one(relative_bias_attention),
    ),
    "inverted residual": seed(
        "inverted",
        lambda c, h, w: (
            *(weight("expand", 2 * c, c, 1, 1), weight("depth", 2 * c, 1, 3, 3)),
            weight("project", c, 2 * c, 1, 1),
        ),
        for_one(inverted_residual),
    ),
    "layer-scale block": seed(
        "layer_scale",
        lambda c, h, w: (
            *(ones("norm", c), zeros("norm_bias", c), weight("wide", c, 2 * c), zeros("wide_bias", 2 * c)),
            *(weight("narrow", 2 * c, c), constant("gamma", (c,), 0.1)),
        ),
        for_one(layer_scale),
    ),
    "two-branch sum": seed(
        "two",
        lambda c, h, w: (weight("local", c, c, 3, 3), weight("far", c, c, 1, 1), ones("mix", 2)),
        for_one(two_branches),
    ),
}


def task(*blueprints: Blueprint, **settings: Any) -> esper.Task:
    """Slots with maps of 4 x 6 x 5 and 8 x 3 x 2."""
    host = cnn_host((2, 12, 10), 5, num_blocks=2, base_channels=4, pool_blocks=2)
    dataset = synthetic((2, 12, 10), num_classes=5, num_train=40, num_val=15)
    settings = {"slots": (0, 1), "batch_size": BATCH, "steps_per_epoch": 1, "eval_batch_size": BATCH} | settings
    return esper.Task("styles", host, blueprints, dataset, settings)


@pytest.mark.parametrize("name", STYLES)
def test_a_blueprint_in_plain_torch_equals_the_definition(name: str) -> None:
    """Blended, training, fossilized: gradients of a minibatch, a step, and the outputs of all lanes."""
    pair = Pair(task(STYLES[name]), ENVS)
    assert pair.fast.describe()[0].startswith("native")
    pair.assert_near(batch_of(pair.fast, BATCH), 3e-4)
    state, wait = double(pair.state), torch.zeros(ENVS, dtype=torch.int64)
    wanted = single_changes(take_table(pair.state.slots))
    outputs, exact = evaluated(pair.fast, pair.state, wanted)[1], evaluated(pair.exact, state, wanted)[1]
    assert largest_gap(outputs, exact) < 1e-4
    (after, _), (true, _) = pair.fast.step(pair.state, wait), pair.exact.step(state, wait)
    for place in (("host", "params"), ("seeds", "params"), ("seeds", "moments"), ("signals", "val_loss")):
        assert largest_gap(after.get(place), true.get(place)) < 3e-4, place


@pytest.mark.parametrize("isolation", [Isolation.OBJECTIVE, Isolation.NONE])
def test_all_of_them_learn_their_own_objective(isolation: Isolation) -> None:
    """In objective passes their numbers are given, and features get gradients through them."""
    pair = Pair(task(*STYLES.values(), isolation=isolation), 3 * ENVS)
    pair.assert_near(batch_of(pair.fast, BATCH), 3e-4)


def test_a_step_of_adamw_equals_the_definition() -> None:
    """Kernels and matrices decay, biases, norms and what is between a seed and its gate do not."""
    adamw = {"host_optimizer": "adamw", "seed_optimizer": "adamw", "seed_weight_decay": 0.3, "host_weight_decay": 0.2}
    pair = Pair(task(STYLES["FiLM"], STYLES["two-branch sum"], **adamw), 2 * ENVS)
    state, wait = double(pair.state), torch.zeros(2 * ENVS, dtype=torch.int64)
    (after, _), (true, _) = pair.fast.step(pair.state, wait), pair.exact.step(state, wait)
    for place in (("host", "params"), ("seeds", "params"), ("seeds", "moments")):
        assert largest_gap(after.get(place), true.get(place)) < 3e-4, place
