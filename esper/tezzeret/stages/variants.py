"""Stage 4: the ways in which a device can run a form, and the choice among them by what was measured."""

from collections.abc import Mapping
from typing import NamedTuple

import torch


class Variant(NamedTuple):
    """A way of running a blueprint.

    Attributes:
      mode: how it is compiled.
      backend: whose form it is.
      memory_format: of features.
      captured: whether its launches are one captured graph.
    """

    mode: str
    backend: str
    memory_format: str = "contiguous"
    captured: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.mode}, {self.memory_format}{', captured graph' if self.captured else ''}"


EAGERLY = Variant("operations one by one", "eager")

VARIANTS: dict[tuple[str, str], tuple[Variant, ...]] = {
    ("native", "cpu"): (Variant("native program", "native"), EAGERLY),
    ("inductor", "cpu"): (Variant("one library of compiled functions", "inductor"), EAGERLY),
    ("inductor", "cuda"): (Variant("compiled", "inductor"), EAGERLY),
}
"""By backend and type of the device; the backend's own first.

What is not there: the native program has one layout of features, its own, and one width of vectors in a process, that
of its library's build (part of every key); eager convolutions are of networks side by side, over five axes, which torch
has in no other memory format. A captured graph for every form is a CUDA device's, and is made by none so far.
"""


def variants(backend: str, device: torch.device, is_free: bool) -> tuple[Variant, ...]:
    """The ways there are.

    Args:
      backend: that compiled it.
      device: where it runs.
      is_free: whether another backend's form may be taken; False where one was asked for by name.
    """
    ways = VARIANTS.get((backend, device.type), (EAGERLY,))
    return tuple(way for way in ways if is_free or way.backend == backend)


def optimize(timings: Mapping[Variant, float]) -> Variant:
    """The fastest way; of equals the first.

    Args:
      timings: milliseconds by variant, at least one; each has passed validation.
    """
    return min(timings, key=timings.__getitem__)
