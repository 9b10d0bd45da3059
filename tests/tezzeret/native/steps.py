"""Steps that drawn functions are made of: all operations that are captured, on maps [B, C, H, W] of one network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina.layout import Param, Params, fan_in_uniform
from esper.utils.transforms import unwrapped

Shape = tuple[int, int, int]
Sizes = dict[str, tuple[int, ...]]


class Step(NamedTuple):
    """A function of maps.

    Attributes:
      apply: (p, x [B, C, H, W]) -> [B, C', H', W'].
      sizes: (C, H, W) -> its parameters.
      fits: (C, H, W) -> whether it can stand there.
    """

    apply: Callable[[Any, Tensor], Tensor]
    sizes: Callable[[int, int, int], Sizes] = lambda c, h, w: {}
    fits: Callable[[int, int, int], bool] = lambda c, h, w: True


def attended(p: Params, x: Tensor) -> Tensor:
    """Every position looks at itself and those before it; two heads where there are channels for them."""
    heads = 2 if x.shape[1] % 2 == 0 else 1
    y = F.linear(x.flatten(2).mT, p["qkv"]).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(y[0], y[1], y[2], is_causal=True)
    return mixed.transpose(1, 2).flatten(2).mT.reshape(x.shape)


def by_position(p: Params, x: Tensor) -> Tensor:
    rows = torch.linspace(-1, 1, x.shape[2])
    return x * (p["a"][:, None] * p["b"]) + rows[:, None]


def in_groups(p: Params, x: Tensor) -> Tensor:
    """Of one memory layout: torch asks for it, and vmap knows no other."""
    x = x.clone(memory_format=torch.contiguous_format)
    return F.group_norm(x, 1, p["w"], p["b"]) + F.group_norm(x, 1, p["b"], None, eps=1e-2)


def chosen(p: Params, x: Tensor) -> Tensor:
    """One of two by place, and a number at some places."""
    even = torch.arange(x.shape[-1]) % 2 == 0
    return torch.where(even, torch.tanh(x), p["a"]).masked_fill(~even & even.flip(0), 0.5)


STEPS: dict[str, Step] = {
    "relu": Step(lambda p, x: F.relu(x)),
    "leaky relu": Step(lambda p, x: F.leaky_relu(x, 0.2)),
    "absolute": Step(lambda p, x: torch.abs(x) - 1),
    "sigmoid": Step(lambda p, x: torch.sigmoid(x)),
    "tanh": Step(lambda p, x: x.tanh()),
    "gelu": Step(lambda p, x: F.gelu(x) + F.gelu(1 - x, approximate="tanh")),
    "silu": Step(lambda p, x: F.silu(x)),
    "softplus": Step(lambda p, x: F.softplus(2 * x) - F.logsigmoid(x)),
    "exponential": Step(lambda p, x: torch.exp(torch.tanh(x)) / 2),
    "logarithm": Step(lambda p, x: torch.log(x * x + 1)),
    "roots": Step(lambda p, x: torch.sqrt(x**2 + 0.5) + torch.rsqrt(x.square() + 1)),
    "quotient": Step(lambda p, x: (x - 1) / (2 + x.tanh()) + 1 / (1 + x**2)),
    "powers": Step(lambda p, x: torch.tanh(x) ** 3 - x / 3),
    "per channel": Step(lambda p, x: x * (1 + p["a"][:, None, None]) - p["b"], lambda c, h, w: {"a": (c,), "b": (1,)}),
    "per position": Step(by_position, lambda c, h, w: {"a": (h,), "b": (w,)}),
    "per number": Step(lambda p, x: torch.sigmoid(p["a"]) * x + p["a"], lambda c, h, w: {"a": (c, h, w)}),
    "parameter over features": Step(lambda p, x: p["a"] / (1 + x * x), lambda c, h, w: {"a": (c, 1, w)}),
    "convolution": Step(
        lambda p, x: F.conv2d(x, p["w"], p["b"], padding=1), lambda c, h, w: {"w": (3, c, 3, 3), "b": (3,)}
    ),
    "strided": Step(
        lambda p, x: F.conv2d(x, p["w"], p["b"], stride=2, padding=1), lambda c, h, w: {"w": (4, c, 3, 3), "b": (4,)}
    ),
    "dilated": Step(
        lambda p, x: F.conv2d(x, p["w"], padding=(2, 0), dilation=(2, 1)), lambda c, h, w: {"w": (2, c, 3, 1)}
    ),
    "depthwise": Step(
        lambda p, x: F.conv2d(x, p["w"], padding="same", groups=x.shape[1]), lambda c, h, w: {"w": (2 * c, 1, 3, 3)},
        lambda c, h, w: c < 6,
    ),
    "made weights": Step(
        lambda p, x: F.conv2d(x, (torch.tanh(p["u"]) @ p["d"])[:, :, None, None], p["u"].softmax(1).mean(1)),
        lambda c, h, w: {"u": (3, 2), "d": (2, c)},
    ),
    "rows": Step(lambda p, x: F.linear(x, p["w"], p["b"]), lambda c, h, w: {"w": (4, w), "b": (4,)}),
    "columns": Step(lambda p, x: torch.matmul(p["w"], x), lambda c, h, w: {"w": (3, h)}),
    "products": Step(lambda p, x: x @ x.mT / x.shape[-1]),
    "attention": Step(attended, lambda c, h, w: {"qkv": (3 * c, c)}),
    "softmax": Step(lambda p, x: x.softmax(1) + F.softmax(x, -1)),
    "layer norm": Step(
        lambda p, x: F.layer_norm(x, x.shape[2:], p["w"], p["b"]),
        lambda c, h, w: {"w": (h, w), "b": (h, w)}, lambda c, h, w: h * w > 2,
    ),
    "layer norm of all": Step(lambda p, x: F.layer_norm(x, x.shape[1:], eps=1e-3), fits=lambda c, h, w: c * h * w > 2),
    "group norm": Step(
        in_groups, lambda c, h, w: {"w": (c,), "b": (c,)}, lambda c, h, w: c * h * w > 2
    ),
    "root mean square": Step(lambda p, x: F.rms_norm(x, x.shape[3:], p["w"], 1e-2), lambda c, h, w: {"w": (w,)}),
    "chosen": Step(chosen, lambda c, h, w: {"a": (h, w)}),
    "largest pool": Step(lambda p, x: F.max_pool2d(x, 2, stride=1), fits=lambda c, h, w: min(h, w) > 1),
    "largest": Step(lambda p, x: x - x.amax((2, 3), keepdim=True)),
    "mean pool": Step(lambda p, x: F.avg_pool2d(x, 2, stride=1, padding=1)),
    "means": Step(lambda p, x: x - x.mean((1, 3), keepdim=True) + x.sum(2, keepdim=True) / 4),
    "a vector": Step(lambda p, x: F.adaptive_avg_pool2d(x, 1).flatten(1)[..., None, None] + x[..., :1, :]),
    "parts": Step(lambda p, x: torch.cat((x[:, 1:], x.flip(1)[:, :1].roll(1, -1)), 1)),
    "gated": Step(lambda p, x: F.glu(torch.cat((x, 1 - x), 1), dim=1)),
    "stacked": Step(lambda p, x: torch.stack((x, x * 2), 1).mean(1).transpose(2, 3)),
    "padded": Step(lambda p, x: F.pad(x, (1, 0, 0, 1))[..., 1:, :], fits=lambda c, h, w: h < 8),
    "larger": Step(lambda p, x: F.interpolate(x, scale_factor=2)[..., ::2, 1:], fits=lambda c, h, w: w < 6),
    "split": Step(lambda p, x: torch.cat([part * (n + 1) for n, part in enumerate(x.chunk(2, 1))], 1)),
}  # fmt: skip
KINKED = ("relu", "leaky relu", "absolute", "largest pool", "largest")
"""Rounding decides where these bend: their inputs are kept away from there."""


def away(name: str, x: Tensor) -> Tensor:
    """How far each number of x [..., C, H, W] is from where the step bends; exactly there, all forms are."""
    gaps = x.abs()
    if name == "largest":
        top = torch.cat((x.flatten(-2), x.flatten(-2)[..., :1] - 1), -1).topk(2, -1).values
        gaps = top[..., 0] - top[..., 1]
    elif name == "largest pool":
        windows = x.unfold(-1, 2, 1).unfold(-3, 2, 1).flatten(-2).topk(2, -1).values
        gaps = windows[..., 0] - windows[..., 1]
    return torch.where(gaps == 0, 1.0, gaps)


NEAREST: list[float] = []
"""What ``Drawn.run`` has seen, where someone asked for it by a first entry."""


class Drawn(NamedTuple):
    """Steps one after the other, on maps of this shape."""

    names: tuple[str, ...]
    shape: Shape

    def then(self, name: str) -> "Drawn":
        """One more step."""
        return self._replace(names=(*self.names, name))

    def shapes(self) -> list[Shape]:
        """Before every step, and behind the last."""
        found = [self.shape]
        for name in self.names:
            p = {each: torch.zeros(size) for each, size in STEPS[name].sizes(*found[-1]).items()}
            found.append(tuple(STEPS[name].apply(p, torch.zeros(1, *found[-1])).shape[1:]))
        return found

    def params(self, back: bool) -> tuple[Param, ...]:
        """By number of their step; with ``back``, a convolution that leads to the channels at the beginning."""
        found, shapes = list[Param](), self.shapes()
        for number, (name, shape) in enumerate(zip(self.names, shapes, strict=False)):
            for each, size in STEPS[name].sizes(*shape).items():
                found.append(fan_in_uniform(f"{number}{each}", size, max(1, torch.Size(size[1:]).numel())))
        out, last = self.shape[0], shapes[-1][0]
        return (*found, *([fan_in_uniform("out", (out, last, 1, 1), last)] if back else []))

    def run(self, p: Params, x: Tensor) -> Tensor:
        """All steps."""
        for number, name in enumerate(self.names):
            if NEAREST and name in KINKED:
                NEAREST.append(float(unwrapped(away(name, x).min()).min()))
            x = STEPS[name].apply({key[1:]: value for key, value in p.items() if key[0] == str(number)}, x)
        return x

    def beside(self, p: Params, x: Tensor) -> Tensor:
        """The features, and what the steps make of them in the same shape."""
        return x + F.interpolate(F.conv2d(self.run(p, x), p["out"]), size=x.shape[-2:])
