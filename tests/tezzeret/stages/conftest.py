"""Stores of a test's own; and one child that all tests share, since importing takes it seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.tezzeret.blueprints import canonical, shipped
from esper.tezzeret.stages import CompileJob, CompilerChild
from esper.urza.store import StoreSettings, Tiers, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Tiers]:
    with open_store(StoreSettings(folder=str(tmp_path / "store"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def child() -> Iterator[CompilerChild]:
    with CompilerChild() as running:
        yield running


@pytest.fixture(scope="session")
def request_of():
    """Makes a request for a shipped document."""

    def make(name: str, **fields: str) -> CompileJob:
        return CompileJob(canonical(shipped()[name]), name, **({"backend": "native"} | fields))

    return make
