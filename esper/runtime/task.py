"""A task: a host, what can grow in it, and the data it learns."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from esper.kasmina.augment import Augment
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host import Host
from esper.kasmina.objectives import Objective, cross_entropy
from esper.leyline.actions import Blend
from esper.tolaria.data import Dataset


class Script(NamedTuple):
    """Grow one kind of seed.

    Attributes:
      kind: name of the blueprint.
      slots: how many of the slots that offer it may hold one, the first ones; 0 = all.
      start: epoch from which on seeds are germinated.
      blend: how they are blended in; None = by a sigmoid, or the first blend on offer.
    """

    kind: str
    slots: int = 0
    start: int = 0
    blend: Blend | None = None

    @property
    def name(self) -> str:
        """For tables, as in ``grow conv8x2`` and ``grow bottleneck in 1 from 12 by linear``."""
        within = f" in {self.slots}" if self.slots else ""
        since = f" from {self.start}" if self.start else ""
        return f"grow {self.kind}{within}{since}" + ("" if self.blend is None else f" by {self.blend.name.lower()}")


class Task(NamedTuple):
    """A host, what can grow in it, and the data it learns.

    Attributes:
      name: for people.
      host: the network.
      blueprints: kinds of seed; position = number.
      data: the dataset.
      settings: values of ``Config`` and ``HyperParams`` that differ from their defaults, by name.
      rewards: values of ``RewardParams`` that differ from their defaults, by name; such as the loss at which the task
        counts as solved (a loss at which nothing is known, ln C, follows from the classes).
      objective: what hosts and seeds learn; its score times 100 is what is called accuracy.
      script: the blueprint that the best script known grows wherever there is room; evaluations play it, too.
      scripts: where environments differ, those of which the best in hindsight is each one's ceiling; evaluations play
        them, too, and score policies by it.
      rival: the best static network known of about the size that growing ends at; evaluations train it, too.
      augment: an augmentation of training samples, a pure function of keys and a batch (``esper.kasmina.augment``).
    """

    name: str
    host: Host
    blueprints: tuple[Blueprint, ...]
    data: Dataset
    settings: dict[str, Any]
    rewards: Mapping[str, float] = MappingProxyType({})
    objective: Objective = cross_entropy()
    script: str = ""
    scripts: tuple[Script, ...] = ()
    rival: Host | None = None
    augment: Augment | None = None
