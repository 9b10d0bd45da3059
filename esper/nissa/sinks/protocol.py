"""What a sink is: three methods, called by one thread, one after the other."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from esper.nissa.event_record import Event

Row = Mapping[str, float | str]
"""A round's numbers by name, as a line of ``metrics.jsonl`` has them."""


class Sink(Protocol):
    """Where rounds and events go. Whatever a method raises concerns this sink alone."""

    def round(self, row: Row) -> None:
        """Take a round; ``row["round"]`` counts from 1, and may come again after a run was gone on with."""

    def event(self, event: Event) -> None:
        """Take an event."""

    def close(self) -> None:
        """Finish; nothing comes after it."""


class Opened(NamedTuple):
    """A sink that is ready.

    Attributes:
      sink: it.
      line: what people are told of it, such as its address; empty = nothing.
    """

    sink: Sink
    line: str = ""
