"""Lost services, damaged copies, killed writers: never a wrong artefact, no exception, nothing acknowledged lost."""

import dataclasses
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings

import pytest

from esper.urza.store import Artefact, Failure, StoreSettings, collect, open_store, verify
from esper.utils import failpoints

GOOD = {"kind": "program", "name": "conv", "version": "1", "validated": True}


def digest(data):
    return hashlib.sha256(data).hexdigest()


def flip(data, place=-1):
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def object_path(folder, id):
    return folder / "objects" / "v1" / id[:2] / id


def test_a_flipped_byte_in_memory_is_read_anew(opened):
    store = opened("directory")
    id = store.put(b"abc" * 100, GOOD)
    store.get(id)
    copy = store.ready.peek(id)
    store.ready.put(id, copy._replace(data=flip(copy.data)), 300)
    assert store.get(id) == Artefact(id, b"abc" * 100, GOOD) and store.metrics()["memory"]["damaged"] == 1


def test_a_flipped_byte_in_redis_is_a_miss_and_is_written_anew(opened, redis_server):
    store = opened("redis")
    id = store.put(b"abc" * 100, GOOD)
    client, key = redis_server.client(), f"esper:store:1:{id}"
    whole = client.get(key)
    for place in range(0, len(whole), 7):
        client.set(key, flip(whole, place))
        store.ready.drop()
        assert store.get(id) == Artefact(id, b"abc" * 100, GOOD)
        assert client.get(key) == whole
    client.set(key, b"")
    store.ready.drop()
    assert store.get(id).data == b"abc" * 100 and store.metrics()["redis"]["damaged"] > 40
    client.close()


@pytest.mark.parametrize("column", ["facts", "seal", "size", "written", "format"])
def test_a_damaged_row_is_told_and_one_that_redis_has_is_restored(opened, settings_of, column):
    for kind, reason in (("directory", "damaged"), ("redis", None)):
        settings = settings_of(kind)
        store = opened(settings)
        id = store.put(b"abc", GOOD)
        with sqlite3.connect(f"{settings.folder}/store.sqlite") as database:
            value = {"facts": '{"validated":true}', "seal": "0" * 64}.get(column, 7)
            database.execute(f"UPDATE artefacts SET {column} = ?", (value,))
        database.close()
        store.ready.drop()
        found = store.get(id)
        assert found == Artefact(id, b"abc", GOOD) if reason is None else found.reason == reason
        assert (reason is None) == (list(verify(store)) == [])
        store.put(b"abc", GOOD)
        assert store.get(id) == Artefact(id, b"abc", GOOD) and not list(verify(store))


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-1], lambda data: b"", lambda data: None])
def test_a_damaged_object_is_told_and_one_that_redis_has_is_restored(opened, settings_of, tmp_path, damage):
    for kind in ("directory", "redis"):
        settings = settings_of(kind)
        store = opened(settings)
        id = store.put(b"abc", GOOD)
        path = object_path(tmp_path / settings.folder, id)
        if damage(b"abc") is None:
            path.unlink()
        else:
            path.write_bytes(damage(b"abc"))
        store.ready.drop()
        if kind == "directory":
            assert store.get(id).reason == "damaged"
            assert [(each.id, each.tier, each.repaired) for each in verify(store)] == [(id, "objects", False)]
            store.put(b"abc", GOOD)
        else:
            assert [(each.id, each.tier, each.repaired) for each in verify(store)] == [(id, "objects", True)]
        store.ready.drop()
        assert store.get(id) == Artefact(id, b"abc", GOOD) and path.read_bytes() == b"abc"


def test_a_row_of_another_format_is_foreign(opened, settings_of, monkeypatch):
    settings = settings_of("directory")
    store = opened(settings)
    id = store.put(b"abc", GOOD)
    record = store.entries.get(id)
    store.entries.add(record._replace(format=2), lambda: True)
    store.ready.drop()
    assert store.get(id) == Failure("foreign", f"{id}: an entry of format 2; expected 1")


def test_a_damaged_object_in_a_bucket_is_told(opened, settings_of):
    settings = settings_of("all")
    store = opened(StoreSettings(settings.folder, "", settings.sql, settings.objects))
    id = store.put(b"abc", GOOD)
    store.objects.put(id, b"abd")
    store.ready.drop()
    assert store.get(id).reason == "damaged"
    store.objects.remove(id)
    assert store.get(id) == Failure("damaged", f"{id}: its object is not there")


