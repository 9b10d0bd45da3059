"""One contract for every store: in memory, embedded, by SQLAlchemy, and on real Redis, PostgreSQL and S3 servers."""

import hashlib
import json
import math
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.urza.store import REASONS, Artefact, Failure, StoreError, key_of

GOOD = {"kind": "program", "name": "conv", "version": "1", "validated": True}

HOSTILE = (
    "../../etc/passwd",
    "/etc/passwd",
    "'; DROP TABLE artefacts; --",
    "%",
    "*",
    "\0",
    "\ud800",
    "a\r\nSET x y",
    "CON",
    "ä" * 500,
    "${HOME}",
    "A" * 64,
    "",
)
"""No ids; names that must come back as they are."""


def digest(data):
    return hashlib.sha256(data).hexdigest()


def test_what_is_put_is_there_by_the_digest_of_its_bytes(store):
    for data in (b"", b"abc", bytes(range(256)) * 300):
        id = store.put(data, GOOD)
        assert id == digest(data) and store.exists(id)
        assert store.get(id) == Artefact(id, data, GOOD)
        assert store.put(data, GOOD) == id
    assert len(store.list()) == 3


def test_what_is_not_there_is_a_failure_of_its_own_reason(store):
    unknown = digest(b"never put")
    assert store.get(unknown) == Failure("unknown", f"{unknown}: not in this store") and not store.exists(unknown)
    raw, other = store.put(b"raw", {"kind": "program"}), store.put(b"other", GOOD | {"kind": "document"})
    assert store.get(raw).reason == "unvalidated" and store.get(raw, validated=False).data == b"raw"
    assert store.get(other, kind="program").reason == "foreign" and store.get(other, kind="document").data == b"other"
    truthy = store.put(b"truthy", {"validated": 1})
    assert store.get(truthy).reason == "unvalidated"


def test_a_later_put_replaces_the_facts(store):
    id = store.put(b"abc", {"kind": "program", "validated": False})
    assert store.get(id).reason == "unvalidated"
    store.put(b"abc", GOOD)
    assert store.get(id).facts == GOOD and [entry.facts for entry in store.list()] == [GOOD]


def test_deleted_is_gone_until_it_is_put_again(store):
    id = store.put(b"abc", GOOD)
    store.delete(id)
    store.delete(id)
    assert store.get(id).reason == "unknown" and not store.exists(id) and store.list() == ()
    assert store.put(b"abc", GOOD) == id and store.get(id).data == b"abc"


def test_lists_by_equality_of_facts_the_oldest_first(store):
    facts = [
        {"kind": "k", "n": n, "even": n % 2 == 0, "f": n / 4, "none": None, "nested": [n, {"a": n}]} for n in range(6)
    ]
    ids = [store.put(str(n).encode(), each) for n, each in enumerate(facts)]
    assert [entry.id for entry in store.list()] == ids and [entry.facts for entry in store.list()] == facts
    assert [entry.id for entry in store.list(even=True, kind="k")] == ids[::2]
    assert [entry.id for entry in store.list(nested=[3, {"a": 3}])] == ids[3:4]
    assert [entry.id for entry in store.list(f=0.5)] == ids[2:3]
    assert len(store.list(none=None)) == 6 and store.list(n=True) == () == store.list(absent=None)
    assert store.list(n="1") == () and store.list(kind="k" * 600) == ()
    assert [entry.size for entry in store.list()] == [1] * 6


def test_invalidates_by_prefix_and_version(store):
    def put(name, version):
        return store.put(f"{name}{version}".encode(), {"kind": "k", "name": name, "version": version})

    conv1, conv2, dense1, convex2 = put("conv", "1"), put("conv", "2"), put("dense", "1"), put("convex", "2")
    assert key_of({"kind": "k", "name": "conv", "version": "1"}) == "k/conv/1"
    assert store.invalidate(prefix="k/conv/", version="1") == (conv1,)
    assert set(store.invalidate(version="2")) == {conv2, convex2}
    assert store.invalidate(prefix="k/%") == () == store.invalidate(version="'")
    assert store.invalidate(prefix=dense1[:9]) == (dense1,)
    assert store.list() == () and store.get(conv1).reason == "unknown"
    with pytest.raises(StoreError, match=r"^invalidate: neither a prefix nor a version; expected one or both$"):
        store.invalidate()


def test_hostile_ids_are_refused_and_hostile_names_come_back(store):
    for text in HOSTILE:
        found = store.get(text)
        assert found.reason == "unknown" and "\n" not in found.detail and found.detail.isprintable()
        assert not store.exists(text)
        store.delete(text)
        facts = GOOD | {"name": text, text: text}
        id = store.put(b"abc", facts)
        assert store.get(id).facts == facts
        assert [entry.id for entry in store.list(name=text)] == [id]
        assert text == "" or store.invalidate(version=text) == ()
        assert store.invalidate(prefix=key_of(facts)) == (id,)


def test_values_that_are_no_json_or_no_bytes_are_refused_in_one_line(store):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for data, facts in ((b"", {"a": object()}), (b"", {"a": deep}), ("text", {}), (b"", {"a": "x" * (1 << 20)})):
        with pytest.raises(StoreError, match="expected") as error:
            store.put(data, facts)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert store.list() == ()


def test_no_caller_can_change_what_the_store_holds(store):
    facts = GOOD | {"nested": {"a": [1]}}
    id = store.put(b"abc", facts)
    facts["nested"]["a"].append(2)
    store.get(id).facts["nested"]["a"].append(3)
    store.list()[0].facts.clear()
    assert store.get(id).facts == GOOD | {"nested": {"a": [1]}}


def test_threads_that_put_and_get_the_same_see_it_whole(store):
    datas = [bytes([number]) * 5000 for number in range(6)]
    wrong = []

    def work(offset):
        for step in range(12):
            data = datas[(step * 5 + offset) % len(datas)]
            id = store.put(data, GOOD)
            found = store.get(id)
            if not isinstance(found, Artefact) or found.data != data:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and {entry.id for entry in store.list()} == {digest(data) for data in datas}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def strict(value):
    """What JSON has of a value, written independently: infinities are words."""
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {name: strict(each) for name, each in value.items()}
    return [strict(each) for each in value] if isinstance(value, list) else value


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.dictionaries(st.text(max_size=10), JSON, max_size=4))
def test_any_bytes_and_facts_come_back(store, data, facts):
    id = store.put(data, facts)
    found = store.get(id, validated=False)
    assert found == Artefact(digest(data), data, strict(facts))
    assert json.dumps(found.facts, sort_keys=True) == json.dumps(strict(facts), sort_keys=True)
    assert set(REASONS) == {"unknown", "foreign", "unvalidated", "damaged", "unavailable"}
