"""Spans: what a process did from when to when, and within what; across processes, one trace.

``NO_SPANS`` records nothing and imports nothing. What records uses OpenTelemetry's SDK (``esper.nissa.otel``). Spans
leave through a sink's thread and breaker, so that no collector that is away delays or ends anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from esper.utils.documents import json_ready

OTLP = "otlp:"
"""Before a URL."""

DETAILS = 20_000
"""Spans within steps that a process records; after them, only what is longer."""


class Spans:
    """Where spans are recorded; this one records nothing."""

    @contextmanager
    def span(self, name: str, parent: str = "", /, **attributes: Any) -> Iterator[None]:
        """A span that lasts as long as the block, within the one around it.

        Args:
          name: of it.
          parent: traceparent of the span that it belongs to instead, where it is well-formed.
          attributes: words, numbers and truth values.
        """
        yield

    @contextmanager
    def detail(self, name: str, /, **attributes: Any) -> Iterator[None]:
        """Like ``span``, for the first ``DETAILS``."""
        yield

    def lasted(self, name: str, start: int, end: int, /, **attributes: Any) -> None:
        """A span within the one around it that is over; from and to nanoseconds since 1970."""

    def traceparent(self) -> str:
        """The span around, for another process; empty where nothing is recorded."""
        return ""

    def close(self) -> None:
        """Let what is recorded leave, for a moment."""


NO_SPANS = Spans()


def plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes as OpenTelemetry takes them: NumPy's numbers as Python's, and words for what is neither."""
    table: dict[str, Any] = json_ready(attributes)
    kept = {name: value for name, value in table.items() if value is not None}
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in kept.items()}
