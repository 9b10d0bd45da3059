"""Slots: places of a host where a seed can grow, and the features' way past them."""

from typing import NamedTuple

from torch import Tensor

from esper.kasmina.layout import Layout
from esper.kasmina.site import Site


class Slot(NamedTuple):
    """A place where a seed can grow.

    Attributes:
      source, target: points of the host, by number: 0 is the input, i is behind block i - 1, the last is the logits.
      reads, acts: the features at these points.
      layouts: per blueprint, its row (None where it does not fit).
      buffers: per blueprint, the row of its buffers (None where it does not fit).
      gate: the row of the learned gate (empty if no gated blend is on offer).
      decays: per blueprint, bool [W]; which numbers of its row a decoupled decay shrinks.
      start, width: columns of the seed arena: the widest blueprint, then the gate.
      buffer_start, buffer_width: columns of the seeds' buffers.
    """

    source: int
    target: int
    reads: Site
    acts: Site
    layouts: tuple[Layout | None, ...]
    buffers: tuple[Layout | None, ...]
    gate: Layout
    decays: tuple[Tensor, ...]
    start: int
    width: int
    buffer_start: int
    buffer_width: int

    @property
    def is_bypass(self) -> bool:
        """Whether a seed's output is added at another point than it reads from."""
        return self.source != self.target

    @property
    def columns(self) -> slice:
        """All its columns of the seed arena."""
        return slice(self.start, self.start + self.width)

    @property
    def buffer_columns(self) -> slice:
        """All its columns of the seeds' buffers."""
        return slice(self.buffer_start, self.buffer_start + self.buffer_width)

    @property
    def gate_columns(self) -> slice:
        """Columns of the seed arena that its gate uses: the last ones."""
        return slice(self.start + self.width - self.gate.size, self.start + self.width)

    def row(self, blueprint: int) -> Layout:
        """The row of a blueprint that fits."""
        layout = self.layouts[blueprint]
        assert layout is not None, "the codec offers only blueprints that fit"
        return layout

    def buffer_row(self, blueprint: int) -> Layout:
        """The row of buffers of a blueprint that fits."""
        layout = self.buffers[blueprint]
        assert layout is not None, "the codec offers only blueprints that fit"
        return layout

    def blueprint_columns(self, blueprint: int) -> slice:
        """Columns of the seed arena that a blueprint uses here."""
        return slice(self.start, self.start + self.row(blueprint).size)

    @property
    def offers(self) -> tuple[int, ...]:
        """Blueprints that fit."""
        return tuple(k for k, layout in enumerate(self.layouts) if layout is not None)


class Place(NamedTuple):
    """One step of the features' way: a block, or a slot."""

    is_slot: bool
    number: int
