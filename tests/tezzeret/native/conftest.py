"""Makes the helpers beside it known as ``native_...``; libraries of every width as a fixture."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.tezzeret import toolchain
from esper.tezzeret.compiler import find_compiler

for _name in ("networks", "steps", "builds"):
    _spec = importlib.util.spec_from_file_location(f"native_{_name}", Path(__file__).with_name(f"{_name}.py"))
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[f"native_{_name}"] = _module
    _spec.loader.exec_module(_module)

from native_builds import BUILDS, Build, unload  # noqa: E402 - known from here on


@pytest.fixture(scope="module", params=BUILDS.values(), ids=BUILDS)
def build(request: pytest.FixtureRequest) -> Iterator[Build]:
    """Everything that runs meanwhile runs in libraries of this build."""
    compiler, wanted = find_compiler(), request.param
    assert compiler is not None
    if wanted.isa and not toolchain.ISAS[wanted.isa].macros <= toolchain.macros(compiler):
        pytest.skip(f"this machine has no {wanted.isa}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPER_ISA", wanted.isa)
        patch.setattr(toolchain, "FLAGS", (*toolchain.FLAGS, *wanted.flags))
        unload()
        yield wanted
    unload()
