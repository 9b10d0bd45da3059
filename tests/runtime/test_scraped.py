"""A real Prometheus scrapes a run and a worker: both are up, and every rule and every panel's query has data."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from runtime_documents import document
from runtime_forks import ended, start, words

from esper.nissa.dashboards.alerts import ALERTS, OFTEN
from esper.nissa.dashboards.panels import grafana_dashboard
from esper.nissa.dashboards.queries import filled
from esper.runtime.dashboards import RULES, SCRAPE, exported
from esper.tezzeret.stages.request import CompileJob
from esper.tezzeret.stages.worker import enqueue
from esper.urza.store import StoreSettings, open_store

pytest.importorskip("prometheus_client", reason="prometheus-client")
pytestmark = pytest.mark.usefixtures("tiny_task")

LONGEST = 90.0
"""Seconds until everything has data."""


def waited(holds, what):
    end = time.monotonic() + LONGEST
    while not (found := holds()):
        assert time.monotonic() < end, what()
        time.sleep(0.2)
    return found


def address(log):
    found = re.search(r"metrics: http://([^/]+)/metrics", log.read_text()) if log.exists() else None
    return found and found[1]


class Server:
    """A Prometheus of its own, that scrapes four times a second."""

    def __init__(self, folder, targets):
        for name, text in exported(targets).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text.replace('"5s"', '"250ms"').replace('"15s"', '"500ms"'))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.place = f"127.0.0.1:{free.getsockname()[1]}"
        flags = [f"--config.file={folder / SCRAPE}", f"--storage.tsdb.path={folder / 'data'}"]
        self.log = (folder / "prometheus.log").open("w")
        command = [shutil.which("prometheus"), *flags, f"--web.listen-address={self.place}"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def asked(self, what, **values):
        with urlopen(f"http://{self.place}/api/v1/{what}?{urlencode(values)}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def values(self, query):
        return [float(series["value"][1]) for series in self.asked("query", query=query)["result"]]

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def queries():
    """Every panel's queries, and what every rule compares, as Prometheus is asked."""
    found = {f"rule {alert.name}": filled(alert.query, "", OFTEN) for alert in ALERTS}
    for panel in grafana_dashboard()["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            found[f"panel {panel['title']} {target['refId']}"] = query
    return found


def test_a_real_prometheus_has_data_for_every_rule_and_panel(tmp_path, capsys):
    if shutil.which("prometheus") is None:
        demanded = os.environ.get("ESPER_SERVICES") == "1"
        (pytest.fail if demanded else pytest.skip)("prometheus: not installed (Debian package prometheus)")
    measured = ["--telemetry", "production", "--metrics-port", "0"]
    run = start([*words(tmp_path / "run", 10**6), *measured], tmp_path / "run.log")
    flags = ["--store", str(tmp_path / "store"), "--metrics-port", "0", "--poll", "0.2"]
    worker = start(["worker", *flags], tmp_path / "worker.log")
    server = None
    try:
        logs = [tmp_path / "run.log", tmp_path / "worker.log"]
        waited(lambda: all(map(address, logs)), lambda: [log.read_text() for log in logs])
        targets = [address(log) for log in logs]
        server = Server(tmp_path, targets)
        _order_when_scraped(server, targets, tmp_path / "store")
        _expect_all(server, targets, capsys)
    finally:
        for child in (run, worker):
            os.kill(child, signal.SIGTERM)
        if server is not None:
            server.close()
        assert [ended(run), ended(worker)] == [143, 143]
    assert Path(tmp_path / RULES).exists()


def _order_when_scraped(server, targets, folder):
    """Have two documents compiled, the second when a scrape has told of the first: a rate needs both."""

    def compiled():
        try:
            return sum(server.values('esper_compile_requests_total{outcome="published"}'))
        except OSError:
            return 0

    def up():
        try:
            return len(server.values("up == 1")) == len(targets)
        except OSError:
            return False

    waited(up, lambda: "the targets")
    for number, name in enumerate(("one", "two")):
        waited(lambda number=number: compiled() >= number, lambda: "a compilation")
        with open_store(StoreSettings(folder=str(folder))) as store:
            enqueue(store, CompileJob(document(name), site="conv:2x2x2"))


def rules_of(server):
    return [rule for group in server.asked("rules")["groups"] for rule in group["rules"]]


def _expect_all(server, targets, capsys):
    def lacking():
        try:
            found = {name: server.values(query) for name, query in asked.items()}
        except OSError:
            return ["the server"]
        return [name for name, values in found.items() if not any(map(math.isfinite, values))]

    asked = queries()
    waited(lambda: not lacking(), lacking)
    active = server.asked("targets")["activeTargets"]
    assert {target["labels"]["instance"] for target in active} == set(targets)
    assert all(target["health"] == "up" for target in active)
    waited(
        lambda: rules_of(server) and all(rule["health"] == "ok" for rule in rules_of(server)), lambda: rules_of(server)
    )
    assert [rule["name"] for rule in rules_of(server)] == [alert.name for alert in ALERTS]
    firing = [alert["labels"]["alertname"] for alert in server.asked("alerts")["alerts"] if alert["state"] == "firing"]
    with capsys.disabled():
        shown = f"{len(asked) - len(ALERTS)} queries of {len(grafana_dashboard()['panels'])} panels"
        print(f"\n{len(active)} targets up; {shown} and {len(ALERTS)} rules have data; firing: {firing}")  # noqa: T201
    first = server.values("esper_rounds_total")
    waited(lambda: server.values("esper_rounds_total")[0] > first[0], lambda: "rounds")
