"""Sinks: what fails or hangs is left out with one warning, and what is kept is bounded."""

import io
import json
import threading
import time

import pytest

from esper.nissa.event_record import KINDS, OCCURRENCES, OPERATIONS, event
from esper.nissa.sinks import SinkError
from esper.nissa.sinks.console import ConsoleSink
from esper.nissa.sinks.fan_out import FanOut, GuardedSink
from esper.nissa.sinks.json_lines import JsonLinesSink
from esper.nissa.sinks.opening import SinkPlace, openers_of, parse_sinks
from esper.nissa.sinks.protocol import Opened
from esper.nissa.tracing import require_tracing
from esper.utils.resilience.breaker import Limits


class Kept:
    """A sink that keeps what it is given, after ``failures`` times that it raised."""

    def __init__(self, failures=0, held=None):
        self.taken, self.closed, self.failures, self.held = [], False, failures, held

    def round(self, row):
        if self.held is not None:
            self.held.wait(30)
        if self.failures:
            self.failures -= 1
            raise ValueError("no more")
        self.taken.append(row["round"])

    def event(self, event):
        self.taken.append(event.kind)

    def close(self):
        self.closed = True


def opened(sink):
    return lambda: Opened(sink, "a line")


def until(holds):
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records]


def test_every_sink_gets_everything_in_order():
    sinks = [Kept(), Kept()]
    fan = FanOut({"a": opened(sinks[0]), "b": opened(sinks[1])})
    row = {"round": 1}
    fan.round(row)
    row["round"] = 9  # whoever owns the row may go on with it
    fan.event(event("round", True, 1, took=0.5))
    fan.round({"round": 2})
    fan.close()
    for sink in sinks:
        assert sink.taken == [1, "round.done", 2] and sink.closed
    assert fan.lines == ("a line", "a line") and fan.health() == {"a": (True, 0), "b": (True, 0)}


def test_without_sinks_no_thread_runs():
    before = threading.active_count()
    fan = FanOut({})
    fan.round({"round": 1})
    assert threading.active_count() == before
    fan.close()


def test_a_sink_that_raises_is_left_alone_then_tried_again_with_one_warning(caplog):
    bad, good = Kept(failures=2), Kept()
    fan = FanOut({"bad": opened(bad), "good": opened(good)}, Limits(1, 0.2, 1, 10.0))
    fan.round({"round": 1})
    until(lambda: fan.health()["bad"][1] == 1)
    fan.round({"round": 2})  # not tried
    until(lambda: fan.health()["bad"][1] == 2)
    assert bad.failures == 1 and fan.health()["bad"] == (False, 2)
    time.sleep(0.25)
    fan.round({"round": 3})  # tried, in vain
    until(lambda: bad.failures == 0)
    time.sleep(0.25)
    fan.round({"round": 4})
    until(lambda: bad.taken == [4])
    until(lambda: fan.health()["bad"] == (True, 3))
    fan.close()
    assert good.taken == [1, 2, 3, 4] and bad.closed
    assert warnings_of(caplog) == [
        "sink bad: ValueError: no more; left alone for a while, then tried again; the run goes on"
    ]


def test_a_sink_that_hangs_makes_nobody_wait_and_is_left_out(caplog, monkeypatch):
    monkeypatch.setattr("esper.nissa.sinks.fan_out.FINISHING", 0.2)
    held = threading.Event()
    stuck, good = Kept(held=held), Kept()
    fan = FanOut({"stuck": opened(stuck), "good": opened(good)}, Limits(1, 30.0, 1, 1.0))
    start = time.monotonic()
    for number in range(1, 4):
        fan.round({"round": number})
    assert time.monotonic() - start < 1
    time.sleep(1.1)
    fan.round({"round": 4})
    fan.close()
    assert time.monotonic() - start < 5 and good.taken == [1, 2, 3, 4]
    assert fan.health()["stuck"] == (False, 3)  # two that waited, and the one after them
    (line,) = warnings_of(caplog)
    assert line.startswith("sink stuck: hangs for more than 1 s; left out from here on")
    held.set()
    until(lambda: stuck.closed)


def test_a_sink_that_opens_slowly_gets_what_came_meanwhile(caplog, monkeypatch):
    """Opening is no call that hangs; only one that takes longer than ``OPENING`` is left out."""
    held, sink = threading.Event(), Kept()

    def opener():
        assert held.wait(10)
        return Opened(sink, "")

    slow = GuardedSink("slow", opener, Limits(1, 30.0, 1, 0.05))
    for number in range(1, 4):
        slow.put(lambda one, number=number: one.round({"round": number}))
        time.sleep(0.05)
    held.set()
    slow.finish()
    slow.join(time.monotonic() + 10)
    assert sink.taken == [1, 2, 3] and sink.closed and not warnings_of(caplog) and not slow.lost
    monkeypatch.setattr("esper.nissa.sinks.fan_out.OPENING", 0.05)
    held.clear()
    late = GuardedSink("late", opener, Limits(1, 30.0, 1, 10.0))
    time.sleep(0.1)
    late.put(lambda one: one.round({"round": 1}))
    assert late.gone and warnings_of(caplog)[0].startswith("sink late: hangs for more than 0.05 s; left out")
    held.set()


