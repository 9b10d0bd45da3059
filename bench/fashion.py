"""A host of one's own in plain ``torch.nn``, and the task that it learns: Fashion-MNIST, from a starved start.

``python -m esper train --task py:bench.fashion:task`` names it. ``FASHION_MNIST`` says where the four files lie.
"""

import os

import torch
from torch import Tensor, nn

import esper
from esper.kasmina.bypass_blueprints import CONV4X2, CONV8X2
from esper.kasmina.conv_blueprints import BOTTLENECK, CONV_HEAVY
from esper.tolaria.formats.idx import idx
from esper.utils import rng

FOLDER = "/usr/share/datasets/fashion-mnist"
"""Of Debian's dataset-fashion-mnist."""


class Narrow(nn.Module):
    """Convolutions of one and two channels on an image of a quarter of the sides, and a linear map of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 1, 4, 4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 1, 28, 28] to logits [B, 10]."""
        x = self.second(self.first(x))
        return self.head(x.mean((2, 3)))


@torch.no_grad()
def drawn() -> Narrow:
    """The network: weights uniform within 1 / sqrt(inputs), as torch draws them, but from a key; no biases."""
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        module = Narrow()
    for number, parameter in enumerate(module.parameters()):
        bound = 0.0 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
        parameter.copy_(bound * (2 * rng.uniform(rng.fold_in(rng.key(0), number), tuple(parameter.shape)) - 1))
    return module


def task() -> esper.Task:
    """Slots behind both convolutions, and one from the image to the logits."""
    host = esper.host(drawn(), torch.zeros(2, 1, 28, 28), ("first", "second"), start="shuffled")
    settings = {"slots": (0, 1, "input:logits"), "steps_per_epoch": 16, "horizon": 15, "val_samples": 1000}
    settings |= {"host_lr": 0.1, "seed_lr": 0.1, "blend_epochs": 2, "min_blending_epochs": 1, "min_training_epochs": 1}
    data = idx(os.environ.get("FASHION_MNIST", FOLDER))
    made = esper.Task("fashion", host, (CONV_HEAVY, BOTTLENECK, CONV4X2, CONV8X2), data, settings, {"price": 2.0})
    return made._replace(script=CONV8X2.name)
