"""Alert rules, and how Prometheus has them."""

from typing import Any, NamedTuple

from esper.nissa.dashboards.queries import JOB, SELECTED, WINDOW, at, filled, mean, rate

OFTEN = "15m"
"""Window of a rule's rates."""

FAILED, FAILED_KINDS = 'outcome="failed"', 'kind=~".+[.]failed"'
"""What chooses failures among requests and among events."""


class Alert(NamedTuple):
    """An alert rule: it fires where ``query`` compares so with a threshold for long enough.

    Attributes:
      name: of it.
      query: without the comparison, so that it has data at all times.
      compares: ``>`` or ``<``, and the threshold.
      lasting: for how long.
      severity: "warning" or "critical".
      summary: what is wrong, in a line with Prometheus's templates.
      remedy: what to do.
    """

    name: str
    query: str
    compares: str
    lasting: str
    severity: str
    summary: str
    remedy: str


_PER_DECISION = f"{rate('esper_rollbacks')} / {rate('esper_decisions')}"
_ROUNDS_AGO = (
    f"(time() - {at('esper_last_round_timestamp_seconds')}) / "
    f"(esper_round_seconds_sum{{{SELECTED}}} / esper_round_seconds_count{{{SELECTED}}})"
)
_FAILED_SHARE = (
    f"sum by (job, instance) ({rate('esper_compile_requests', FAILED)}) / "
    f"sum by (job, instance) ({rate('esper_compile_requests')})"
)
_FAILURES = f"sum by (job, instance) (increase({at('esper_events', FAILED_KINDS)}[{WINDOW}]))"
_GROWTH = f"3600 * deriv({at('process_resident_memory_bytes')}[{WINDOW}]) / {at('process_resident_memory_bytes')}"

ALERTS = (
    Alert(
        "EsperDown",
        f'up{{job="{JOB}"}}',
        "< 1",
        "1m",
        "critical",
        "{{ $labels.instance }} does not answer",
        "Look whether the process runs; esper train --resume auto goes on from its last checkpoint.",
    ),
    Alert(
        "EsperNoRound",
        _ROUNDS_AGO,
        "> 20",
        "5m",
        "critical",
        "{{ $labels.instance }}: no round for {{ $value | humanize }} times as long as one takes",
        "Look at the machine's load, and at the run's last lines.",
    ),
    Alert(
        "EsperNotMeasured",
        at("esper_measured_ratio"),
        "< 0.9",
        "5m",
        "warning",
        "{{ $labels.instance }}: {{ $value | humanizePercentage }} of {{ $labels.task }} can be validated",
        "Networks diverge: a smaller --engine host_lr or seed_lr.",
    ),
    Alert(
        "EsperRollbacks",
        _PER_DECISION,
        "> 0.1",
        "5m",
        "warning",
        "{{ $labels.instance }}: {{ $value | humanizePercentage }} of the decisions end in a rollback",
        "Networks diverge: a smaller --engine host_lr or seed_lr.",
    ),
    Alert(
        "EsperSkippedMinibatches",
        at("esper_skipped_minibatches_ratio"),
        "> 0",
        "5m",
        "warning",
        "{{ $labels.instance }}: {{ $value | humanizePercentage }} of the minibatches have no finite gradient",
        "The policy diverges: a smaller --lr, or rewards that are finite.",
    ),
    Alert(
        "EsperKernelFailures",
        f"increase({at('esper_kernel_failures')}[{WINDOW}])",
        "> 0",
        "0m",
        "warning",
        "{{ $labels.instance }}: {{ $value | humanize }} kernels raised",
        "The run goes on by the definition, slower; its log names the kernel.",
    ),
    Alert(
        "EsperOperationsFail",
        _FAILURES,
        "> 0",
        "0m",
        "warning",
        "{{ $labels.instance }}: {{ $value | humanize }} operations failed",
        "esper_events_total by kind says which; the log has their errors.",
    ),
    Alert(
        "EsperSinkDown",
        at("esper_sink_up"),
        "< 1",
        "5m",
        "warning",
        "{{ $labels.instance }}: sink {{ $labels.sink }} takes nothing",
        "The run's one warning says why: a full disk, or a service that is away.",
    ),
    Alert(
        "EsperMemoryGrows",
        _GROWTH,
        "> 0.5",
        "30m",
        "warning",
        "{{ $labels.instance }}: memory grows by {{ $value | humanizePercentage }} an hour",
        "Fewer environments, or a machine with more memory.",
    ),
    Alert(
        "EsperCompilationsFail",
        _FAILED_SHARE,
        "> 0.05",
        "10m",
        "warning",
        "{{ $labels.instance }}: {{ $value | humanizePercentage }} of the compilations fail",
        "esper_stage_failures_total by stage says where; esper blueprint compile FILE says why.",
    ),
    Alert(
        "EsperCompilationsSlow",
        mean("esper_compile_seconds"),
        "> 5",
        "10m",
        "warning",
        "{{ $labels.instance }}: a compilation takes {{ $value | humanizeDuration }}",
        "esper_stage_seconds by stage says where the time goes.",
    ),
    Alert(
        "EsperQueueWaits",
        at("esper_queue_requests", 'status="proposed"'),
        "> 0",
        "10m",
        "warning",
        "{{ $value | humanize }} blueprints wait for a worker",
        "Start another esper worker on the same store.",
    ),
)
"""All alert rules. Their numbers are those of Esper's anomalies where there are such."""


def alert_rules() -> dict[str, Any]:
    """The rules as Prometheus reads them."""
    rules = [
        {
            "alert": alert.name,
            "expr": f"{filled(alert.query, '', OFTEN)} {alert.compares}",
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "remedy": alert.remedy},
        }
        for alert in ALERTS
    ]
    return {"groups": [{"name": JOB, "rules": rules}]}
