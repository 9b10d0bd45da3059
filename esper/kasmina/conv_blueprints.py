"""Blueprints for convolutional sites: shape-preserving modules that start at or near the identity.

Compositions are esper-lite's, for C channels:

| name        | composition                                         | parameters         |
|-------------|-----------------------------------------------------|--------------------|
| norm        | x + tanh(scale) * (GN(x) - x)                       | 2C + 1             |
| attention   | x * 2 sigmoid(W2 relu(W1 mean(x)))                  | 2C max(1, C//4)    |
| depthwise   | x + relu(GN(1x1(depthwise 3x3(x))))                 | C^2 + 11C          |
| conv_small  | x + 1x1(relu(GN(x)))                                | C^2 + 2C           |
| conv_light  | x + relu(GN(3x3(x)))                                | 9C^2 + 2C          |
| conv_heavy  | x + two of (3x3, GN, relu)                          | 18C^2 + 4C         |
| bottleneck  | x + 1x1(relu(GN(3x3(relu(GN(1x1(x))))))), b wide    | 2Cb + 9b^2 + 4b    |

with b = max(8, C//4). Initial values let a seed start harmless *and* learn: ``norm`` starts at tanh(0) = 0;
``attention`` doubles the sigmoid, so that zero weights are the identity without a bias; tails that end in a linear
map start at zero; tails that end in relu(GN(.)) start with a norm weight of TAIL, because a zero tail before a relu
has no gradient and never would. ``attention``'s first weights start positive: features behind a relu are positive,
so its few hidden units start alive. ``norm`` takes the largest number of groups up to 32 that divides C into groups
of at least LEAST numbers. A group of one channel on a map of one position would be constant, so there the other norms
take one group; where a site has fewer numbers than LEAST altogether, what has a norm does not fit.
"""

from math import prod

import torch
from torch import Tensor

from esper.kasmina.blueprint import preserving
from esper.kasmina.layers import conv2d, group_norm, linear, tanh_mix
from esper.kasmina.layout import Param, Params, constant, fan_in_uniform
from esper.kasmina.site import Site

TAIL = 0.1
"""Initial norm weight of a residual branch that ends in a relu."""

LEAST = 3
"""Numbers that are normalised together at the least: one would give 0 whatever it is, and two nothing but +-1."""

CONV = frozenset({"conv"})


