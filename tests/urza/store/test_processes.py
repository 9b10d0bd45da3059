"""Several processes: what one writes others see, what one invalidates others forget, what all need is made once."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from esper.urza.store import Artefact, Failure

GOOD = {"kind": "program", "name": "conv", "version": "1", "validated": True}

OTHER = """
import json, sys, time
from esper.urza.store import Artefact, StoreSettings, open_store

store = open_store(StoreSettings(**json.loads(sys.argv[1])))

def say(value):
    sys.stdout.write(json.dumps(value) + "\\n")
    sys.stdout.flush()

say("ready")
for line in sys.stdin:
    word, _, rest = line.strip().partition(" ")
    if word == "put":
        say(store.put(rest.encode(), {"kind": "program", "name": "conv", "version": "1", "validated": True}))
    if word == "get":
        found = store.get(rest)
        say(found.data.decode() if isinstance(found, Artefact) else found.reason)
    if word == "held":
        say(store.ready.peek(rest) is not None)
    if word == "invalidate":
        say(store.invalidate(version=rest))
    if word == "once":
        made = []
        def make():
            time.sleep(0.02)
            store.put(rest.encode(), {"kind": "made", "name": rest, "validated": True})
            made.append(rest)
            return rest
        for _ in range(2):
            store.flights.once(rest, lambda: [each.id for each in store.list(kind="made", name=rest)] or None, make)
        say(made)
