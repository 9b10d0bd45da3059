"""The queue of blueprints: its life cycle, leases, workers that die, and several that compete; on every database."""

import threading

import pytest

from esper.urza.store import BlueprintStatus, StoreError
from esper.urza.store.compile_queue import CompileQueue
from esper.urza.store.requests import request_id

DATABASES = pytest.mark.parametrize("kind", ["memory", "directory", "sqlite", "postgres"])

SECOND = 1_000_000_000


class Clock:
    def __init__(self):
        self.now = 1_000 * SECOND

    def __call__(self):
        self.now += 1
        return self.now


@pytest.fixture
def queue_of(opened):
    def make(kind):
        store, clock = opened(kind), Clock()
        return CompileQueue(store.entries.connections, store.watched, store.postponed, clock), clock

    return make


@DATABASES
def test_a_request_goes_its_way(queue_of, kind):
    queue, _ = queue_of(kind)
    document = bytes(range(256))
    id = queue.enqueue(document, site="conv:8x8x8", dtype="float32")
    assert queue.enqueue(document, dtype="float32", site="conv:8x8x8") == id != queue.enqueue(document, site="other")
    assert queue.get(id).document == document and queue.get(id).status is BlueprintStatus.PROPOSED
    taken = queue.claim("worker 1")
    assert (taken.id, taken.document, taken.facts) == (id, document, {"site": "conv:8x8x8", "dtype": "float32"})
    assert queue.get(id).status is BlueprintStatus.COMPILING and queue.get(id).worker == "worker 1"
    assert queue.validating(taken) and queue.get(id).status is BlueprintStatus.VALIDATING
    assert queue.complete(taken, "a" * 64) and queue.complete(taken, "a" * 64)
    assert (queue.get(id).status, queue.get(id).artefact) == (BlueprintStatus.CHARACTERIZED, "a" * 64)
    assert not queue.fail(taken, "too late") and not queue.renew(taken)
    assert queue.deploy(id) and queue.deploy(id) and queue.archive(id) and not queue.deploy(id)
    assert queue.counters() == dict.fromkeys((s.value for s in BlueprintStatus), 0) | {"proposed": 1, "archived": 1}
    assert queue.enqueue(document, site="conv:8x8x8", dtype="float32") == id
    assert queue.get(id).status is BlueprintStatus.PROPOSED and queue.get(id).artefact == ""


@DATABASES
def test_a_request_that_failed_says_why_and_is_tried_again_when_it_is_asked_for_again(queue_of, kind):
    queue, _ = queue_of(kind)
    id = queue.enqueue(b"{}")
    assert queue.fail(queue.claim("w"), "graph: node 'a':\nexpected more") and queue.claim("w") is None
    assert queue.get(id).reason == "graph: node 'a':\\nexpected more" and not queue.deploy(id)
    queue.enqueue(b"{}")
    assert queue.claim("w").attempts == 1
    assert queue.get("x").reason == queue.get("0" * 64).reason == "unknown"


@DATABASES
def test_a_lease_ends_with_its_worker_and_a_document_that_kills_workers_fails(queue_of, kind):
    queue, clock = queue_of(kind)
    id = queue.enqueue(b"{}")
    first = queue.claim("w1", lease=10.0)
    assert queue.claim("w2") is None
    clock.now += 9 * SECOND
    assert queue.renew(first, lease=10.0)
    clock.now += 9 * SECOND
    assert queue.claim("w2") is None
    clock.now += 2 * SECOND
    second = queue.claim("w2", lease=10.0)
    assert second.id == id and second.attempts == 2
    assert not queue.complete(first, "a" * 64) and not queue.renew(first) and not queue.validating(first)
    assert queue.release(second) and queue.claim("w3", lease=10.0).attempts == 2
    clock.now += 11 * SECOND
    assert queue.claim("w4", lease=10.0).attempts == 3
    clock.now += 11 * SECOND
    assert queue.claim("w5") is None
    assert queue.get(id).status is BlueprintStatus.FAILED
    assert queue.get(id).reason == "3 workers that took it were not heard of again"


def test_workers_take_the_shortest_first(queue_of):
    queue, _ = queue_of("memory")
    for size in (5, 1, 3):
        queue.enqueue(b"x" * size)
    assert [len(queue.claim("w", order=lambda request: len(request.document)).document) for _ in range(3)] == [1, 3, 5]
    assert queue.claim("w") is None


@DATABASES
def test_workers_that_compete_take_each_request_once(queue_of, kind):
    queue, _ = queue_of(kind)
    ids, taken = {queue.enqueue(str(number).encode()) for number in range(16)}, []

    def work(number):
        while (request := queue.claim(f"w{number}")) is not None:
            taken.append(request.id)
            assert queue.complete(request, "b" * 64)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(taken) == sorted(ids)


def test_a_damaged_request_is_told_and_never_taken(queue_of, opened):
    store = opened("directory")
    id = store.queue.enqueue(b"{}", site="conv")
    with store.entries.connections.writing() as execute:
        execute("UPDATE requests SET document = :document", document='"[]"')
    assert store.queue.get(id).reason == "damaged" and store.queue.claim("w") is None and store.queue.list() == ()
    assert id == request_id(b"{}", '{"site":"conv"}')


def test_what_cannot_be_asked_for_is_one_line(opened):
    queue = opened("memory").queue
    for document, facts in ((b"x" * ((1 << 22) + 1), {}), (b"", {"site": object()})):
        with pytest.raises(StoreError, match="expected") as error:
            queue.enqueue(document, **facts)
        assert "\n" not in str(error.value)


@DATABASES
def test_who_asks_is_kept_beside_a_request_and_makes_it_no_other_one(queue_of, kind):
    """Of equal requests the first one's span; of one that is asked for anew, the new one's."""
    queue, _ = queue_of(kind)
    first, second = (f"00-{word * 16}-{word * 8}-01" for word in ("ab", "cd"))
    id = queue.enqueue(b"{}", traceparent=first)
    assert id == queue.enqueue(b"{}", traceparent=second) == queue.enqueue(b"{}")
    assert queue.traceparent(id) == first and queue.claim("w").facts == {}
    other = queue.enqueue(b"{}", site="x")
    assert queue.traceparent(other) == "" == queue.traceparent("0" * 64)
    assert queue.fail(queue.claim("w"), "no") and queue.enqueue(b"{}", site="x", traceparent=second) == other
    assert queue.traceparent(other) == second
