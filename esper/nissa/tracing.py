"""Where spans are recorded, as a setting asks for it."""

import os
from urllib.parse import urlsplit

from esper.nissa.sinks.record import SinkError
from esper.nissa.spans import NO_SPANS, OTLP, Spans

VARIABLE = "TRACEPARENT"
"""Environment variable with the span that a process begins in, as W3C's trace context writes it."""


def require_tracing(target: str) -> None:
    """Check that a trace can be written.

    Raises:
      SinkError: a package is not installed, or the target is none.
    """
    if target.startswith(OTLP) and not _is_address(target.removeprefix(OTLP)):
        raise SinkError(f"--trace {target}: expected a file, or {OTLP}http://HOST:4318/v1/traces")
    try:
        import opentelemetry.sdk.trace

        if target.startswith(OTLP):
            import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError:
        raise SinkError("--trace: needs opentelemetry-sdk; pip install 'esper-growth[tracing]'") from None


def open_spans(target: str, service: str) -> Spans:
    """Where a process records its spans.

    Args:
      target: a file that gets a line of JSON for each, which several processes may share; ``otlp:URL``; empty = none.
      service: name of the process's kind.

    Raises:
      SinkError: see ``require_tracing``.
    """
    if not target:
        return NO_SPANS
    require_tracing(target)
    from esper.nissa.otel import RecordedSpans

    return RecordedSpans(target, service, os.environ.get(VARIABLE, ""))


def _is_address(url: str) -> bool:
    """Whether it names a host, and a port that there may be."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
