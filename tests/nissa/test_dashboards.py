"""Dashboard and rules: queries use exposed names alone, and Prometheus's own checker takes them."""

import io
import json
import re
import shutil
import subprocess

import pytest

from esper.nissa.dashboards.alerts import ALERTS, alert_rules
from esper.nissa.dashboards.panels import PANELS, grafana_dashboard
from esper.nissa.dashboards.queries import at, mean, rate
from esper.nissa.metric_table import METRICS_BY_NAME, TABLE, MetricKind
from esper.runtime.dashboards import DASHBOARD, RULES, SCRAPE, dashboards
from esper.utils.settings import SettingsError

EXPOSED = {metric.name + "_total" for metric in TABLE if metric.kind is MetricKind.COUNTER}
EXPOSED |= {metric.name for metric in TABLE if metric.kind is MetricKind.GAUGE} | {"up"}
EXPOSED |= {m.name + end for m in TABLE if m.kind is MetricKind.HISTOGRAM for end in ("_sum", "_count", "_bucket")}


def named(query):
    return set(re.findall(r"\b(?:esper|process)_\w+", query))


def queries_of(dashboard):
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_query_names_exposed_samples_and_every_metric_is_shown():
    shown = {name for query in queries_of(grafana_dashboard()) for name in named(query)}
    ruled = {name for alert in ALERTS for name in named(alert.query)}
    assert shown <= EXPOSED and ruled <= EXPOSED
    bare = {re.sub(r"_(total|sum|count|bucket)$", "", name) for name in shown}
    assert bare == set(METRICS_BY_NAME)
    for wrong in (lambda: at("esper_round_seconds"), lambda: rate("esper_return"), lambda: mean("esper_rounds")):
        with pytest.raises(ValueError, match="esper_"):
            wrong()


def test_grafana_needs_nothing_filled_in():
    text = json.dumps(grafana_dashboard())
    table = json.loads(text)
    assert "${DS_" not in text and "__inputs" not in text and table["id"] is None
    assert len({panel["id"] for panel in table["panels"]}) == len(table["panels"]) == len(PANELS)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in table["panels"]}
    assert len(places) == len(PANELS) and all(panel["description"] for panel in table["panels"])
    assert {variable["name"] for variable in table["templating"]["list"]} == {"datasource", "instance"}


def test_promtool_takes_what_is_exported(tmp_path):
    out = io.StringIO()
    dashboards(["export", str(tmp_path), "--targets", "127.0.0.1:9464,[::1]:9465"], out)
    assert out.getvalue().split() == [str(path) for path in map(tmp_path.joinpath, _names(tmp_path))]
    assert json.loads((tmp_path / DASHBOARD).read_text()) == grafana_dashboard()
    for wrong in ("x", "h:0", "h:65536"):
        with pytest.raises(SettingsError, match=rf"^--targets '{wrong}': expected HOST:PORT"):
            dashboards(["export", str(tmp_path), "--targets", wrong], out)
    with pytest.raises(SettingsError, match=r"^dashboards export '': expected a directory"):
        dashboards(["export", ""], out)
    if shutil.which("promtool") is None:
        pytest.skip("promtool: not installed (Debian package prometheus)")
    said = subprocess.run(["promtool", "check", "config", tmp_path / SCRAPE], capture_output=True, text=True)
    assert said.returncode == 0 and f"SUCCESS: {len(ALERTS)} rules found" in said.stdout, said.stderr
    assert len(alert_rules()["groups"][0]["rules"]) == len(ALERTS) and (tmp_path / RULES).exists()


def _names(folder):
    order = ["grafana/dashboards", "grafana/provisioning/dashboards", "grafana/provisioning/datasources", "prometheus"]
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: (order.index(str(path.parent)), path.name != "prometheus.yml"))
