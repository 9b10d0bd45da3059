"""Hosts, seeds and gates of every topology a second time, with ``torch.nn`` modules, from the documentation alone.

Parameters are registered in the order in which the layouts list them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.host import Host
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.kasmina.transformer import transformer_host
from esper.tolaria.data import Dataset, Part
from esper.tolaria.synthetic import synthetic
from esper.utils import rng

CHANNELS, CLASSES = (4, 8, 16), 10
VOCABULARY, BLOCK, WIDTH, HEADS = 11, 6, 8, 2


class Topology(NamedTuple):
    """What Esper is given, and the same in plain PyTorch; the host has sites after its stages 0, 1 and 2."""

    host: Host
    blueprints: tuple[Blueprint, ...]
    data: Dataset
    host_module: Callable[[], nn.Sequential]
    seed_module: Callable[[str, int], nn.Module]  # name, site
    gate_module: Callable[[int], nn.Module]  # site


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Norm(nn.Module):
    """x + tanh(scale) * (norm(x) - x)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.scale = nn.ParameterList([torch.zeros(1)])  # a module of its own: it comes after the norm's parameters

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.scale[0]) * (self.norm(x) - x)


class SqueezeExcite(nn.Module):
    """x * 2 sigmoid(W2 relu(W1 mean(x)))."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, width, bias=False), nn.Linear(width, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = 2 * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class GateModule(nn.Module):
    """sigmoid(W2 relu(W1 x + b1) + b2) of the features, averaged over ``dims``; one weight per sample or position."""

    def __init__(self, channels: int, dims: tuple[int, ...]) -> None:
        super().__init__()
        width, self.dims = max(8, channels // 4), dims
        self.net = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mean(self.dims))[:, :, None, None] if self.dims else self.net(x)


def conv(into: int, out: int, kernel: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, padding=kernel // 2, groups=groups, bias=False)


def group_norm(channels: int) -> nn.GroupNorm:
    """By the rule of ``norm_groups``: one group of 16 channels; fewer channels are a group each."""
    return nn.GroupNorm({4: 4, 8: 8, 16: 1}[channels], channels)


def conv_seed(name: str, site: int) -> nn.Module:
    """A blueprint, from the table in ``esper.kasmina.conv_blueprints``."""
    c = CHANNELS[site]
    b, relu = max(8, c // 4), nn.ReLU()
    match name:
        case "norm":
            return Norm(nn.GroupNorm(min(32, c), c))
        case "attention":
            return SqueezeExcite(c, max(1, c // 4))
        case "depthwise":
            return Residual(conv(c, c, 3, groups=c), conv(c, c, 1), group_norm(c), relu)
        case "conv_small":
            return Residual(group_norm(c), relu, conv(c, c, 1))
        case "conv_light":
            return Residual(conv(c, c, 3), group_norm(c), relu)
        case "conv_heavy":
            return Residual(conv(c, c, 3), group_norm(c), relu, conv(c, c, 3), group_norm(c), relu)
        case "bottleneck":
            return Residual(conv(c, b, 1), group_norm(b), relu, conv(b, b, 3), group_norm(b), relu, conv(b, c, 1))
    raise ValueError(name)


def conv_host() -> nn.Sequential:
    """Blocks of convolution, batch norm, relu and (the first two) pooling; then mean and a linear head."""
    blocks, into = nn.Sequential(), 1
    for index, out in enumerate(CHANNELS):
        pool = nn.MaxPool2d(2) if index < 2 else nn.Identity()
        blocks.append(nn.Sequential(conv(into, out, 3), nn.BatchNorm2d(out), nn.ReLU(), pool))
        into = out
    return blocks.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, CLASSES)))


class SelfAttention(nn.Module):
    """torch's own multi-head attention, each position masked from those after it."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=hidden, need_weights=True)[0]


def mlp(expansion: int) -> tuple[nn.Module, ...]:
    return nn.Linear(WIDTH, expansion * WIDTH), nn.GELU(), nn.Linear(expansion * WIDTH, WIDTH)


def token_seed(name: str, site: int) -> nn.Module:
    """A blueprint, from the table in ``esper.kasmina.token_blueprints``."""
    del site
    plain = nn.LayerNorm(WIDTH, elementwise_affine=False)
    match name:
        case "norm":
            return Norm(nn.LayerNorm(WIDTH))
        case "lora":
            return Residual(nn.Linear(WIDTH, 8, bias=False), nn.Linear(8, WIDTH, bias=False))
        case "lora_large":
            return Residual(nn.Linear(WIDTH, 32, bias=False), nn.Linear(32, WIDTH, bias=False))
        case "attention":
            return Residual(plain, SelfAttention(4))
        case "mlp_small":
            return Residual(plain, *mlp(2))
        case "mlp":
            return Residual(plain, *mlp(4))
    raise ValueError(name)


class Embedding(nn.Module):
    """Token plus position."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(BLOCK, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token(tokens) + self.position(torch.arange(tokens.shape[1]))


def token_host() -> nn.Sequential:
    """Embedding, two pre-norm blocks, and a head whose weight *is* the embedding's."""
    embedding, head = Embedding(), nn.Linear(WIDTH, VOCABULARY, bias=False)
    head.weight = embedding.token.weight
    blocks = [
        nn.Sequential(
            Residual(nn.LayerNorm(WIDTH), SelfAttention(HEADS)),
            Residual(nn.LayerNorm(WIDTH), *mlp(4)),
        )
        for _ in range(2)
    ]
    return nn.Sequential(embedding, *blocks, nn.Sequential(nn.LayerNorm(WIDTH), head))


def random_text(num_train: int, num_val: int) -> Dataset:
    """Uniformly random tokens."""
    counts = [num_train, num_val, 1]
    windows = (rng.uniform(rng.key(8), (sum(counts), BLOCK + 1)) * VOCABULARY).long().split(counts)
    return Dataset("random text", *(Part(each[:, :-1], each[:, 1:]) for each in windows), VOCABULARY)


TOPOLOGIES = {
    "conv": Topology(
        cnn_host((1, 8, 8), CLASSES, num_blocks=3, base_channels=CHANNELS[0], pool_blocks=2),
        CONV_BLUEPRINTS,
        synthetic((1, 8, 8), num_train=96, num_val=57),
        conv_host,
        conv_seed,
        lambda site: GateModule(CHANNELS[site], (2, 3)),
    ),
    "token": Topology(
        transformer_host(VOCABULARY, BLOCK, num_layers=2, num_heads=HEADS, width=WIDTH),
        TOKEN_BLUEPRINTS,
        random_text(96, 57),
        token_host,
        token_seed,
        lambda site: GateModule(WIDTH, ()),
    ),
}
