"""Events as lines for people."""

import time
from typing import TextIO

from esper.nissa.event_record import Event
from esper.nissa.sinks.protocol import Row
from esper.utils.documents import one_line


class ConsoleSink:
    """A stream that has a line for every event; rounds are shown by the progress."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def round(self, row: Row) -> None:
        """Nothing."""

    def event(self, event: Event) -> None:
        """A line."""
        clock = time.strftime("%H:%M:%S", time.localtime(event.seconds))
        said = " ".join(f"{name}={_shown(value)}" for name, value in event.fields.items())
        self.out.write(one_line(f"{clock} round {event.round} {event.kind} {said}".rstrip()) + "\n")
        self.out.flush()

    def close(self) -> None:
        """Nothing: the stream is somebody else's."""


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
