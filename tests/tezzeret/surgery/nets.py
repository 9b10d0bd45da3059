"""Networks in plain ``torch.nn`` to operate on, and their networks' numbers side by side."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esper
from esper.kasmina import arena
from esper.kasmina.cnn import cnn_host
from esper.kasmina.host import Host
from esper.kasmina.transformer import transformer_host
from esper.leyline.learners import Learners, Weights
from esper.tezzeret.surgery import Anatomy, Learned, Samples, anatomy_of, learned_of
from esper.utils import rng

F64 = torch.float64
ENVS = 3


class Perceptron(nn.Module):
    """Three hidden layers."""

    def __init__(self, hidden: int = 6, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(16, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.head, self.act = nn.Linear(hidden, 4), activation()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        return self.head(self.act(self.three(self.act(self.two(self.act(self.one(x)))))))


class Branches(nn.Module):
    """Maps of an image by two layers, and by two side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.second(F.relu(self.first(x))))
        h = F.relu(self.left(h)) + F.relu(self.right(h))
        return self.head(torch.flatten(F.max_pool2d(h, 2), 1))


class Residual(nn.Module):
    """A stem and a residual block that halves the map, with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.conv1, self.norm1 = nn.Conv2d(4, 6, 3, 2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.around = nn.Sequential(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        h += self.around(x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(F.relu(h), 1), 1))


def drawn(make, seed: int = 0) -> nn.Module:
    """A network in double precision, drawn by a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


class Patient(NamedTuple):
    """A body, what three networks of it have learned, and samples."""

    body: Anatomy
    learned: Learned
    samples: Samples


def networks_of(host: Host, seed: int = 0) -> Learners:
    """Three networks that differ, with moments."""
    keys = rng.fold_in(rng.key(seed), torch.arange(ENVS))
    params, buffers = arena.init_host(host, keys, F64)
    params = params + 0.05 * rng.normal(rng.fold_in(keys, 7), params.shape[1:], F64)
    buffers = buffers + 0.1 * rng.uniform(rng.fold_in(keys, 9), buffers.shape[1:], dtype=F64)
    moments = rng.normal(rng.fold_in(keys, 8), (2, params.shape[1]), F64)
    nothing = Weights(params[:, :0], moments[:, :, :0], keys[:, :0])
    return Learners(Weights(params, moments, torch.arange(ENVS)), buffers, nothing, buffers[:, :0])


def patient_of(host: Host, seed: int = 0) -> Patient:
    """A host on the table."""
    tokens, count = host.takes_tokens, 12
    shape = (count, *host.input_shape)
    drawn_tokens = (rng.uniform(rng.key(3), shape) * host.num_outputs).long()
    inputs = drawn_tokens if tokens else rng.normal(rng.key(3), shape, F64)
    targets = drawn_tokens.roll(1, 1) if tokens else torch.arange(count) % host.num_outputs
    return Patient(anatomy_of(host), learned_of(host, networks_of(host, seed)), Samples(inputs, targets))


IMAGE = rng.normal(rng.key(5), (4, 1, 4, 4), F64)

HOSTS = {
    "mlp": lambda: esper.host(drawn(Perceptron), IMAGE, ("relu", "relu_1")),
    "branches": lambda: esper.host(drawn(Branches), IMAGE, ("relu",)),
    "residual": lambda: esper.host(drawn(Residual), IMAGE, ("stem",)),
    "cnn": lambda: cnn_host((1, 4, 4), 4, 2, 4, pool_blocks=1),
    "transformer": lambda: transformer_host(7, 5, 2, 2, 8),
}
"""A perceptron, three convolutional networks (two with batch norm), and a transformer with a tied head."""
