"""The account of compilations: what is told are the differences of a plain sum, each once, and a fork's own."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.utils import compilations
from esper.utils.compilations import CACHES, COMPILED, NAMES, Ledger, compiling, looked_up

STEPS = st.lists(st.one_of(st.none(), st.tuples(st.sampled_from(sorted(NAMES)), st.integers(1, 5))), max_size=30)


@given(STEPS, st.sampled_from(sorted(CACHES)))
def test_what_is_told_are_the_differences_of_plain_sums(steps, asked):
    """Also of a cache that counts by itself: its own numbers take the place of what others say of it."""
    ledger, lookups = Ledger(), [0, 0]
    ledger.cache(asked, lambda: (lookups[0], lookups[1]))
    own = [f"cache_hits_{asked}", f"cache_misses_{asked}"]
    plain, told = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0.0)
    for step in [*steps, None]:
        if step is None:
            found = ledger.since_told()
            assert list(found) == list(NAMES)
            told = {name: told[name] + found[name] for name in NAMES}
            assert told == plain
            continue
        name, number = step
        plain[name] += number
        if name in own:
            lookups[own.index(name)] += number
        else:
            ledger.add(name, number)
    assert set(ledger.since_told().values()) == {0.0}


def test_names_are_those_of_the_two_tables(monkeypatch):
    whole = {f"compilations_{each}" for each in COMPILED} | {f"compilation_seconds_{each}" for each in COMPILED}
    assert set(NAMES) == whole | {f"cache_{answer}_{each}" for answer in ("hits", "misses") for each in CACHES}
    monkeypatch.setattr(compilations, "LEDGER", Ledger())
    with pytest.raises(ZeroDivisionError), compiling("units", 3):
        _ = 1 / 0
    looked_up("library", True)
    looked_up("artefacts", False)
    with pytest.raises(KeyError):
        looked_up("elsewhere", True)
    found = compilations.LEDGER.since_told()
    assert found.pop("compilation_seconds_units") > 0
    assert {name: value for name, value in found.items() if value} == {
        "compilations_units": 3,
        "cache_hits_library": 1,
        "cache_misses_artefacts": 1,
    }


def test_a_fork_counts_its_own():
    """Even if its parent's lock was held when it was made."""
    ledger = Ledger()
    ledger.cache("programs", lambda: (7, 5))
    ledger.add("compilations_units", 4)
    with ledger._lock:
        child = os.fork()
    if child == 0:
        first = ledger.since_told()
        ledger.add("compilations_units", 1)
        os._exit(0 if not any(first.values()) and ledger.since_told()["compilations_units"] == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert ledger.since_told()["compilations_units"] == 4
