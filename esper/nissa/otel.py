"""Spans by OpenTelemetry's SDK. Imported where tracing is asked for, and nowhere else."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from esper.nissa.event_record import Event
from esper.nissa.sinks.fan_out import FINISHING, PATIENCE, GuardedSink
from esper.nissa.sinks.protocol import Opened, Row
from esper.nissa.spans import DETAILS, OTLP, Spans, plain
from esper.utils.paths import user_path
from esper.version import __version__

BATCH, WAIT = 256, 1.0
"""Spans that leave together, and seconds that one waits for others while there are others."""

PROPAGATOR = TraceContextTextMapPropagator()


class OwnIds(IdGenerator):
    """Ids from the operating system: the SDK's own draw from Python's global generator, which is a program's."""

    def generate_span_id(self) -> int:
        """64 bits, not all 0."""
        return int.from_bytes(os.urandom(8), "big") or 1

    def generate_trace_id(self) -> int:
        """128 bits, not all 0."""
        return int.from_bytes(os.urandom(16), "big") or 1


class LinesExporter(SpanExporter):
    """A file with a line of JSON per span, as the SDK renders it; each is written at once, for others append, too."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def export(self, spans: Any) -> SpanExportResult:
        """Write them.

        Raises:
          OSError: not all of it could be.
        """
        for span in spans:
            line = (json.dumps(json.loads(span.to_json()), allow_nan=False) + "\n").encode()
            if os.write(self._file, line) < len(line):
                raise OSError("a span was written in part")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        os.close(self._file)


class SpanSink:
    """What takes spans out of the process; a sink of a thread of its own."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter, self._waiting, self._at = exporter, list[ReadableSpan](), time.monotonic()

    def take(self, span: ReadableSpan) -> None:
        """Export a span, with others.

        Raises:
          OSError: they could not be; they are lost.
        """
        self._waiting.append(span)
        if len(self._waiting) >= BATCH or time.monotonic() - self._at > WAIT:
            self._export()

    def _export(self) -> None:
        spans, self._waiting, self._at = self._waiting, [], time.monotonic()
        if spans and self._exporter.export(spans) is not SpanExportResult.SUCCESS:
            raise OSError(f"{len(spans)} spans were not taken")

    def round(self, row: Row) -> None:
        """Nothing: a round is a span."""

    def event(self, event: Event) -> None:
        """Nothing: an operation is a span."""

    def close(self) -> None:
        """Export the rest."""
        try:
            self._export()
        finally:
            self._exporter.shutdown()


class HandedOver(SpanProcessor):
    """Hands ended spans to their sink; at once."""

    def __init__(self, sink: GuardedSink) -> None:
        self._sink = sink

    def on_end(self, span: ReadableSpan) -> None:
        """Hand it over."""
        self._sink.put(lambda sink: cast(SpanSink, sink).take(span))


class RecordedSpans(Spans):
    """Spans that are recorded and leave."""

    def __init__(self, target: str, service: str, parent: str) -> None:
        """Nothing leaves before there is a span.

        Args:
          target: a file, or ``otlp:URL``.
          service: name of the process's kind.
          parent: traceparent of the span that this process begins in; empty = a trace of its own.
        """
        self._sink = GuardedSink("trace", lambda: Opened(SpanSink(_exporter(target))))
        about: dict[str, Any] = {"service.name": service, "service.version": __version__, "process.pid": os.getpid()}
        self._provider = TracerProvider(ALWAYS_ON, Resource(about), shutdown_on_exit=False, id_generator=OwnIds())
        self._provider.add_span_processor(HandedOver(self._sink))
        self._tracer, self._parent, self._details = self._provider.get_tracer("esper"), parent, 0

    @contextmanager
    def span(self, name: str, parent: str = "", /, **attributes: Any) -> Iterator[None]:
        """See ``Spans``."""
        around = trace.get_current_span().get_span_context().is_valid
        parent = parent or ("" if around else self._parent)
        context = PROPAGATOR.extract({"traceparent": parent}) if parent else None
        with self._tracer.start_as_current_span(name, context, attributes=plain(attributes)):
            yield

    @contextmanager
    def detail(self, name: str, /, **attributes: Any) -> Iterator[None]:
        """See ``Spans``."""
        self._details += 1
        if self._details > DETAILS:
            yield
            return
        with self.span(name, **attributes):
            yield

    def lasted(self, name: str, start: int, end: int, /, **attributes: Any) -> None:
        """See ``Spans``."""
        self._tracer.start_span(name, start_time=start, attributes=plain(attributes)).end(end)

    def traceparent(self) -> str:
        """See ``Spans``."""
        carrier = dict[str, str]()
        PROPAGATOR.inject(carrier)
        return carrier.get("traceparent", "")

    def close(self) -> None:
        """See ``Spans``."""
        self._sink.finish()
        self._sink.join(time.monotonic() + FINISHING)


def _exporter(target: str) -> SpanExporter:
    if not target.startswith(OTLP):
        return LinesExporter(user_path(target))
    from opentelemetry.exporter.otlp.proto.http import trace_exporter

    logging.getLogger(trace_exporter.__name__).disabled = True  # the sink's one warning says what failed
    return trace_exporter.OTLPSpanExporter(target.removeprefix(OTLP), timeout=PATIENCE)
