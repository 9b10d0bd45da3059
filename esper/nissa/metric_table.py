"""Every metric that Esper exports: the one table from which the endpoint, the dashboard and the alert rules are made.

Names follow Prometheus: a unit at the end; counters are exposed with ``_total``, histograms with ``_bucket``, ``_sum``
and ``_count``. Labels have few values, all known when a run begins; no environment, seed, slot or artefact is
one, since a series that was there once is never forgotten.
"""

from enum import Enum
from typing import NamedTuple


class MetricKind(Enum):
    """Of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Upper bounds of buckets of durations."""

MOST = 64
"""Values of a metric's labels, at most; what comes after them is left out."""

MOST_MEASURES = 512
"""The same of ``esper_measure``."""


class Metric(NamedTuple):
    """A metric.

    Attributes:
      name: as the table and the exposition's HELP have it, without a sample's suffix.
      kind: of it.
      unit: for a dashboard's axis, as Grafana calls it.
      help: what it says.
      labels: names of its labels.
      of: "run", "worker" or "process" (of either; exposed by the client's own collector).
    """

    name: str
    kind: MetricKind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    of: str = "run"

    @property
    def sample(self) -> str:
        """The exposed name of a counter's or a gauge's samples; of a histogram, without its suffix."""
        return f"{self.name}_total" if self.kind is MetricKind.COUNTER else self.name

    @property
    def most(self) -> int:
        """Series that it may have."""
        return MOST_MEASURES if self.name == "esper_measure" else MOST


COUNTER, GAUGE, HISTOGRAM = MetricKind

TABLE = (
    Metric("esper_rounds", COUNTER, "short", "Rounds that were finished; one that was played again counts once"),
    Metric("esper_rounds_wanted", GAUGE, "short", "Rounds after which the run ends"),
    Metric("esper_decisions", COUNTER, "short", "Decisions of all environments in these rounds"),
    Metric("esper_actions", COUNTER, "short", "Decisions by what they asked for", ("action",)),
    Metric("esper_refused_actions", COUNTER, "short", "Decisions that were refused"),
    Metric("esper_rollbacks", COUNTER, "short", "Environments put back to their last good state"),
    Metric("esper_kernel_failures", COUNTER, "short", "Kernels that raised, and were replaced by the definition"),
    Metric("esper_compilations", COUNTER, "short", "What this process compiled, by what it was", ("kind",)),
    Metric("esper_compilation_seconds", COUNTER, "s", "How long that took, all together", ("kind",)),
    Metric("esper_cache_lookups", COUNTER, "short", "Look-ups of what was compiled before", ("cache", "outcome")),
    Metric("esper_round_seconds", HISTOGRAM, "s", "How long a round took"),
    Metric("esper_phase_seconds", HISTOGRAM, "s", "How long a part of a round took", ("phase",)),
    Metric("esper_last_round_timestamp_seconds", GAUGE, "dateTimeAsIso", "When the last round was finished"),
    Metric("esper_return", GAUGE, "short", "Mean return of the last round's episodes", ("task",)),
    Metric("esper_validation_accuracy_percent", GAUGE, "percent", "Mean validation accuracy at their end", ("task",)),
    Metric("esper_validation_loss_nats", GAUGE, "short", "Mean validation loss at their end", ("task",)),
    Metric("esper_measured_ratio", GAUGE, "percentunit", "Share of environments that could be validated", ("task",)),
    Metric("esper_seed_parameters", GAUGE, "short", "Mean number of parameters in seeds at their end", ("task",)),
    Metric("esper_policy_entropy_nats", GAUGE, "short", "Entropy of the policy"),
    Metric("esper_policy_kl_nats", GAUGE, "short", "Divergence of the policy from the one that played the round"),
    Metric("esper_skipped_minibatches_ratio", GAUGE, "percentunit", "Share of minibatches without a finite gradient"),
    Metric("esper_measure", GAUGE, "short", "Any further number of the last round, by its name there", ("name",)),
    Metric("esper_run_info", GAUGE, "short", "1; what the run is", ("run", "task", "backend", "device", "version")),
    Metric("esper_events", COUNTER, "short", "Events by kind", ("kind",), "process"),
    Metric("esper_sink_up", GAUGE, "short", "Whether a sink takes what comes: 1 or 0", ("sink",), "process"),
    Metric("esper_sink_lost", COUNTER, "short", "Rounds and events that a sink missed", ("sink",), "process"),
    Metric("esper_compile_requests", COUNTER, "short", "Requests that a worker had", ("outcome",), "worker"),
    Metric("esper_compile_seconds", HISTOGRAM, "s", "How long a request took, all stages", (), "worker"),
    Metric("esper_stage_seconds", HISTOGRAM, "s", "How long one stage of a request took", ("stage",), "worker"),
    Metric("esper_stage_failures", COUNTER, "short", "Stages that did not pass", ("stage",), "worker"),
    Metric("esper_queue_requests", GAUGE, "short", "Requests in the store's queue, by status", ("status",), "worker"),
    Metric("esper_store_operations", COUNTER, "short", "What tiers of the store did", ("tier", "operation"), "worker"),
    Metric("process_resident_memory_bytes", GAUGE, "bytes", "Resident memory size in bytes.", (), "process"),
    Metric("process_cpu_seconds", COUNTER, "s", "Total user and system CPU time spent in seconds.", (), "process"),
)
"""Every metric, once."""

METRICS_BY_NAME = {metric.name: metric for metric in TABLE}

FOREIGN = ("process_resident_memory_bytes", "process_cpu_seconds")
"""Those that the Prometheus client's own collector exposes, on Linux."""
