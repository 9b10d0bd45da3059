"""Networks as people write them, in plain ``torch.nn``, and their training by ``torch.optim``."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_


class Residual(nn.Module):
    """Two convolutions and a way around them (He et al. 2016)."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.around = nn.Identity()
        if stride != 1 or into != out:
            self.around = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        h += self.around(x)
        return self.relu(h)


class ResNet20(nn.Module):
    """Three stages of three residual blocks: 20 layers."""

    def __init__(self, width: int = 4, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        sizes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.stages = nn.ModuleList(
            nn.Sequential(Residual(*size), *(Residual(size[1], size[1], 1) for _ in range(2))) for size in sizes
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Residuals(nn.Sequential):
    """A stem, two residual blocks, and a head: seven layers, six batch norms."""

    def __init__(self, width: int = 2) -> None:
        stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        blocks = Residual(width, width, 1), Residual(width, 2 * width, 2)
        super().__init__(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


class Perceptron(nn.Module):
    """Two hidden layers."""

    def __init__(self, hidden: int = 6, inputs: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


class Encoder(nn.Module):
    """A block of a transformer, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    """Patches of 2x2, a class token, positions, two blocks (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int = 8, heads: int = 2, classes: int = 10, side: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, side * side + 1, width))
        self.blocks = nn.Sequential(Encoder(width, heads), Encoder(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Skip(nn.Module):
    """A functional forward with a way around its middle."""

    def __init__(self, width: int = 6, classes: int = 10) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.first(x)), 2)
        h = h + torch.tanh(self.middle(h))
        return self.last(h.mean((-2, -1)))


class Case(NamedTuple):
    """A network, and where slots sit."""

    make: Callable[[], nn.Module]
    sites: str | tuple[str, ...]
    kinds: list[str]


CASES = {
    "resnet": Case(ResNet20, ("stem", "stages.0", "stages.1", "stages.2"), ["conv"] * 4),
    "perceptron": Case(Perceptron, "auto", ["vector", "vector"]),
    "vit": Case(SmallViT, ("blocks.0", "blocks.1"), ["token", "token"]),
    "skip": Case(Skip, ("max_pool2d", "add"), ["conv", "conv"]),
}


def drawn(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network drawn by a seed, with the global generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def numbers(engine: object) -> dict[str, float]:
    """The engine's numbers by name."""
    return {name: float(value) for name, value in engine.hypers.items() if value.numel() == 1}


def descend(
    module: nn.Module, groups: list[list[nn.Parameter]], batches: list[tuple[Tensor, Tensor]], given: dict[str, float]
) -> list[float]:
    """Steps of SGD with momentum, decay and clipping, the host's parameters first, those of the seeds each apart."""
    roles = ["host", *["seed"] * (len(groups) - 1)]
    optimizers = [
        torch.optim.SGD(
            group, given[f"{role}_lr"], momentum=given["momentum"], weight_decay=given[f"{role}_weight_decay"]
        )
        for group, role in zip(groups, roles, strict=True)
    ]
    losses = []
    for x, y in batches:
        module.zero_grad()
        loss = F.cross_entropy(module(x), y)
        loss.backward()
        for group, role, optimizer in zip(groups, roles, optimizers, strict=True):
            clip_grad_norm_(group, given[f"{role}_clip"])
            optimizer.step()
        losses.append(loss.item())
    return losses
