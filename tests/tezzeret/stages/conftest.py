"""Stores of a test of its own, one child for all, since importing takes it seconds; makes the generator known."""

import importlib.util
import sys
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


FOLDER = Path(__file__).parents[1] / "blueprints"

for _name in ("generate", "broken", "judge"):
    if f"blueprint_{_name}" not in sys.modules:
        _spec = importlib.util.spec_from_file_location(f"blueprint_{_name}", FOLDER / f"{_name}.py")
        _module = importlib.util.module_from_spec(_spec)
        sys.modules[f"blueprint_{_name}"] = _module
        _spec.loader.exec_module(_module)