def norm_groups(channels: int) -> int:
    """Groups of a group norm: the first of 32, 16, 8, 4, 2, 1 that divides C into groups of at least 16 channels;
    if none does, the first that divides C.
    """
    divisors = [g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0]
    return next((g for g in divisors if channels // g >= 16), divisors[0])


def _conv(name: str, out: int, into: int, kernel: int) -> Param:
    return fan_in_uniform(name, (out, into, kernel, kernel), into * kernel * kernel)


def _norm(name: str, channels: int, weight: float = 1.0) -> tuple[Param, Param]:
    return constant(f"{name}.weight", (channels,), weight), constant(f"{name}.bias", (channels,), 0.0)


def _group_norm(params: Params, name: str, x: Tensor) -> Tensor:
    channels, positions = x.shape[2], x.shape[3] * x.shape[4]
    groups = norm_groups(channels)
    groups = 1 if channels // groups * positions == 1 else groups
    return group_norm(x, params[f"{name}.weight"], params[f"{name}.bias"], groups)


def _can_norm(site: Site) -> bool:
    return prod(site.shape) >= LEAST


def _positions(site: Site) -> int:
    return site.shape[1] * site.shape[2]


def _norm_params(site: Site) -> tuple[Param, ...]:
    return (*_norm("norm", site.channels), constant("scale", (1,), 0.0))


def _norm_apply(params: Params, x: Tensor) -> Tensor:
    channels, positions = x.shape[2], x.shape[3] * x.shape[4]
    fitting = [g for g in range(1, min(32, channels) + 1) if channels % g == 0 and channels // g * positions >= LEAST]
    groups = max([1, *fitting])
    return tanh_mix(x, group_norm(x, params["norm.weight"], params["norm.bias"], groups), params["scale"])


def _attention_width(channels: int) -> int:
    return max(1, channels // 4)


def _attention_params(site: Site) -> tuple[Param, ...]:
    channels, width = site.channels, _attention_width(site.channels)
    squeeze = Param("squeeze", (width, channels), "positive", channels**-0.5)
    return squeeze, constant("excite", (channels, width), 0.0)


def _attention_apply(params: Params, x: Tensor) -> Tensor:
    squeezed = torch.relu(linear(x.mean((-2, -1)), params["squeeze"]))
    gate = 2 * torch.sigmoid(linear(squeezed, params["excite"]))
    return x * gate[..., None, None]


def _depthwise_params(site: Site) -> tuple[Param, ...]:
    channels = site.channels
    return _conv("depth", channels, 1, 3), _conv("point", channels, channels, 1), *_norm("norm", channels, TAIL)


def _depthwise_apply(params: Params, x: Tensor) -> Tensor:
    branch = conv2d(conv2d(x, params["depth"]), params["point"])
    return x + torch.relu(_group_norm(params, "norm", branch))


def _conv_small_params(site: Site) -> tuple[Param, ...]:
    return *_norm("norm", site.channels), constant("point", (site.channels, site.channels, 1, 1), 0.0)


def _conv_small_apply(params: Params, x: Tensor) -> Tensor:
    return x + conv2d(torch.relu(_group_norm(params, "norm", x)), params["point"])


def _conv_light_params(site: Site) -> tuple[Param, ...]:
    return _conv("conv", site.channels, site.channels, 3), *_norm("norm", site.channels, TAIL)


def _conv_light_apply(params: Params, x: Tensor) -> Tensor:
    return x + torch.relu(_group_norm(params, "norm", conv2d(x, params["conv"])))


def _conv_heavy_params(site: Site) -> tuple[Param, ...]:
    channels = site.channels
    first = _conv("conv1", channels, channels, 3), *_norm("norm1", channels)
    return *first, _conv("conv2", channels, channels, 3), *_norm("norm2", channels, TAIL)


def _conv_heavy_apply(params: Params, x: Tensor) -> Tensor:
    branch = torch.relu(_group_norm(params, "norm1", conv2d(x, params["conv1"])))
    return x + torch.relu(_group_norm(params, "norm2", conv2d(branch, params["conv2"])))


def _bottleneck_width(channels: int) -> int:
    return max(8, channels // 4)


def _bottleneck_params(site: Site) -> tuple[Param, ...]:
    channels, width = site.channels, _bottleneck_width(site.channels)
    return (
        _conv("down", width, channels, 1),
        *_norm("norm1", width),
        _conv("conv", width, width, 3),
        *_norm("norm2", width),
        constant("up", (channels, width, 1, 1), 0.0),
    )


def _bottleneck_apply(params: Params, x: Tensor) -> Tensor:
    branch = torch.relu(_group_norm(params, "norm1", conv2d(x, params["down"])))
    branch = torch.relu(_group_norm(params, "norm2", conv2d(branch, params["conv"])))
    return x + conv2d(branch, params["up"])


def _bottleneck_flops(site: Site) -> int:
    width = _bottleneck_width(site.channels)
    return _positions(site) * (2 * site.channels * width + 9 * width**2)


NORM = preserving("norm", CONV, _norm_params, _norm_apply, lambda site: 0, 0.0, _can_norm)
ATTENTION = preserving(
    "attention",
    CONV,
    _attention_params,
    _attention_apply,
    lambda site: 2 * site.channels * _attention_width(site.channels),
    0.0,
)
DEPTHWISE = preserving(
    "depthwise",
    CONV,
    _depthwise_params,
    _depthwise_apply,
    lambda site: _positions(site) * (9 * site.channels + site.channels**2),
    1.0,
    _can_norm,
)
CONV_SMALL = preserving(
    "conv_small",
    CONV,
    _conv_small_params,
    _conv_small_apply,
    lambda site: _positions(site) * site.channels**2,
    0.0,
    _can_norm,
)
CONV_LIGHT = preserving(
    "conv_light",
    CONV,
    _conv_light_params,
    _conv_light_apply,
    lambda site: _positions(site) * 9 * site.channels**2,
    1.0,
    _can_norm,
)
CONV_HEAVY = preserving(
    "conv_heavy",
    CONV,
    _conv_heavy_params,
    _conv_heavy_apply,
    lambda site: _positions(site) * 18 * site.channels**2,
    1.0,
    _can_norm,
)
BOTTLENECK = preserving("bottleneck", CONV, _bottleneck_params, _bottleneck_apply, _bottleneck_flops, 0.0)

CONV_BLUEPRINTS = (NORM, ATTENTION, DEPTHWISE, CONV_SMALL, CONV_LIGHT, CONV_HEAVY, BOTTLENECK)
"""All blueprints for convolutional sites; the position is the blueprint's number."""
