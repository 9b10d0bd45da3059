"""Stage 4: the ways in which a device can run a form, and the choice among them by what was measured."""

from collections.abc import Mapping
from typing import NamedTuple

import torch


class Variant(NamedTuple):
    """A way of running a form.

    Attributes:
      mode: how it is compiled.
      memory_format: of features.
      captured: whether its launches are one captured graph.
    """

    mode: str
    memory_format: str = "contiguous"
    captured: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.mode}, {self.memory_format}{', captured graph' if self.captured else ''}"


VARIANTS: dict[tuple[str, str], tuple[Variant, ...]] = {
    ("native", "cpu"): (Variant("native program"),),
    ("inductor", "cpu"): (Variant("one library of compiled functions"),),
    ("inductor", "cuda"): (Variant("compiled"), Variant("compiled", captured=True)),
}
"""By backend and type of the device; everything else runs operation by operation, which is one way."""


def variants(backend: str, device: torch.device) -> tuple[Variant, ...]:
    """The ways there are."""
    return VARIANTS.get((backend, device.type), (Variant("operations one by one"),))


def optimize(timings: Mapping[Variant, float]) -> Variant:
    """The fastest way; of equals the first.

    Args:
      timings: milliseconds by variant, at least one; each has passed validation.
    """
    return min(timings, key=timings.__getitem__)