def test_what_waits_is_bounded(caplog):
    held = threading.Event()
    sink = GuardedSink("slow", opened(Kept(held=held)), room=3)
    sink.ready.wait(5)
    for number in range(10):
        sink.put(lambda one, number=number: one.round({"round": number}))
    assert sink.gone and sink.lost >= 6
    assert len(warnings_of(caplog)) == 1 and "does not keep up: 3 rounds" in warnings_of(caplog)[0]
    held.set()


def test_a_sink_that_cannot_be_opened_is_one_warning(caplog):
    def fails():
        raise OSError(98, "Address already in use")

    fan = FanOut({"a": fails})
    fan.round({"round": 1})
    fan.close()
    assert fan.health() == {"a": (False, 1)}
    assert warnings_of(caplog) == [
        "sink a: OSError: [Errno 98] Address already in use; left out from here on; the run goes on"
    ]


def test_a_log_is_rotated_and_is_strict_json(tmp_path):
    """No file is larger than it may be, no more are kept than may be, and the lines that are there are the last."""
    path = tmp_path / "log.jsonl"
    log = JsonLinesSink(path, largest=500, files=2)
    for number in range(40):
        log.round({"round": number, "kl": float("nan"), "return": float("inf")})
    log.close()
    files = [path.with_name("log.jsonl.2"), path.with_name("log.jsonl.1"), path]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(0 < file.stat().st_size <= 500 for file in files)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    rows = [
        json.loads(line, parse_constant=refuse)["fields"] for file in files for line in file.read_text().splitlines()
    ]
    numbers = [row["round"] for row in rows]
    assert numbers == list(range(numbers[0], 40)) and len(numbers) > 8
    assert rows[0]["kl"] is None and rows[0]["return"] == "inf"


def test_a_log_takes_so_many_lines_a_second_and_says_what_it_left_out(tmp_path):
    now = [0.0]
    log = JsonLinesSink(tmp_path / "log", rate=5.0, clock=lambda: now[0])
    for number in range(20):
        log.event(event("round", True, number))
    now[0] = 0.41  # two more tokens
    for number in (20, 21, 22):
        log.event(event("round", True, number))
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    told = [line["fields"]["lines"] if line["kind"] == "left out" else line["round"] for line in lines]
    assert told == [0, 1, 2, 3, 4, 15, 20, 21, 1]


def test_the_console_has_a_line_for_every_event():
    out = io.StringIO()
    sink = ConsoleSink(out)
    sink.round({"round": 1})
    sink.event(event("round", False, 3, took=1.23456, error="no\nlines"))
    assert out.getvalue()[8:] == " round 3 round.failed took=1.235 error=no\\nlines\n"


def test_events_come_from_one_table():
    assert len(set(KINDS)) == len(KINDS) == 2 * len(OPERATIONS) + len(OCCURRENCES)
    assert event("run", True).kind == "run.done" and event("compile", False).kind == "compile.failed"
    with pytest.raises(KeyError, match="walk"):
        event("walk", True)


@pytest.mark.parametrize("text", ["x", "console:x", "json,wand", "mlflow2:x"])
def test_an_unknown_sink_is_named_with_those_that_there_are(text):
    word = text.rpartition(",")[2]
    with pytest.raises(SinkError, match=rf"^--sinks '{word}': expected console, json\[:FILE\], wandb\[:PROJECT\]"):
        parse_sinks(text)


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_with_how_to_get_it(kind, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, {"wandb": "wandb", "mlflow": "mlflow.tracking"}[kind], None)
    with pytest.raises(SinkError, match=rf"^--sinks {kind}: needs .*; pip install 'esper-growth\[{kind}\]'$"):
        parse_sinks(kind)


@pytest.mark.parametrize("name", ["metrics.jsonl", "./watch.jsonl", "checkpoints/x"])
def test_no_log_is_written_among_the_files_of_a_run(name, tmp_path):
    place = SinkPlace(tmp_path, {}, io.StringIO())
    with pytest.raises(SinkError, match=r"the run's own files are there; expected json, for .*log\.jsonl$"):
        openers_of(f"json:{tmp_path}/{name}", place)
    assert list(openers_of(f"json,json:{tmp_path.parent}/metrics.jsonl", place)) == [
        "json",
        f"json:{tmp_path.parent}/metrics.jsonl",
    ]


def test_a_worker_keeps_its_log_where_it_works(tmp_path):
    place = SinkPlace(tmp_path, {}, io.StringIO(), is_run=False)
    assert list(openers_of(f"json:{tmp_path}/own.jsonl", place)) == [f"json:{tmp_path}/own.jsonl"]


def test_no_two_logs_are_one_file(tmp_path):
    place = SinkPlace(tmp_path / "run", {}, io.StringIO())
    for first, second in [("json:a", "json:./a"), ("json", f"json:{place.folder}/log.jsonl")]:
        with pytest.raises(SinkError, match=r"the same file as '.*'; expected one file of each$"):
            openers_of(f"{first},{second}", place)


@pytest.mark.parametrize("target", ["otlp:http://", "otlp:http://h:99999/v1/traces", "otlp:http://h:0", "otlp:ftp://h"])
def test_a_collector_without_host_or_port_is_refused(target):
    with pytest.raises(SinkError, match=r"^--trace otlp:.*: expected a file, or otlp:http://HOST:4318/v1/traces$"):
        require_tracing(target)