def test_sixteen_that_create_one_object_and_what_this_server_says_of_it(opened, settings_of):
    """Nothing rests on it: some servers let several of them succeed. All bytes are the same."""
    objects, id, ends = opened("all").objects, digest(b"same"), []
    import obstore

    def create():
        try:
            obstore.put(objects._store, objects._key(id), b"same", mode="create")
            ends.append("created")
        except FileExistsError:
            ends.append("there already")
        except Exception as error:
            ends.append(type(error).__name__)

    threads = [threading.Thread(target=create) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    sys.stdout.write(f"\n16 conditional writers of one key: {ends.count('created')} created it, of {len(ends)}\n")
    assert len(ends) == 16 and ends.count("created") >= 1 and objects.get(id) == b"same"


class World:
    """Requests at random against a store, and what must hold of their answers."""

    def __init__(self, store, seed):
        self.store, self.random, self.there, self.deleted = store, random.Random(seed), {}, set()

    def request(self, number):
        chance = self.random.random()
        if chance < 0.3 or not self.there:
            data = f"{number} ".encode() * self.random.randrange(1, 200)
            self.there[self.store.put(data, GOOD | {"number": number})] = (data, number)
        elif chance < 0.35:
            id = self.random.choice(sorted(self.there))
            self.store.delete(id)
            self.deleted.add(id)
            del self.there[id]
        else:
            self.check(self.random.choice(sorted(self.there)), may_lack=True)
            if self.deleted and chance < 0.5:
                found = self.store.get(self.random.choice(sorted(self.deleted)))
                assert isinstance(found, Failure)

    def check(self, id, may_lack):
        found, (data, number) = self.store.get(id), self.there[id]
        if may_lack and isinstance(found, Failure):
            assert found.reason == "unavailable" and "geheim" not in found.detail, found
        else:
            assert found == Artefact(id, data, GOOD | {"number": number})

    def check_all(self):
        self.store.ready.drop()
        for id in self.there:
            self.check(id, may_lack=False)
        assert all(self.store.get(id).reason == "unknown" for id in self.deleted)


def run_trace(store, servers, requests, soon, seed):
    """Each service is stopped and started again within a trace."""
    world = World(store, seed)
    share = requests // (2 * len(servers) + 1)
    numbers = iter(range(requests))
    for server in servers:
        for _ in range(share):
            world.request(next(numbers))
        server.stop()
        try:
            for _ in range(share):
                world.request(next(numbers))
        finally:
            server.start()
        soon(lambda: store.postponed.flush() == 0 and store.postponed.waiting() == 0)
    for number in numbers:
        world.request(number)
    soon(lambda: store.postponed.waiting() == 0)
    world.check_all()
    assert not list(verify(store))
    return world


def test_each_service_stops_and_comes_back(opened, redis_server, postgres_server, bucket_server, soon):
    store = opened("all")
    run_trace(store, (redis_server, postgres_server, bucket_server), 140, soon, 1)
    found = store.metrics()
    assert found["outbox"]["kept"] == found["outbox"]["replayed"] > 0 and found["outbox"]["waiting"] == 0
    assert all(found[tier]["failures"] > 0 for tier in ("redis", "database", "objects"))
    assert found["redis"]["degradations"] > 0


@pytest.mark.large
def test_each_service_stops_and_comes_back_at_length(opened, redis_server, postgres_server, bucket_server, soon):
    store, servers = opened("all"), (redis_server, postgres_server, bucket_server)
    began = time.monotonic()
    world = run_trace(store, servers * 2, 1000, soon, 2)
    seconds = time.monotonic() - began
    counts = f"1,000 requests in {seconds:.0f} s, 6 stops, {len(world.there)} artefacts: {store.metrics()}"
    sys.stdout.write(f"\n{counts}\n")


def test_what_is_read_while_the_database_is_lost_comes_from_redis(opened, postgres_server, soon):
    store = opened("all")
    ids = [store.put(bytes([number]) * 50, GOOD) for number in range(3)]
    store.ready.drop()
    postgres_server.stop()
    try:
        assert [store.get(id).data for id in ids] == [bytes([number]) * 50 for number in range(3)]
        assert store.get(digest(b"never")).reason == "unavailable" and store.list() == ()
        later = store.put(b"later", GOOD)
        store.delete(ids[0])
        assert store.get(later).data == b"later" and store.get(ids[0]).reason == "unknown"
        assert store.exists(later) and not store.exists(ids[0]) and [each.id for each in store.list()] == [later]
        assert store.invalidate(prefix=ids[1]) == ()
        request = store.queue.enqueue(b"document", site="conv")
    finally:
        postgres_server.start()
    soon(lambda: store.postponed.flush() == 0 and store.postponed.waiting() == 0)
    assert store.get(later).data == b"later" and store.get(ids[0]).reason == store.get(ids[1]).reason == "unknown"
    assert {each.id for each in store.list()} == {ids[2], later}
    assert store.queue.get(request).document == b"document"


def test_an_older_operation_that_waited_does_not_undo_a_younger_one(opened, settings_of):
    settings = settings_of("directory")
    here, there = opened(settings), opened(settings_of("directory"))
    here.entries.connections, there.entries.connections = there.entries.connections, there.entries.connections
    here.objects = there.objects
    id = digest(b"abc")
    with failpoints.awaiting(failpoints.Fault("put", "eio", 2)):
        here.put(b"abc", GOOD | {"where": "here"})
    assert here.postponed.waiting() == 1
    there.put(b"abc", GOOD | {"where": "there"})
    there.delete(id)
    assert here.postponed.flush() == 0 and there.get(id).reason == "unknown"
    there.put(b"abc", GOOD | {"where": "there"})
    assert there.get(id).facts["where"] == "there"


def test_a_disk_that_takes_nothing_is_one_line(opened):
    store = opened("directory")
    full = failpoints.Fault("open", "enospc", 1, True)
    with failpoints.awaiting(full), pytest.raises(ValueError, match="No space left") as error:
        store.put(b"abc", GOOD)
    assert "\n" not in str(error.value) and store.get(digest(b"abc")).reason == "unknown"
    assert store.get(store.put(b"abc", GOOD)).data == b"abc"


@pytest.mark.parametrize("point", failpoints.ON_FILES[:5])
@pytest.mark.parametrize("kind", ["eio", "enospc", "emfile"])
def test_an_operation_on_files_that_fails_once_loses_nothing(opened, settings_of, point, kind):
    store = opened("directory")
    for arrival in (1, 2):
        data = f"{arrival}".encode()
        with failpoints.awaiting(failpoints.Fault(point, kind, arrival)):
            id = store.put(data, GOOD)
        assert store.get(id) == Artefact(id, data, GOOD)
        store.postponed.flush()
        store.ready.drop()
        assert store.get(id) == Artefact(id, data, GOOD) and store.postponed.waiting() == 0


def killed_put(settings, fault, puts, word):
    """A forked process of puts, killed at a point; its status, and the ids that it acknowledged."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of torch and of the fixtures are not used there
        child = os.fork()
    if child == 0:
        try:
            with failpoints.awaiting(fault), open_store(settings) as store:
                for number in range(puts):
                    os.write(writing, store.put(f"{number} of {word} ".encode() * 50, GOOD).encode())
            os._exit(0)
        finally:
            os._exit(9)
    os.close(writing)
    with open(reading, "rb") as file:
        text = file.read().decode()
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status, [text[place : place + 64] for place in range(0, len(text), 64)]


WRITERS = """
import json, os, sys
from esper.urza.store import StoreSettings, open_store
from esper.utils import failpoints
for line in sys.stdin:
    settings, point, arrival, puts, word, facts = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            fault = failpoints.Fault(point, "kill", arrival)
            with failpoints.awaiting(fault), open_store(StoreSettings(**settings)) as store:
                for number in range(puts):
                    os.write(1, store.put(f"{number} of {word} ".encode() * 50, facts).encode())
            os._exit(0)
        finally:
            os._exit(9)
    os.write(1, f" {os.waitpid(child, 0)[1]}\\n".encode())
"""


@pytest.fixture(scope="module")
def writers():
    """A process that forks writers: a bucket's client has threads, which a process forked from here would lack."""
    words = [sys.executable, "-W", "ignore", "-c", WRITERS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def write(settings, fault, puts, word):
            told = [dataclasses.asdict(settings), fault.point, fault.first, puts, word, GOOD]
            server.stdin.write(json.dumps(told) + "\n")
            server.stdin.flush()
            text, _, status = server.stdout.readline().rpartition(" ")
            assert int(status) in (0, signal.SIGKILL), status
            return int(status), [text[place : place + 64] for place in range(0, len(text), 64)]

        yield write
        server.stdin.close()


def expect_killed(settings, point, arrival, puts=2, written=killed_put):
    word = f"{point}-{arrival}"
    status, ids = written(settings, failpoints.Fault(point, "kill", arrival), puts, word)
    with open_store(settings) as store:
        for number, id in enumerate(ids):
            assert store.get(id).data == f"{number} of {word} ".encode() * 50
        assert not list(verify(store))
        for number in range(puts):  # what was half-done is done again, whatever was left of it
            data = f"{number} of {word} ".encode() * 50
            id = store.put(data, GOOD)
            assert store.get(id).data == data
        collect(store, grace=-1.0)
        assert not list(verify(store))
        assert settings.objects or not list(store.objects.folder.glob("*/*.tmp-*"))
    return status


FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")

STEPS = ["open:1", "write:1", "sync:1", "rename:1", "sync-folder:3"]
STEPS += ["put:1", "put:2", "commit:1", "put:3", "put:4", "put:6"]
"""Steps of two puts."""


@FORKS
@pytest.mark.parametrize("fault", STEPS)
def test_a_writer_that_is_killed_leaves_nothing_wrong(settings_of, fault):
    point, _, arrival = fault.partition(":")
    assert expect_killed(settings_of("directory"), point, int(arrival)) == signal.SIGKILL


@FORKS
@pytest.mark.large
@pytest.mark.parametrize("kind", ["directory", "sqlite", "redis", "postgres", "all"])
def test_a_writer_that_is_killed_anywhere_leaves_nothing_wrong(settings_of, kind, writers):
    settings, killed, runs = settings_of(kind), 0, 0
    for point in (*failpoints.ON_FILES, "put", "commit"):
        for arrival in range(1, 20):
            status = expect_killed(settings, point, arrival, written=writers if settings.objects else killed_put)
            runs += 1
            killed += status == signal.SIGKILL
            if status == 0:
                break
    sys.stdout.write(f"\n{kind}: {killed} of {runs} writers were killed, each at another step\n")
    assert killed > (6 if settings.objects else 15)
