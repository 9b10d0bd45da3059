"""Several processes: what one writes others see, what one invalidates others forget, what all need is made once."""

import json
import os
import signal
import sqlite3
import time
import warnings

import pytest

from esper.urza.store import Artefact, Failure, open_store

GOOD = {"kind": "program", "name": "conv", "version": "1", "validated": True}


def answer(store, word, rest):
    """What the other process says to a line."""
    if word == "put":
        return store.put(rest.encode(), GOOD)
    if word == "get":
        found = store.get(rest)
        return found.data.decode() if isinstance(found, Artefact) else found.reason
    if word == "held":
        return store.ready.peek(rest) is not None
    if word == "invalidate":
        return store.invalidate(version=rest)
    made = []

    def make():
        time.sleep(0.02)
        store.put(rest.encode(), {"kind": "made", "name": rest, "validated": True})
        made.append(rest)
        return made

    for _ in range(2):
        store.flights.once(rest, lambda: store.list(kind="made", name=rest) or None, make)
    return made


class Process:
    """Another process with a store of its own, forked: a new interpreter takes seconds to import."""

    def __init__(self, settings, ends=()):
        """Args: ends: of other processes' pipes, which would be kept open."""
        questions, self.asking = os.pipe()
        answers, answering = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.child = os.fork()
        if self.child == 0:
            for end in (self.asking, *ends):
                os.close(end)
            signal.alarm(120)
            try:
                with open_store(settings) as store, open(questions) as lines:
                    os.write(answering, b'"ready"\n')
                    for line in lines:
                        word, _, rest = line.strip().partition(" ")
                        os.write(answering, json.dumps(answer(store, word, rest)).encode() + b"\n")
                os._exit(0)
            finally:
                os._exit(9)
        os.close(questions)
        os.close(answering)
        self.answers = open(answers)  # noqa: SIM115

    def say(self, line):
        os.write(self.asking, f"{line}\n".encode())

    def hear(self):
        return json.loads(self.answers.readline())

    def ask(self, line):
        self.say(line)
        return self.hear()

    def end(self):
        os.close(self.asking)
        assert os.waitpid(self.child, 0)[1] == 0
        self.answers.close()


FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@FORKS
@pytest.mark.parametrize("kind", ["directory", "shared"])
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
    if kind == "shared":  # by Redis: their memory has it no more although nobody asks for it there
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


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process")
def test_a_redis_that_says_nothing_empties_memory_and_costs_no_answer(opened, redis_server, soon):
    store = opened("redis")
    id = store.put(b"abc", GOOD)
    soon(lambda: store.metrics()["redis"].get("subscriptions") == 1)
    store.ready.put("callable", 1)
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        soon(lambda: store.ready.peek("callable") is None, 5.0)
        began = time.monotonic()
        for number in range(30):
            store.ready.drop()
            assert store.get(id).data == b"abc" and store.put(str(number).encode(), GOOD)
        assert time.monotonic() - began < 15 and store.metrics()["redis"]["degradations"] >= 30
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    soon(lambda: store.metrics()["redis"]["subscriptions"] >= 2)


@FORKS
@pytest.mark.parametrize("processes", [8])
def test_processes_make_each_key_once(opened, settings_of, processes):
    settings = settings_of("directory")
    others = []
    for _ in range(processes):
        others.append(Process(settings, [other.asking for other in others]))
    assert [other.hear() for other in others] == ["ready"] * processes
    keys = [f"key{number}" for number in range(10)]
    for number, other in enumerate(others):
        for step in range(len(keys)):
            other.say(f"once {keys[(step * 3 + number) % len(keys)]}")
    store = opened(settings)
    made = [key for other in others for _ in keys for key in other.hear()]
    assert sorted(made) == keys and len(store.list(kind="made")) == len(keys)
    for other in others:
        other.end()


@FORKS
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


@FORKS
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
    for number in range(24):
        (first, second)[number % 2].put(b"same", GOOD | {"number": number})
        (second, first)[number % 2].put(str(number).encode(), GOOD)
    assert not first.metrics()["database"].get("failures") and first.metrics()["outbox"] == {"waiting": 0}
    assert len(second.list()) == 25


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
