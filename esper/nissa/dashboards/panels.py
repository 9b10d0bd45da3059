"""The dashboard, and how Grafana has it."""

from typing import Any, NamedTuple

from esper.nissa.dashboards.queries import at, filled, mean, quantile, rate
from esper.nissa.metric_table import METRICS_BY_NAME


class Panel(NamedTuple):
    """A panel of the dashboard.

    Attributes:
      title: of it.
      unit: as Grafana calls it.
      queries: (query, legend); the first one's metric explains the panel.
      metric: whose help is the panel's description.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    metric: str


PANELS = (
    Panel("Rounds finished", "short", ((at("esper_rounds"), "{{instance}}"),), "esper_rounds"),
    Panel(
        "Share of the rounds wanted",
        "percentunit",
        ((f"{at('esper_rounds')} / {at('esper_rounds_wanted')}", "{{instance}}"),),
        "esper_rounds_wanted",
    ),
    Panel("Decisions per second", "short", ((rate("esper_decisions"), "{{instance}}"),), "esper_decisions"),
    Panel(
        "Since the last round",
        "s",
        ((f"time() - {at('esper_last_round_timestamp_seconds')}", "{{instance}}"),),
        "esper_last_round_timestamp_seconds",
    ),
    Panel("Return", "short", ((at("esper_return"), "{{instance}} {{task}}"),), "esper_return"),
    Panel(
        "Validation accuracy",
        "percent",
        ((at("esper_validation_accuracy_percent"), "{{instance}} {{task}}"),),
        "esper_validation_accuracy_percent",
    ),
    Panel(
        "Validation loss",
        "short",
        ((at("esper_validation_loss_nats"), "{{instance}} {{task}}"),),
        "esper_validation_loss_nats",
    ),
    Panel(
        "Parameters in seeds",
        "short",
        ((at("esper_seed_parameters"), "{{instance}} {{task}}"),),
        "esper_seed_parameters",
    ),
    Panel(
        "Action mix",
        "percentunit",
        (
            (
                f"{rate('esper_actions')} / ignoring(action) group_left {rate('esper_decisions')}",
                "{{instance}} {{action}}",
            ),
        ),
        "esper_actions",
    ),
    Panel(
        "Refused and rolled back, per decision",
        "percentunit",
        (
            (f"{rate('esper_refused_actions')} / {rate('esper_decisions')}", "{{instance}} refused"),
            (f"{rate('esper_rollbacks')} / {rate('esper_decisions')}", "{{instance}} rolled back"),
        ),
        "esper_rollbacks",
    ),
    Panel(
        "Policy: entropy and divergence",
        "short",
        ((at("esper_policy_entropy_nats"), "{{instance}} entropy"), (at("esper_policy_kl_nats"), "{{instance}} kl")),
        "esper_policy_entropy_nats",
    ),
    Panel(
        "Not measured, and minibatches skipped",
        "percentunit",
        (
            (f"1 - {at('esper_measured_ratio')}", "{{instance}} {{task}} not measured"),
            (at("esper_skipped_minibatches_ratio"), "{{instance}} skipped"),
        ),
        "esper_skipped_minibatches_ratio",
    ),
    Panel(
        "Time by phase",
        "s",
        ((mean("esper_phase_seconds"), "{{instance}} {{phase}}"),),
        "esper_phase_seconds",
    ),
    Panel(
        "A round takes",
        "s",
        (
            (quantile(0.5, "esper_round_seconds"), "{{instance}} median"),
            (quantile(0.95, "esper_round_seconds"), "{{instance}} 95 %"),
        ),
        "esper_round_seconds",
    ),
    Panel("Further numbers of a round", "short", ((at("esper_measure"), "{{instance}} {{name}}"),), "esper_measure"),
    Panel("Events per second", "short", ((rate("esper_events"), "{{instance}} {{kind}}"),), "esper_events"),
    Panel(
        "Kernels that raised",
        "short",
        ((at("esper_kernel_failures"), "{{instance}}"),),
        "esper_kernel_failures",
    ),
    Panel("Compiled", "short", ((at("esper_compilations"), "{{instance}} {{kind}}"),), "esper_compilations"),
    Panel(
        "Time compiled",
        "s",
        ((at("esper_compilation_seconds"), "{{instance}} {{kind}}"),),
        "esper_compilation_seconds",
    ),
    Panel(
        "Look-ups of what was compiled",
        "short",
        ((at("esper_cache_lookups"), "{{instance}} {{cache}} {{outcome}}"),),
        "esper_cache_lookups",
    ),
    Panel(
        "Sinks: up, and missed",
        "short",
        ((at("esper_sink_up"), "{{instance}} {{sink}} up"), (at("esper_sink_lost"), "{{instance}} {{sink}} missed")),
        "esper_sink_up",
    ),
    Panel(
        "Memory",
        "bytes",
        ((at("process_resident_memory_bytes"), "{{instance}}"),),
        "process_resident_memory_bytes",
    ),
    Panel("Processors", "short", ((rate("process_cpu_seconds"), "{{instance}}"),), "process_cpu_seconds"),
    Panel(
        "Compilations by outcome",
        "short",
        ((at("esper_compile_requests"), "{{instance}} {{outcome}}"),),
        "esper_compile_requests",
    ),
    Panel("A compilation takes", "s", ((mean("esper_compile_seconds"), "{{instance}}"),), "esper_compile_seconds"),
    Panel("A stage takes", "s", ((mean("esper_stage_seconds"), "{{instance}} {{stage}}"),), "esper_stage_seconds"),
    Panel(
        "Stages that failed",
        "short",
        ((at("esper_stage_failures"), "{{instance}} {{stage}}"),),
        "esper_stage_failures",
    ),
    Panel("Queue", "short", ((at("esper_queue_requests"), "{{instance}} {{status}}"),), "esper_queue_requests"),
    Panel(
        "Store",
        "short",
        ((rate("esper_store_operations"), "{{instance}} {{tier}} {{operation}}"),),
        "esper_store_operations",
    ),
    Panel("Runs", "short", ((at("esper_run_info"), "{{run}} {{task}} {{backend}} {{device}}"),), "esper_run_info"),
)
"""The dashboard, panel by panel."""


def grafana_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana provisions it: no inputs, no id, the data source a variable with a default."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = [_grafana_panel(number, panel, source) for number, panel in enumerate(PANELS)]
    instances = f"label_values({METRICS_BY_NAME['esper_events'].sample}, instance)"
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}, "hide": 0, "refresh": 1},
        {
            "name": "instance",
            "type": "query",
            "datasource": source,
            "query": {"query": instances, "refId": "instances"},
            "definition": instances,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
            "refresh": 2,
        },
    ]
    return {
        "id": None,
        "uid": "esper",
        "title": "Esper",
        "tags": ["esper"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def _grafana_panel(number: int, panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + place),
            "expr": filled(query, 'instance=~"$instance"', "$__rate_interval"),
            "legendFormat": legend,
            "datasource": source,
        }
        for place, (query, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": METRICS_BY_NAME[panel.metric].help,
        "datasource": source,
        "gridPos": {"h": 8, "w": 6, "x": 6 * (number % 4), "y": 8 * (number // 4)},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": targets,
    }
