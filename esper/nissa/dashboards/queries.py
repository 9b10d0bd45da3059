"""Queries of metrics, by the names in the table of metrics.

A query has ``SELECTED`` where series are chosen and ``WINDOW`` where a rate is taken. The dashboard puts Grafana's
variables there, a rule nothing and its own window.
"""

from esper.nissa.metric_table import METRICS_BY_NAME, MetricKind

SELECTED, WINDOW = "<selected>", "<window>"

JOB = "esper"
"""Name of the scrape job."""


def at(name: str, chosen: str = "") -> str:
    """The samples of a counter or a gauge; ``chosen``: further matchers, such as ``status="proposed"``."""
    metric = METRICS_BY_NAME[name]
    if metric.kind is MetricKind.HISTOGRAM:
        raise ValueError(f"{name}: a histogram has no samples of this name")
    return f"{metric.sample}{_braces(chosen)}"


def rate(name: str, chosen: str = "") -> str:
    """How much a counter grows in a second."""
    _expect(name, MetricKind.COUNTER)
    return f"rate({at(name, chosen)}[{WINDOW}])"


def mean(name: str) -> str:
    """The mean of a histogram's values."""
    _expect(name, MetricKind.HISTOGRAM)
    return f"rate({name}_sum{_braces('')}[{WINDOW}]) / rate({name}_count{_braces('')}[{WINDOW}])"


def quantile(share: float, name: str) -> str:
    """What a share of a histogram's values is not above, over all its labels."""
    _expect(name, MetricKind.HISTOGRAM)
    return f"histogram_quantile({share}, sum by (instance, le) (rate({name}_bucket{_braces('')}[{WINDOW}])))"


def _expect(name: str, kind: MetricKind) -> None:
    if METRICS_BY_NAME[name].kind is not kind:
        raise ValueError(f"{name}: a {METRICS_BY_NAME[name].kind.value}; expected a {kind.value}")


def _braces(chosen: str) -> str:
    return "{" + ", ".join(filter(None, (SELECTED, chosen))) + "}"


def filled(query: str, selected: str, window: str) -> str:
    """A query in Prometheus's own words."""
    return query.replace(SELECTED, selected).replace(WINDOW, window).replace("{, ", "{").replace("{}", "")
