"""OperationLog: what is told when something is done, as an event to the sinks and as a span to the trace."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from esper.nissa.event_record import event
from esper.nissa.sinks.fan_out import FanOut
from esper.nissa.spans import NO_SPANS, Spans
from esper.utils.documents import cause


class OperationLog:
    """Where it is told.

    Attributes:
      sinks: that have the events.
      spans: that the operations are.
    """

    def __init__(self, sinks: FanOut, spans: Spans) -> None:
        self.sinks, self.spans = sinks, spans

    @contextmanager
    def __call__(self, name: str, round: int = 0, parent: str = "", /, **fields: Any) -> Iterator[dict[str, Any]]:
        """An operation that the block does; where the block raises, it failed.

        Args:
          name: of ``esper.nissa.event_record.OPERATIONS``.
          round: rounds that are finished when it ends.
          parent: traceparent of the span that it belongs to, if not to the one around.
          fields: of the event and the span.

        Returns:
          further fields of the event, which the block may fill.
        """
        said, begun, fine = dict(fields), time.perf_counter(), False
        try:
            with self.spans.span(name, parent, **fields):
                yield said
            fine = True
        except BaseException as error:
            said["error"] = cause(error)
            raise
        finally:
            self.sinks.event(event(name, fine, round, took=time.perf_counter() - begun, **said))

    def close(self) -> None:
        """Let everything be told, for a moment."""
        self.sinks.close()
        self.spans.close()


NO_OPERATIONS = OperationLog(FanOut({}), NO_SPANS)
"""Tells nobody."""
