"""The tier of what is ready: a bounded LRU as a pure model has it, and one maker for each key."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.urza.store import Flights, ReadyCache

KEYS = st.sampled_from("abcdef")

STEPS = st.lists(st.tuples(st.sampled_from(("get", "put", "drop")), KEYS, st.integers(0, 7)), max_size=40)


class Model:
    """The least recently used goes first: a list of (key, size), the youngest last."""

    def __init__(self, entries, size):
        self.bounds, self.held, self.evictions = (entries, size), [], 0

    def step(self, action, key, size):
        there = [pair for pair in self.held if pair[0] == key]
        self.held = [pair for pair in self.held if pair[0] != key]
        if action == "drop":
            return
        if action == "get" and there:
            self.held += there
        elif size <= self.bounds[1]:
            self.held.append((key, size))
            while len(self.held) > self.bounds[0] or sum(size for _, size in self.held) > self.bounds[1]:
                self.held.pop(0)
                self.evictions += 1


@given(STEPS, st.integers(1, 4), st.integers(0, 12))
def test_holds_what_the_model_holds(steps, entries, size):
    cache, model = ReadyCache(entries, size), Model(entries, size)
    for action, key, weight in steps:
        if action == "get":
            cache.get(key, lambda key=key: key.upper(), lambda _, weight=weight: weight)
        elif action == "put":
            cache.put(key, key.upper(), weight)
        else:
            cache.drop(key)
        model.step(action, key, weight)
        assert cache.usage() == (len(model.held), sum(size for _, size in model.held))
        assert cache.counts.read().get("evictions", 0) == model.evictions
    assert [key for key in "abcdef" if cache.peek(key)] == sorted(key for key, _ in model.held)


def test_the_bounds_are_128_entries_and_512_megabytes():
    cache = ReadyCache()
    for number in range(200):
        cache.put(str(number), number)
    assert cache.usage() == (128, 0) and cache.peek("71") is None and cache.peek("72") == 72
    for number in range(200):
        cache.put(str(number), number, 100 << 20)
    assert cache.usage() == (5, 500 << 20)
    cache.put("huge", 0, (512 << 20) + 1)
    assert cache.peek("huge") is None and cache.usage() == (5, 500 << 20)


def in_threads(work, number):
    threads = [threading.Thread(target=work, args=(each,)) for each in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_sixteen_threads_make_each_key_once():
    cache, made, found = ReadyCache(), [], []
    barrier = threading.Barrier(16)

    def make(key):
        made.append(key)
        threading.Event().wait(0.01)
        return object()

    def work(offset):
        barrier.wait()
        for step in range(40):
            key = f"k{(offset + step * 3) % 10}"
            found.append((key, cache.get(key, lambda key=key: make(key))))

    in_threads(work, 16)
    assert sorted(made) == [f"k{number}" for number in range(10)]
    assert len({(key, id(value)) for key, value in found}) == 10 and len(found) == 640
    counts = cache.counts.read()
    assert counts["misses"] == 10 and counts["hits"] + counts.get("waits", 0) == 630


def test_an_error_is_told_to_all_that_wait_and_is_not_kept():
    cache, told, began = ReadyCache(), [], threading.Event()

    def fail():
        began.wait(5)
        threading.Event().wait(0.05)
        raise ValueError("no")

    def work(number):
        if number == 0:
            began.set()
        with pytest.raises(ValueError, match="no") as error:
            cache.get("k", fail)
        told.append(error)

    in_threads(work, 4)
    assert len(told) == 4 and cache.get("k", lambda: 5) == 5


def test_what_is_dropped_while_it_is_made_is_handed_out_and_not_kept():
    cache = ReadyCache()

    def make():
        assert cache.drop("k") == 0
        return 1

    assert cache.get("key", make) == 1 and cache.peek("key") is None and cache.get("key", lambda: 2) == 2


def test_drops_by_the_beginning_of_a_key():
    cache = ReadyCache()
    for key in ("ab/1", "ab/2", "ac"):
        cache.put(key, key, 3)
    assert cache.drop("ab") == 2 and cache.usage() == (1, 3) and cache.drop() == 1


def test_a_key_that_is_made_of_itself_is_refused():
    cache = ReadyCache()
    with pytest.raises(RuntimeError, match="k: made of itself"):
        cache.get("k", lambda: cache.get("k", lambda: 1))


def test_an_interrupt_leaves_the_key_to_the_next():
    cache = ReadyCache()

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("k", interrupted)
    assert cache.get("k", lambda: 3) == 3


def test_flights_without_a_folder_or_a_lock_still_make(tmp_path):
    (tmp_path / "file").write_text("")
    for flights in (Flights(None), Flights(tmp_path / "file" / "no folder")):
        assert flights.once("k", lambda: None, lambda: 1) == 1 and flights.once("k", lambda: 2, lambda: 1) == 2


def test_flights_wait_no_longer_than_they_are_told(tmp_path):
    flights = Flights(tmp_path)
    inner = flights.once("k", lambda: None, lambda: flights.once("k", lambda: None, lambda: 7, patience=0.05))
    assert inner == 7 and flights.counts.read() == {"made": 2, "unlocked": 1}
    with pytest.raises(ValueError, match="no"):
        flights.once("\ud800/..", lambda: None, lambda: (_ for _ in ()).throw(ValueError("no")))
    assert flights.once("\ud800/..", lambda: None, lambda: 8) == 8
    assert flights.sweep(before=0) == 0 and flights.sweep(before=float("inf")) == 2
