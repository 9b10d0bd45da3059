"""Blueprints for bypasses that read feature maps: small convolutional networks, and a linear probe.

A bypass computes for itself what its target lacks, so it can widen a narrow host. All start at 0 and learn at once:
the last layer's weights and biases are 0, which has a gradient as soon as what it reads is not 0.

| factory      | composition, c = channels, doubling from block to block                     | to             |
|--------------|-----------------------------------------------------------------------------|----------------|
| conv_bypass  | blocks of (3x3, norm, relu, pool); mean over positions; linear              | logits, vector |
| map_bypass   | blocks of (3x3, norm, relu), pooled ``pools`` times in all; 1x1             | later maps     |
| linear_probe | linear, of the whole map or of its mean over positions                      | logits, vector |

Parameters: 9 c_in c_out + 2 c_out a block, c_in of the first block the source's channels; (c_last + 1) K of a head
with K outputs; c_last K of a 1x1 to K channels; (C H W + 1) K of a probe. Pools are 2x2 maxima that drop an odd last
row or column. ``conv_bypass`` pools behind every block while the map has two rows and two columns; ``map_bypass`` pools
once behind each of the first blocks, and behind the last as often as is left. Batch norm as in the hosts
(``esper.kasmina.cnn``), with running statistics of its own; group norm has groups of 8 channels or a few more, so that
the mean over positions behind it still says something.

Grown on ``digits`` from image to logits, by their own objective, in 400 steps (12 environments, 16 of the second; the
host alone: 59): conv4x2 94.9, conv8x2 98.3, conv16x2 98.8, conv8x2_group 96.8, probe 97.9 % of validation samples. Two
blocks of 8 and 16 channels trained alone: 98.3.
"""

from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.layers import apply_batch_norm, batch_norm, conv2d, group_norm, linear, max_pool2, track
from esper.kasmina.layout import Param, Params, constant, fan_in_uniform, zero_affine
from esper.kasmina.site import Site
from esper.leyline.config import ConfigError

Norm = Literal["batch", "group"]

GROUP = 8
"""Channels that a group of the group norm has at least, if there are as many."""


class Body(NamedTuple):
    """Blocks of convolution, norm, relu and pooling.

    Attributes:
      channels: of the first block; they double from block to block.
      blocks: how many.
      norm: which.
      pools: 2x2 pools in all; None: one behind every block, while the map has two rows and two columns.
    """

    channels: int
    blocks: int
    norm: Norm
    pools: int | None

    @property
    def widths(self) -> list[int]:
        """Channels of every block."""
        return [self.channels * 2**block for block in range(self.blocks)]

    def pools_behind(self, block: int, height: int, width: int) -> int:
        """How often the map behind a block, of this size, is pooled."""
        if self.pools is None:
            return int(min(height, width) >= 2)
        last = block == self.blocks - 1
        return max(self.pools - block, 0) if last else int(block < self.pools)


