"""Makes ``forks.py`` and ``documents.py`` known as ``runtime_forks`` and ``runtime_documents``, and the tiny task to
tests that ask for it.
"""

import importlib.util
import sys
from pathlib import Path

import pytest


def _known(name):
    """A module of this folder, known as ``runtime_NAME``."""
    spec = importlib.util.spec_from_file_location(f"runtime_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"runtime_{name}"] = module
    spec.loader.exec_module(module)
    return module


forks = _known("forks")
_known("documents")


@pytest.fixture(scope="module")
def tiny_task():
    """The tiny task has a name."""
    with forks.known():
        yield
