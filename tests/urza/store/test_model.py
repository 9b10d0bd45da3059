"""The store against a dictionary, and against time: any sequence of requests, and traces of many."""

import hashlib
import itertools
import random
import sys
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from esper.urza.store import Artefact, collect, memory_store, open_store, verify
from esper.urza.store.opening import StoreSettings

GOOD = {"kind": "program", "name": "conv", "version": "1", "validated": True}

VERSIONS = st.sampled_from(("1", "2", "10"))


class StoreMachine(RuleBasedStateMachine):
    """Requests to two stores that share what they hold, and a dictionary: id -> (data, facts), the oldest first."""

    ids = Bundle("ids")

    def __init__(self, opened):
        super().__init__()
        self.stores, self.model = opened(), {}

    def teardown(self):
        for store in self.stores:
            store.close()

    def expect(self, store, id):
        found = store.get(id, validated=False)
        if id in self.model:
            assert found == Artefact(id, *self.model[id])
        else:
            assert found.reason == "unknown"
        assert store.exists(id) == (id in self.model)

    @rule(target=ids, which=st.integers(0, 1), data=st.binary(max_size=3), version=VERSIONS, name=st.sampled_from("ab"))
    def put(self, which, data, version, name):
        facts = {"kind": "k", "name": name, "version": version}
        id = self.stores[which].put(data, facts)
        assert id == hashlib.sha256(data).hexdigest()
        self.model.pop(id, None)
        self.model[id] = (data, facts)
        self.stores[1 - which].ready.drop(id)  # as half a second later
        return id

    @rule(id=ids, which=st.integers(0, 1))
    def get(self, id, which):
        self.expect(self.stores[which], id)

    @rule(id=ids, which=st.integers(0, 1))
    def delete(self, id, which):
        self.stores[which].delete(id)
        self.model.pop(id, None)
        self.stores[1 - which].ready.drop(id)
        self.expect(self.stores[which], id)

    @rule(which=st.integers(0, 1), name=st.sampled_from(("", "a", "b")), version=st.sampled_from(("", "1", "2", "10")))
    def invalidate(self, which, name, version):
        prefix = f"k/{name}/" if name else ""
        if not prefix and not version:
            return
        gone = {id for id, (_, facts) in self.model.items() if name in ("", facts["name"])}
        gone = {id for id in gone if version in ("", self.model[id][1]["version"])}
        assert set(self.stores[which].invalidate(prefix, version)) == gone
        for id in gone:
            del self.model[id]
        self.stores[1 - which].ready.drop()

    @rule(which=st.integers(0, 1), version=VERSIONS)
    def list(self, which, version):
        listed = [(each.id, each.facts) for each in self.stores[which].list(version=version)]
        assert listed == [(id, facts) for id, (_, facts) in self.model.items() if facts["version"] == version]

    @rule(which=st.integers(0, 1))
    def collect(self, which):
        collect(self.stores[which], grace=-1.0)

    @rule(which=st.integers(0, 1))
    def forget(self, which):
        self.stores[which].ready.drop()

    @invariant()
    def is_whole(self):
        assert not list(verify(self.stores[0]))


def check_machine(opened, examples, steps):
    bounds = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(lambda: StoreMachine(opened), settings=bounds)


def in_memory():
    store = memory_store()
    return store, store


def test_any_sequence_of_requests_is_as_of_a_dictionary_in_memory():
    check_machine(in_memory, 20, 25)


@pytest.mark.parametrize("kind", ["directory", "sqlite"])
def test_any_sequence_of_requests_is_as_of_a_dictionary_for_two_that_share(settings_of, kind):
    check_machine(sharing(settings_of, kind), 6, 20)


@pytest.mark.large
@pytest.mark.parametrize("kind", ["directory", "sqlite", "shared", "all"])
def test_any_sequence_of_requests_is_as_of_a_dictionary_at_length(settings_of, kind):
    check_machine(sharing(settings_of, kind), 50, 40)


def sharing(settings_of, kind):
    def opened():
        places = settings_of(kind)
        return open_store(places), open_store(places)

    return opened


def zipf(seed, keys, exponent=1.1):
    """Keys at random, the k-th with a probability of k ** -exponent."""
    weights = list(itertools.accumulate(rank**-exponent for rank in range(1, keys + 1)))
    chooser = random.Random(seed)
    return lambda: chooser.choices(range(keys), cum_weights=weights)[0]


@pytest.mark.parametrize("requests", [1_000, pytest.param(10_000, marks=pytest.mark.large)])
def test_more_than_95_of_100_requests_of_a_zipf_trace_are_hits(opened, requests):
    """150 artefacts for a memory of 128: the first tier alone, after a warm-up of 1,000 requests."""
    store, draw = opened("memory"), zipf(5, 150)
    ids = [store.put(number.to_bytes(2, "big") * 512, GOOD) for number in range(150)]
    for _ in range(1_000):
        store.get(ids[draw()])
    before = store.ready.counts.read()
    for _ in range(requests):
        number = draw()
        assert store.get(ids[number]).data == number.to_bytes(2, "big") * 512
    after = store.ready.counts.read()
    hits, misses = (after[name] - before.get(name, 0) for name in ("hits", "misses"))
    sys.stdout.write(f"\n{requests} requests for 150 artefacts: {hits / requests:.2%} hits in memory of 128\n")
    assert hits + misses == requests and hits / requests > 0.95


def quantiles(times):
    ordered = sorted(times)
    return ordered[len(ordered) // 2] * 1e3, ordered[int(0.95 * len(ordered))] * 1e3


@pytest.mark.large
def test_retrieval_takes_less_than_50_ms(opened, settings_of):
    """Per tier, and over a mixed trace of 10,000 requests: L1 alone, L2 and up, L3 with L4 and up."""
    places = settings_of("all")
    full, bare = opened(places), opened(StoreSettings(places.folder, "", places.sql, places.objects))
    local = opened("directory")
    sizes = [1 << 10, 1 << 14, 1 << 17, 1 << 20]
    datas = [number.to_bytes(4, "big") * (sizes[number % 4] // 4) for number in range(200)]
    for store in (full, local):
        ids = [store.put(data, GOOD) for data in datas]
    tiers = {"memory": (local, False), "directory + SQLite": (local, True), "Redis": (full, True), "S3": (bare, True)}
    for name, (store, cold) in tiers.items():
        times = []
        for number in range(200 if cold else 2_000):
            id = ids[number % (200 if cold else 100)]
            if cold:
                store.ready.drop(id)
            elif number < 100:
                store.get(id)
                continue
            began = time.perf_counter()
            found = store.get(id)
            times.append(time.perf_counter() - began)
            assert found.id == id
        sys.stdout.write("\n{}: p50 {:.2f} ms, p95 {:.2f} ms".format(name, *quantiles(times)))
    draw, times, served = zipf(7, 200), [], full.metrics()
    for number in range(10_000):
        id = ids[draw()]
        if number % 500 == 0:
            full.ready.drop()
        began = time.perf_counter()
        full.get(id)
        times.append(time.perf_counter() - began)
    after = full.metrics()
    p50, p95 = quantiles(times)
    hits = (after["memory"]["hits"] - served["memory"].get("hits", 0)) / 10_000
    upper = hits + (after["redis"]["hits"] - served["redis"].get("hits", 0)) / 10_000
    sys.stdout.write(f"\nmixed trace of 10,000: p50 {p50:.3f} ms, p95 {p95:.3f} ms; {hits:.1%} hits in memory, ")
    sys.stdout.write(f"{upper:.1%} in memory or Redis\n")
    assert p95 < 50 and upper > 0.95
