"""Task presets: plain functions that return what a run needs."""

from collections.abc import Callable
from typing import Any, NamedTuple

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.host import Host
from esper.tolaria import data
from esper.tolaria.data import Dataset


class Task(NamedTuple):
    """A host, what can grow in it, and the data it learns.

    Attributes:
      name: for people.
      host: the network.
      blueprints: kinds of seed; position = number.
      data: the dataset.
      settings: values of ``Config`` and ``HyperParams`` that differ from their defaults, by name.
    """

    name: str
    host: Host
    blueprints: tuple[Blueprint, ...]
    data: Dataset
    settings: dict[str, Any]


def digits() -> Task:
    """Optical digits, 8x8. One narrow block sees too little of them; three slots behind it let the host grow deeper
    and wider where it matters.
    """
    dataset = data.digits()
    host = cnn_host(dataset.input_shape, dataset.num_classes, num_blocks=1, base_channels=4)
    settings = {"slots": (0, 0, 0), "steps_per_epoch": 16, "horizon": 25, "host_lr": 0.1, "seed_lr": 0.1}
    return Task("digits", host, CONV_BLUEPRINTS, dataset, settings)


def synthetic() -> Task:
    """Noisy class prototypes of 1x8x8, for quick trials."""
    dataset = data.synthetic()
    host = cnn_host(dataset.input_shape, dataset.num_classes, num_blocks=3, base_channels=4, pool_blocks=2)
    return Task("synthetic", host, CONV_BLUEPRINTS, dataset, {"slots": (0, 1, 2), "steps_per_epoch": 8})


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "synthetic": synthetic}
"""All presets by name."""
