"""A run ends in the same bits whatever becomes of those who watch it; counters go on; a trace has every part."""

import gzip
import io
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest
from runtime_documents import document, expect_same_end, record
from runtime_documents import settings as many_rounds
from runtime_forks import HORIZON, NAME, one_life, words

import esper.__main__
from esper.nissa.sinks import METRICS, read_rows
from esper.nissa.sinks.opening import WORDS, SinkWord
from esper.nissa.sinks.prometheus import PrometheusSink
from esper.nissa.sinks.protocol import Opened
from esper.runtime.requests import ask
from esper.runtime.train import train
from esper.tezzeret.native.library import library
from esper.urza.store import open_store
from esper.utils.failpoints import Fault

pytest.importorskip("prometheus_client", reason="prometheus-client")
pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk")
pytestmark = pytest.mark.usefixtures("tiny_task")


def settings(folder, **more):
    return many_rounds(folder, **({"rounds": 3, "horizon": HORIZON, "save_every": 0.05} | more))


def scraped(address):
    with urlopen(address, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def spans_in(path):
    """Spans of a trace's file by id, with the names of what they are within, the outermost first."""
    found = {}
    for line in Path(path).read_text().splitlines():
        span = json.loads(line)
        found[span["context"]["span_id"]] = span
    for span in found.values():
        names, above = [span["name"]], found.get(span["parent_id"])
        while above is not None:
            names, above = [above["name"], *names], found.get(above["parent_id"])
        span["path"] = "/".join(names)
    return sorted(found.values(), key=lambda span: (span["start_time"], -len(span["end_time"])))


class Watching(io.StringIO):
    """Output beside which somebody scrapes after every round."""

    def __init__(self, then=lambda address: None):
        super().__init__()
        self.seen, self.then, self.address = [], then, ""

    def write(self, text):
        if (found := re.search(r"metrics: (http\S+)", text)) is not None:
            self.address = found[1]
        if re.search(r"round +\d", text):
            self.seen.append(scraped(self.address))
            self.then(self)
        return super().write(text)


@pytest.fixture(scope="module")
def plain(tiny_task, tmp_path_factory):
    """A run that nobody watches."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(settings(folder), io.StringIO())
    return folder


@pytest.fixture(scope="module")
def watched(tiny_task, tmp_path_factory):
    """The same run, scraped, traced and logged."""
    place = tmp_path_factory.mktemp("watched")
    out = Watching()
    more = {"metrics_port": 0, "trace": str(place / "trace.jsonl"), "sinks": "json,console"}
    train(settings(place / "run", **more), out)
    return place, out


def test_the_bits_are_those_of_a_run_that_nobody_watches(plain, watched):
    expect_same_end(watched[0] / "run", plain)


def test_what_is_scraped_is_what_the_rows_say(watched):
    place, out = watched
    rows = read_rows(place / "run" / METRICS)
    with pytest.raises(OSError):
        scraped(out.address)  # the port is free again
    last = json.loads((place / "run" / "prometheus.json").read_text())
    values = {(name, *labels): value for name, labels, value in last["values"]}
    assert values["esper_rounds",] == len(rows) == 3 and values["esper_decisions",] == 3 * 2 * HORIZON
    assert values["esper_return", NAME] == rows[-1]["return"] and values["esper_measure", "lr"] == rows[-1]["lr"]
    assert values["esper_actions", "wait"] == pytest.approx(2 * HORIZON * sum(row["share_wait"] for row in rows))
    spreads = {(name, *labels): total for name, labels, _, total in last["spreads"]}
    assert spreads["esper_round_seconds",] == pytest.approx(sum(row["seconds"] for row in rows))
    assert spreads["esper_phase_seconds", "learn"] == pytest.approx(sum(row["learn_seconds"] for row in rows))
    assert values["esper_events", "round.done"] == 3 and values["esper_events", "run.done"] == 1
    assert sum("esper_return" in name for scrape in out.seen for name in scrape) >= 2


def test_the_log_and_the_console_have_rounds_and_events(watched):
    place, out = watched
    lines = [json.loads(line) for line in (place / "run" / "log.jsonl").read_text().splitlines()]
    rounds = [line["fields"] for line in lines if line["kind"] == "round"]
    assert rounds == [json.loads(line) for line in (place / "run" / METRICS).read_text().splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds.count("round.done") == 3 and kinds[-1] == "run.done" and "checkpoint.done" in kinds
    took = [line["fields"]["took"] for line in lines if line["kind"] == "round.done"]
    assert all(took[place] >= rounds[place]["seconds"] for place in range(3))
    assert out.getvalue().count(" round.done ") == 3


def test_a_trace_has_a_runs_parts_one_within_the_other(watched):
    spans = spans_in(watched[0] / "trace.jsonl")
    assert len({span["context"]["trace_id"] for span in spans}) == 1
    counts = {path: sum(span["path"] == path for span in spans) for path in {span["path"] for span in spans}}
    assert counts["run"] == 1 and counts["run/round"] == counts["run/round/learn"] == 3
    steps = {f"run/round/collect/{part}" for part in ("plan", "epoch", "evaluate")}
    assert all(counts[path] == 3 * HORIZON for path in steps)
    further = {path for path in counts if not path.endswith("/checkpoint")}
    assert further == steps | {"run", "run/round", "run/round/collect", "run/round/learn"}
    order = [span["name"] for span in spans if span["name"] in ("plan", "epoch", "evaluate")]
    assert order == ["plan", "epoch", "evaluate"] * (3 * HORIZON)
    ends = {span["context"]["span_id"]: (span["start_time"], span["end_time"]) for span in spans}
    for span in spans:
        if span["parent_id"] is not None:
            start, end = ends[span["parent_id"]]
            assert start <= span["start_time"] <= span["end_time"] <= end


class Wicked:
    """A sink that hangs after it raised."""

    def __init__(self):
        self.held = threading.Event()

    def round(self, row):
        raise MemoryError("as if")

    def event(self, event):
        self.held.wait(60)

    def close(self):
        self.held.wait(60)


def test_the_bits_are_the_same_where_every_watcher_fails(plain, full_disk, tmp_path, monkeypatch, caplog):
    """The endpoint is killed while it is scraped, the log's and the trace's disks are full, a sink raises and hangs."""
    servers, opening, wicked = [], PrometheusSink.__init__, Wicked()

    def opened(self, *arguments):
        opening(self, *arguments)
        servers.append(self)

    def kill(out):
        if len(out.seen) == 2:
            servers[0]._server.shutdown()
            servers[0]._server.socket.close()
            with pytest.raises(OSError):
                scraped(out.address)
            monkeypatch.setattr(sys.modules[__name__], "scraped", lambda address: {})

    monkeypatch.setattr(PrometheusSink, "__init__", opened)
    monkeypatch.setitem(WORDS, "wicked", SinkWord("", "", lambda argument, place: Opened(wicked)))
    monkeypatch.setattr("esper.nissa.sinks.fan_out.FINISHING", 0.5)
    out = Watching(kill)
    more = {"metrics_port": 0, "trace": str(full_disk / "trace"), "sinks": f"wicked,json:{full_disk / 'log'}"}
    train(settings(tmp_path / "run", **more), out)
    wicked.held.set()
    expect_same_end(tmp_path / "run", plain)
    warned = sorted(line.getMessage() for line in caplog.records if line.getMessage().startswith("sink "))
    assert len(warned) == 3 and "wicked" in warned[2] and all(line.endswith("; the run goes on") for line in warned)
    assert warned[0].startswith("sink json:") and "No space left on device" in warned[0]
    assert warned[1].startswith("sink trace: ") and "No space left on device" in warned[1]


def test_a_port_that_is_taken_is_one_warning(plain, tmp_path, caplog):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as taken:
        train(settings(tmp_path / "run", metrics_port=taken.server_port), io.StringIO())
    expect_same_end(tmp_path / "run", plain)
    (line,) = [line.getMessage() for line in caplog.records if line.getMessage().startswith("sink ")]
    assert line.startswith("sink prometheus: OSError: [Errno 98]")


def test_counters_never_fall_over_a_kill_and_what_goes_on(tmp_path):
    """A run is killed between a round and its checkpoint, twice; the third process ends it."""
    folder, seen = tmp_path / "run", []
    for life, fault in enumerate((Fault("step", "kill", 6), Fault("step", "kill", 5), None)):
        command = [*words(folder, 4, save_every="1000000" if life < 2 else "0.000001"), "--metrics-port", "0"]
        one_life(command, tmp_path / "log", fault)
        seen.append(json.loads((folder / "prometheus.json").read_text()))
    counters = [
        {(n, *labels): v for n, labels, v in one["values"] if n in ("esper_rounds", "esper_decisions", "esper_actions")}
        for one in seen
    ]
    for before, after in itertools.pairwise(counters):
        assert all(after[name] >= value for name, value in before.items())
    assert counters[0]["esper_rounds",] == 2 and counters[2]["esper_rounds",] == 4
    assert counters[2]["esper_decisions",] == 4 * 2 * HORIZON
    assert [sum(one["spreads"][0][2]) for one in seen] == [one["esper_rounds",] for one in counters]


class Growing(io.StringIO):
    """Output beside which somebody asks for a blueprint, and a worker of its own process compiles it."""

    def __init__(self, folder, store, trace):
        super().__init__()
        self.folder, self.store, self.trace, self.said = folder, store, trace, ""

    def write(self, text):
        if "  1/" in text:
            ask(self.folder, document(), "mine.json")
        if "  2/" in text:
            flags = ["--store", str(self.store), "--drain", "true", "--trace", str(self.trace)]
            command = [sys.executable, "-m", "esper", "worker", *flags]
            self.said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
        return super().write(text)


@pytest.mark.skipif(library() is None, reason="no C++ compiler")
def test_one_growth_with_a_compiled_blueprint_is_one_trace_across_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPER_STORE_FOLDER", str(tmp_path / "store"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    out = Growing(tmp_path / "run", tmp_path / "store", tmp_path / "trace.jsonl")
    more = {"spare_blueprints": 1, "compile_requests": True, "trace": str(tmp_path / "trace.jsonl")}
    train(settings(tmp_path / "run", **more), out)
    assert record(tmp_path / "run")[0]["round"] == 2 and "published 1" in out.said
    spans = [span for span in spans_in(tmp_path / "trace.jsonl") if span["name"].startswith("blueprint.")]
    assert len({span["context"]["trace_id"] for span in spans}) == 1
    above, worker = "run/blueprint.order", "run/blueprint.order/blueprint.compile"
    stages = ("parse", "graph", "lower", "device_code", "validate", "profile", "package", "store")
    expected = [above, worker, *(f"{worker}/blueprint.{stage}" for stage in stages)]
    assert [span["path"] for span in spans] == [*expected, f"{above}/blueprint.load", f"{above}/blueprint.take"]
    processes = [span["resource"]["attributes"]["process.pid"] for span in spans]
    assert processes[0] == processes[-1] == processes[-2] == os.getpid()
    assert len(set(processes[1:-2])) == 1 and processes[1] != os.getpid()
    services = [span["resource"]["attributes"]["service.name"] for span in spans]
    assert services == ["esper-train"] + ["esper-worker"] * 9 + ["esper-train"] * 2
    with open_store() as store:
        (entry,) = store.list(kind="blueprint")
    assert spans[-2]["attributes"]["artefact"] == entry.id


def test_spans_go_to_a_collector_and_one_that_is_away_ends_nothing(tmp_path, monkeypatch, caplog):
    """Decoded by OpenTelemetry's own messages; the parent is what the environment names."""
    message = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from esper.nissa.tracing import open_spans

    heard = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            data = self.rfile.read(int(self.headers["content-length"]))
            data = gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data
            heard.append(message.ExportTraceServiceRequest.FromString(data))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *words):
            pass

    monkeypatch.setenv("TRACEPARENT", f"00-{'ab' * 16}-{'cd' * 8}-01")
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        spans = open_spans(f"otlp:http://127.0.0.1:{server.server_port}/v1/traces", "a test")
        with spans.span("run", count=3), spans.span("round"):
            pass
        spans.close()
        server.shutdown()
    found = [span for one in heard for part in one.resource_spans for scope in part.scope_spans for span in scope.spans]
    assert [span.name for span in found] == ["round", "run"] and not caplog.records
    assert {span.trace_id.hex() for span in found} == {"ab" * 16}
    assert found[1].parent_span_id.hex() == "cd" * 8 and found[0].parent_span_id == found[1].span_id
    assert found[1].attributes[0].key == "count" and found[1].attributes[0].value.int_value == 3
    away, start = open_spans(f"otlp:http://127.0.0.1:{server.server_port}/v1/traces", "a test"), time.monotonic()
    with away.span("run"):
        pass
    away.close()
    assert time.monotonic() - start < 5 and len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("sink trace: ")


@pytest.mark.parametrize(
    ("flag", "value", "module", "extra"),
    [
        ("--metrics-port", "9464", "prometheus_client", "prometheus"),
        ("--trace", "trace.jsonl", "opentelemetry.sdk.trace", "tracing"),
    ],
)
def test_what_is_not_installed_is_said_before_anything(flag, value, module, extra, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert esper.__main__.main(["train", flag, value, "--out", str(tmp_path / "x")]) == 2
    assert f"pip install 'esper-growth[{extra}]'" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_place_that_is_none_is_refused(tmp_path, capsys):
    assert esper.__main__.main(["train", "--trace", "otlp:x", "--out", str(tmp_path / "x")]) == 2
    assert "--trace otlp:x: expected a file, or otlp:http" in capsys.readouterr().err
