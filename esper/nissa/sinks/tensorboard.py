"""TensorBoard's events, under the names that a round's numbers have in ``metrics.jsonl``."""

from pathlib import Path
from typing import Any

from esper.nissa.event_record import Event
from esper.nissa.sinks.optional import optional_module
from esper.nissa.sinks.protocol import Row

FOLDER = "tensorboard"
"""In a run's directory."""


def require_tensorboard() -> Any:
    """The class that writes events.

    Raises:
      SinkError: tensorboard is not installed.
    """
    return optional_module("torch.utils.tensorboard", "--tensorboard true", "tensorboard", "tensorboard").SummaryWriter


class TensorBoardSink:
    """Events in a folder; what an earlier process wrote there of later rounds is purged."""

    def __init__(self, folder: Path, first: int) -> None:
        """Open it.

        Args:
          folder: for its files.
          first: round that comes next.

        Raises:
          SinkError: tensorboard is not installed.
        """
        self._writer = require_tensorboard()(str(folder), purge_step=first)

    def round(self, row: Row) -> None:
        """See ``Sink``."""
        for name, value in row.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, value, int(row["round"]))
        self._writer.flush()

    def event(self, event: Event) -> None:
        """A text beside the curves."""
        said = ", ".join(f"{name} {value}" for name, value in event.fields.items())
        self._writer.add_text(f"event/{event.kind}", said, event.round)

    def close(self) -> None:
        """See ``Sink``."""
        self._writer.close()