"""


class Process:
    def __init__(self, settings):
        surroundings = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", OTHER, json.dumps(vars(settings))]
        self.process = subprocess.Popen(
            words, env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def ask(self, line):
        self.say(line)
        return self.hear()

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self.process.stdout.close()


@pytest.mark.parametrize("kind", ["directory", "all"])
def test_a_write_is_seen_and_an_invalidation_reaches_the_memory_of_others_within_a_second(opened, settings_of, kind):
    settings = settings_of(kind)
    other = Process(settings)
    store = opened(settings)
    assert other.hear() == "ready"
    id = store.put(b"abc", GOOD)
    assert other.ask(f"get {id}") == "abc" and other.ask(f"held {id}")
    theirs = other.ask("put theirs")
    assert store.get(theirs) == Artefact(theirs, b"theirs", GOOD)
    assert store.invalidate(version="1") and isinstance(store.get(id), Failure)
    if kind == "all":  # by Redis: their memory has it no more although nobody asks for it there
        end = time.monotonic() + 1.0
        while other.ask(f"held {id}"):
            assert time.monotonic() < end
    else:
        time.sleep(0.6)
    assert other.ask(f"get {id}") == "unknown"
    ready = store.ready.get(f"{store.put(b'abd', GOOD)}/callable", lambda: abs)
    other.ask("invalidate 1")
    time.sleep(0.6)
    assert ready is abs and store.ready.get(f"{id}/callable", lambda: 5) == 5 and store.list() == ()
    assert store.ready.usage()[0] == 1
    other.end()


def test_after_redis_was_away_memory_is_empty_and_invalidations_arrive_again(opened, settings_of, redis_server, soon):
    settings = settings_of("redis")
    here, there = opened(settings), opened(settings)
    id = here.put(b"abc", GOOD)
    soon(lambda: there.metrics()["redis"].get("subscriptions") == 1)
    there.get(id)
    there.ready.put("callable", 1)
    redis_server.stop()
    try:
        soon(lambda: there.ready.peek("callable") is None)
        assert there.get(id).data == b"abc" and there.metrics()["redis"]["cuts"] >= 1
        there.ready.put("callable", 1)
    finally:
        redis_server.start()
    soon(lambda: there.metrics()["redis"].get("subscriptions") == 2)
    assert there.ready.peek("callable") is None
    time.sleep(2.1)  # until the breaker lets a call through
    there.get(id)
    began = time.monotonic()
    here.delete(id)
    soon(lambda: there.ready.peek(id) is None, 1.0)
    assert time.monotonic() - began < 1.0 and there.metrics()["redis"]["heard"] == 1


@pytest.mark.parametrize("processes", [2, pytest.param(8, marks=pytest.mark.large)])
def test_processes_make_each_key_once(opened, settings_of, processes):
    settings = settings_of("directory")
    store = opened(settings)
    assert store.list() == ()
    others = [Process(settings) for _ in range(processes)]
    assert [other.hear() for other in others] == ["ready"] * processes
    keys = [f"key{number}" for number in range(10)]
    for number, other in enumerate(others):
        for step in range(len(keys)):
            other.say(f"once {keys[(step * 3 + number) % len(keys)]}")
    made = [key for other in others for _ in keys for key in other.hear()]
    assert sorted(made) == keys and len(store.list(kind="made")) == len(keys)
    for other in others:
        other.end()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["directory", "sqlite", "postgres", "redis"])
def test_a_forked_child_has_connections_of_its_own(opened, kind):
    store = opened(kind)
    ids = [store.put(bytes([number]), GOOD) for number in range(3)]
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 1
        try:
            for _ in range(20):
                store.put(b"child", GOOD)
                store.ready.drop()
                assert all(store.get(id).data == bytes([number]) for number, id in enumerate(ids))
            status = 0
        finally:
            os._exit(status)
    for _ in range(20):
        store.ready.drop()
        assert all(store.get(id).data == bytes([number]) for number, id in enumerate(ids))
    assert os.waitpid(child, 0)[1] == 0
    assert len(store.list()) == 4 and not store.metrics()["database"].get("failures")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_goes_on_without_its_parents_bucket(opened):
    store = opened("all")
    id = store.put(b"abc", GOOD)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 1
        try:
            store.ready.drop()
            assert store.get(id).data == b"abc" and store.put(b"child", GOOD) and store.postponed.waiting() == 1
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    store.postponed.flush()
    assert store.postponed.waiting() == 0 and len(store.list()) == 2


@pytest.mark.parametrize("kind", ["directory", "sqlite"])
def test_writers_that_read_first_are_never_told_that_the_database_is_locked(opened, settings_of, kind):
    """A transaction that began as a reader could not become a writer once another one had committed."""
    settings = settings_of(kind)
    first, second = opened(settings), opened(settings)
    for number in range(60):
        (first, second)[number % 2].put(b"same", GOOD | {"number": number})
        (second, first)[number % 2].put(str(number).encode(), GOOD)
    assert not first.metrics()["database"].get("failures") and first.metrics()["outbox"] == {"waiting": 0}
    assert len(second.list()) == 61


@pytest.mark.parametrize("kind", ["directory", "sqlite"])
def test_sqlite_keeps_its_log_small_syncs_fully_and_needs_no_shared_memory_on_a_network(
    opened, settings_of, kind, monkeypatch
):
    settings = settings_of(kind)
    store = opened(settings)
    store.put(b"abc", GOOD)
    for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("journal_size_limit", 1 << 24)):
        with store.entries.connections.reading() as execute:
            assert execute(f"PRAGMA {pragma}") == [(value,)]
    monkeypatch.setattr("esper.urza.store.connections.network_of", lambda folder: "nfs4")
    far = opened(settings_of(kind))
    far.put(b"abc", GOOD)
    with far.entries.connections.reading() as execute:
        assert execute("PRAGMA journal_mode") == [("delete",)]


def test_a_file_that_is_no_database_degrades_and_is_told(opened, settings_of):
    settings = settings_of("directory")
    with open(f"{settings.folder}/store.sqlite", "wb") as file:
        file.write(b"no database at all" * 100)
    store = opened(settings)
    id = store.put(b"abc", GOOD)
    assert store.get(id).data == b"abc" and store.postponed.waiting() == 1
    os.unlink(f"{settings.folder}/store.sqlite")
    time.sleep(2.1)
    assert store.postponed.flush() == 0 and store.get(id).data == b"abc"
    with sqlite3.connect(f"{settings.folder}/store.sqlite") as database:
        assert database.execute("SELECT id FROM artefacts").fetchall() == [(id,)]
    database.close()
