"""All who watch a run are lost at once, in the middle of a round: it ends in the bits of a run that nobody watched.

The run is the command in a process of its own; what is lost is real: a page in another process that is killed, the
run's own page and metrics server whose sockets are closed, a scraper that dies with half a question, and the log's
disk, which is full.
"""

import json
import logging
import os
import re
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from runtime_forks import HORIZON, ended, one_life, result, start, words

from esper.nissa.sinks.prometheus import PrometheusSink
from esper.runtime import watch

pytest.importorskip("prometheus_client", reason="prometheus-client")
pytestmark = [
    pytest.mark.usefixtures("tiny_task"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="copies of this process"),
]

ROUNDS, HELD = 4, 2
"""Rounds of a run, and those after which it is held until all are lost."""


def waited(found, seconds=60.0):
    """What a function gives, once it gives something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


class Holding:
    """Holds a run before a step until a file says go, and then closes what it serves."""

    def __init__(self, place):
        self.place, self.sockets = place, []

    def listen(self):
        """In the run's process: know what it serves."""
        sys.stdout.reconfigure(line_buffering=True)  # what it says is read while it goes on
        logging.getLogger("esper").addHandler(logging.StreamHandler(sys.stdout))
        endpoint, page, sockets = PrometheusSink.__init__, watch.LivePage, self.sockets

        def opened(sink, *arguments):
            endpoint(sink, *arguments)
            sockets.append(sink._server.socket)

        def shown(*arguments):
            made = page(*arguments)
            sockets.append(made.server.socket)
            return made

        PrometheusSink.__init__, watch.LivePage = opened, shown

    def met(self, point, arrival):
        if point == "step" and arrival == HELD * HORIZON + 2:  # between two decisions of a round
            (self.place / "held").touch()
            waited((self.place / "go").exists)
            for each in self.sockets:
                each.close()
            (self.place / "closed").write_text(str(len(self.sockets)))


def half_a_question(port):
    """A scraper that dies: the connection is reset in the middle of a request."""
    link = socket.create_connection(("127.0.0.1", port), timeout=10)
    link.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.")
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def url_in(log, pattern):
    return waited(lambda: re.search(pattern, log.read_text(errors="replace")) if log.exists() else None)[1]


def asked(url):
    with urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def test_a_run_ends_in_the_same_bits_when_all_who_watch_it_are_lost(tmp_path, full_disk):
    alone, run, log = tmp_path / "alone", tmp_path / "run", tmp_path / "log"
    assert one_life(words(alone, ROUNDS), tmp_path / "log0") == 0
    holding = Holding(tmp_path)
    more = ["--metrics-port", "0", "--watch", "--watch-port", "0", "--sinks", f"json:{full_disk / 'log.jsonl'}"]
    child = start([*words(run, ROUNDS), *more], log, holding.listen, holding)
    waited((tmp_path / "held").exists)

    metrics, own = url_in(log, r"metrics: (http\S+)"), url_in(log, r"(http\S+) shows this run")
    assert f"esper_rounds_total {HELD:.1f}" in asked(metrics) and "<html" in asked(own)
    page = start(["watch", str(run), "--port", "0"], tmp_path / "log1")
    other = url_in(tmp_path / "log1", r"(http\S+) shows")
    assert "<html" in asked(other)
    os.kill(page, signal.SIGKILL)
    assert ended(page) == -signal.SIGKILL
    half_a_question(int(re.search(r":(\d+)", metrics.removeprefix("http:"))[1]))
    (tmp_path / "go").touch()
    assert waited((tmp_path / "closed").exists) and ended(child) == 0, log.read_text()

    assert (tmp_path / "closed").read_text() == "2"
    for url in (metrics, own, other):
        with pytest.raises(OSError):
            asked(url)
    assert result(run) == result(alone)
    said = log.read_text()
    assert "Traceback" not in said and "sink json:" in said and "No space left on device" in said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    assert not Path(full_disk / "log.jsonl").exists() or (full_disk / "log.jsonl").stat().st_size < 1 << 16