def groups_of(channels: int) -> int:
    """Groups of the group norm: as many as have at least ``GROUP`` channels each, one if there are too few."""
    return max(g for g in range(1, max(channels // GROUP, 1) + 1) if channels % g == 0)


def takes_vectors(target: Site) -> bool:
    """Whether one vector per sample acts at a site: logits of a classifier, or features without positions."""
    return target.kind in ("logits", "vector") and len(target.shape) == 1


def _body_params(body: Body, source: Site) -> tuple[Param, ...]:
    params, into = list[Param](), source.channels
    for block, out in enumerate(body.widths):
        params.append(fan_in_uniform(f"conv{block}", (out, into, 3, 3), 9 * into))
        params += [constant(f"norm{block}.weight", (out,), 1.0), constant(f"norm{block}.bias", (out,), 0.0)]
        into = out
    return tuple(params)


def _body_buffers(body: Body, source: Site, target: Site) -> tuple[Param, ...]:
    del source, target
    if body.norm == "group":
        return ()
    rows = [(constant(f"mean{b}", (c,), 0.0), constant(f"variance{b}", (c,), 1.0)) for b, c in enumerate(body.widths)]
    return tuple(row for pair in rows for row in pair)


def _body_flops(body: Body, source: Site) -> int:
    (into, height, width), found = source.shape, 0
    for block, out in enumerate(body.widths):
        found += height * width * 9 * into * out
        into, shrink = out, 2 ** body.pools_behind(block, height, width)
        height, width = height // shrink, width // shrink
    return found


def _normed(body: Body, block: int, params: Params, buffers: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    """The norm of a block: output, and its new statistics where it has any and is in training."""
    weight, bias = params[f"norm{block}.weight"], params[f"norm{block}.bias"]
    if body.norm == "group":
        return group_norm(x, weight, bias, groups_of(x.shape[2])), {}
    mean, variance = buffers[f"mean{block}"], buffers[f"variance{block}"]
    if not train:
        return apply_batch_norm(x, weight, bias, mean, variance), {}
    y, *seen = batch_norm(x, weight, bias)
    return y, {f"mean{block}": track(mean, seen[0]), f"variance{block}": track(variance, seen[1])}


def _features(body: Body, params: Params, buffers: Params, x: Tensor, train: bool) -> tuple[Tensor, Params]:
    """The map behind the last block, and new statistics."""
    new: Params = {}
    for block in range(body.blocks):
        y, own = _normed(body, block, params, buffers, conv2d(x, params[f"conv{block}"]), train)
        x, new = torch.relu(y), new | own
        for _ in range(body.pools_behind(block, x.shape[-2], x.shape[-1])):
            x = max_pool2(x)
    return x, new


def _to_vector(params: Params, x: Tensor) -> Tensor:
    return linear(x.mean((-2, -1)), params["head.weight"], params["head.bias"])


def _to_map(params: Params, x: Tensor) -> Tensor:
    return conv2d(x, params["head"])


def _checked(factory: str, channels: int, blocks: int, norm: Norm) -> None:
    if channels < 4 or blocks < 1 or norm not in get_args(Norm):
        raise ConfigError(
            f"{factory} channels = {channels}, blocks = {blocks}, norm = {norm!r}: expected at least 4 channels, "
            f"at least 1 block and {' or '.join(get_args(Norm))}"
        )


def _named(stem: str, channels: int, blocks: int, norm: Norm) -> str:
    return f"{stem}{channels}x{blocks}" + ("_group" if norm == "group" else "")


def conv_bypass(channels: int = 8, blocks: int = 2, norm: Norm = "batch") -> Blueprint:
    """A convolutional network from maps to logits; ``conv8x2``, with group norm ``conv8x2_group``.

    Args:
      channels: of the first block, >= 4; they double from block to block.
      blocks: >= 1.
      norm: "batch", with running statistics as buffers, or "group".

    Raises:
      ConfigError: a value out of range.
    """
    _checked("conv_bypass", channels, blocks, norm)
    body = Body(channels, blocks, norm, None)

    def train(params: Params, buffers: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
        del key
        features, new = _features(body, params, buffers, x, True)
        return _to_vector(params, features), new

    return Blueprint(
        name=_named("conv", channels, blocks, norm),
        fits=lambda source, target: source.kind == "conv" and takes_vectors(target),
        params=lambda source, target: (
            *_body_params(body, source),
            *zero_affine("head", target.channels, body.widths[-1]),
        ),
        train=train,
        infer=lambda params, buffers, x: _to_vector(params, _features(body, params, buffers, x, False)[0]),
        flops=lambda source, target: _body_flops(body, source) + body.widths[-1] * target.channels,
        identity_bound=0.0,
        buffers=partial(_body_buffers, body),
        is_bypass=True,
    )


def map_bypass(channels: int = 8, blocks: int = 1, pools: int = 1, norm: Norm = "batch") -> Blueprint:
    """A convolutional network from maps to later maps, ``pools`` times half as high and wide; ``map8x1_pool1``.

    Args:
      channels, blocks, norm: as in ``conv_bypass``.
      pools: >= 0.

    Raises:
      ConfigError: a value out of range.
    """
    _checked("map_bypass", channels, blocks, norm)
    if pools < 0:
        raise ConfigError(f"map_bypass pools = {pools}: expected at least 0")
    body = Body(channels, blocks, norm, pools)

    def train(params: Params, buffers: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
        del key
        features, new = _features(body, params, buffers, x, True)
        return _to_map(params, features), new

    def flops(source: Site, target: Site) -> int:
        channels, height, width = target.shape
        return _body_flops(body, source) + height * width * channels * body.widths[-1]

    return Blueprint(
        name=f"{_named('map', channels, blocks, norm)}_pool{pools}",
        fits=lambda source, target: source.kind == target.kind == "conv" and _shrinks(source, target, pools),
        params=lambda source, target: (
            *_body_params(body, source),
            constant("head", (target.channels, body.widths[-1], 1, 1), 0.0),
        ),
        train=train,
        infer=lambda params, buffers, x: _to_map(params, _features(body, params, buffers, x, False)[0]),
        flops=flops,
        identity_bound=0.0,
        buffers=partial(_body_buffers, body),
        is_bypass=True,
    )


def _shrinks(source: Site, target: Site, pools: int) -> bool:
    """Whether halving so often leads from map to map."""
    return all(side >> pools == aim > 0 for side, aim in zip(source.shape[1:], target.shape[1:], strict=True))


def linear_probe(pooled: bool = False) -> Blueprint:
    """A linear map from a whole feature map, or a vector, to logits; ``probe``, of a map's mean ``probe_mean``.

    Args:
      pooled: whether it reads the mean over positions.
    """

    def size(source: Site) -> int:
        return source.channels if pooled else torch.Size(source.shape).numel()

    def apply(params: Params, x: Tensor) -> Tensor:
        rows = x.mean((-2, -1)) if pooled else x.flatten(2)
        return linear(rows, params["head.weight"], params["head.bias"])

    return Blueprint(
        name="probe_mean" if pooled else "probe",
        fits=lambda source, target: (
            source.kind in (("conv",) if pooled else ("conv", "vector")) and takes_vectors(target)
        ),
        params=lambda source, target: zero_affine("head", target.channels, size(source)),
        train=lambda params, buffers, x, key: (apply(params, x), buffers),
        infer=lambda params, buffers, x: apply(params, x),
        flops=lambda source, target: size(source) * target.channels,
        identity_bound=0.0,
        is_bypass=True,
    )


PROBE = linear_probe()
CONV4X2, CONV8X2, CONV16X2, CONV32X2 = (conv_bypass(channels) for channels in (4, 8, 16, 32))

CONV_BYPASSES = (CONV4X2, CONV8X2, CONV16X2, CONV32X2)
"""From maps to logits, by size. Which is best depends on the data: few or noisy labels ask for a small one, noisy
images for a large one.
"""

MAP_BYPASSES = (map_bypass(8, pools=0), map_bypass(8, pools=1), map_bypass(8, pools=2))
"""From maps to later maps; at any pair of points at most one of them fits."""
