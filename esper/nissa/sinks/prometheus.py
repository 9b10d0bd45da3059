"""Prometheus: an endpoint in this process from which a server scrapes where the metrics stand.

Needs ``prometheus-client``, whose text format and HTTP server are used; the numbers are values of
``esper.nissa.tallies``, which outlive the process where a file is given for them.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from esper.nissa.event_record import Event
from esper.nissa.metric_table import FOREIGN, TABLE, Metric, MetricKind
from esper.nissa.sinks.optional import optional_module
from esper.nissa.sinks.protocol import Opened, Row
from esper.nissa.tallies import SECONDS, Change, RunFacts, Tallies, after_round, changed, from_text, of_event, to_text
from esper.utils.documents import cause
from esper.utils.files import read_file, replace_file

STATE = "prometheus.json"
"""Where metrics of a run stand, in its directory."""

LARGEST = 1 << 24
"""Bytes of that file."""

UNSEEN = 1024
"""Changes by events that may wait for a scrape or a round."""

IDLE = 10.0
"""Seconds that a connection may say nothing."""

logger = logging.getLogger("esper")

Live = Callable[[], Iterable[Change]]


def require_prometheus() -> Any:
    """The module ``prometheus_client``.

    Raises:
      SinkError: it is not installed.
    """
    return optional_module("prometheus_client", "--metrics-port", "prometheus-client", "prometheus")


def tallies_so_far(path: Path | None, rows: Iterable[Row], facts: RunFacts) -> Tallies:
    """Where the metrics of a run stand that goes on: by its file, unless that is behind its rows or cannot be read."""
    folded = Tallies()
    for row in rows:
        folded = after_round(folded, row, facts)
    with contextlib.suppress(OSError, ValueError):
        kept = from_text(read_file(path, LARGEST).decode()) if path is not None else folded
        return kept if kept.round >= folded.round else folded
    return folded


def _tell_error(request: object, address: object) -> None:
    """A scraper that went away is no news; anything else is told in a line, and the next one is served."""
    del request, address
    error = sys.exc_info()[1]
    if error is not None and not isinstance(error, OSError):
        logger.warning("metrics: %s", cause(error))


class PrometheusSink:
    """The endpoint.

    Attributes:
      tallies: where the metrics stand, less events since they were last seen.
      port: that it listens on.
    """

    def __init__(
        self, address: tuple[str, int], tallies: Tallies, facts: RunFacts, state: Path | None, live: Live = tuple
    ) -> None:
        """Listen.

        Args:
          address: host and port; port 0 = any that is free.
          tallies: so far.
          facts: of the run.
          state: file in which the tallies are kept, if any.
          live: what is asked at every scrape.

        Raises:
          SinkError: the package is not installed.
          OSError: nobody may listen there.
        """
        client = require_prometheus()
        self.tallies, self._facts, self._state, self._live = tallies, facts, state, live
        self._unseen, self._lock = list[Change](), threading.Lock()
        registry = client.CollectorRegistry(auto_describe=False)
        registry.register(self)
        client.ProcessCollector(registry=registry)
        self._server, self._thread = client.start_http_server(address[1], address[0], registry)
        plain = self._server.RequestHandlerClass
        self._server.RequestHandlerClass = type("Handler", (plain,), {"timeout": IDLE})
        self._server.handle_error = _tell_error
        self.port = int(self._server.server_port)

    def round(self, row: Row) -> None:
        """See ``Sink``."""
        with self._lock:
            self._publish(after_round(self.tallies, row, self._facts, time.time()))

    def event(self, event: Event) -> None:
        """See ``Sink``. Kept no sooner than somebody sees it: a file on the disk costs as much as many events."""
        with self._lock:
            self._unseen += of_event(event)
            if len(self._unseen) >= UNSEEN:
                self._publish(self.tallies)

    def _publish(self, tallies: Tallies) -> None:
        """Keep tallies before anybody sees them, so that no counter is ever lower than it was seen; without a disk they
        are seen all the same.
        """
        tallies, self._unseen = changed(tallies, self._unseen), []
        if self._state is not None:
            with contextlib.suppress(OSError):
                replace_file(self._state, to_text(tallies).encode())
        self.tallies = tallies

    def close(self) -> None:
        """Keep what nobody saw, stop listening, and free the port."""
        with self._lock:
            self._publish(self.tallies)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(1.0)

    def describe(self) -> list[Any]:
        """Nothing in advance, as the client's collectors say."""
        return []

    def collect(self) -> Iterator[Any]:
        """Metrics as the client renders them, for one scrape."""
        with self._lock:
            if self._unseen:
                self._publish(self.tallies)
            standing = changed(self.tallies, self._live())
        for metric in TABLE:
            if metric.name not in FOREIGN:
                yield from _families(metric, standing)


def _families(metric: Metric, standing: Tallies) -> Iterator[Any]:
    """A metric with its series; nothing if it has none."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if metric.kind is MetricKind.HISTOGRAM:
        spread = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for (name, labels), (counts, total) in standing.spreads.items():
            if name == metric.name:
                bounds = [*map(str, SECONDS), "+Inf"]
                sums = [float(sum(counts[: place + 1])) for place in range(len(counts))]
                spread.add_metric(labels, list(zip(bounds, sums, strict=True)), total)
        found: Any = spread
    else:
        kind = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
        found = kind(metric.name, metric.help, labels=metric.labels)
        for (name, labels), value in standing.values.items():
            if name == metric.name:
                found.add_metric(labels, value)
    if found.samples:
        yield found


def open_prometheus(
    address: tuple[str, int], tallies: Tallies, facts: RunFacts, state: Path | None, live: Live = tuple
) -> Opened:
    """The endpoint, and a line with its address; see ``PrometheusSink``."""
    sink = PrometheusSink(address, tallies, facts, state, live)
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return Opened(sink, f"metrics: http://{host}:{sink.port}/metrics")
