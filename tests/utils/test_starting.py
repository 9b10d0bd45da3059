"""The garbage collector while a command starts."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from esper.utils.starting import collecting_nothing


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def ring() -> "weakref.ref[Ring]":
    return weakref.ref(Ring())


def test_nothing_is_collected_within_and_what_was_there_is_left_alone_after() -> None:
    with collecting_nothing(True):
        assert not gc.isenabled()
        within = ring()
    after = ring()
    assert gc.isenabled() and gc.get_freeze_count() > 0
    gc.collect()
    assert within() is not None and after() is None


@pytest.mark.parametrize("active,enabled", [(False, True), (True, False), (False, False)])
def test_a_process_that_decides_itself_is_left_as_it_is(active: bool, enabled: bool) -> None:
    frozen = gc.get_freeze_count()
    if not enabled:
        gc.disable()
    with collecting_nothing(active):
        assert gc.isenabled() == enabled
    assert gc.isenabled() == enabled and gc.get_freeze_count() == frozen


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), collecting_nothing(True):
        raise ImportError
    assert gc.isenabled()
