"""Makes ``forks.py`` known as ``runtime_forks``, and its tiny task to tests that ask for it."""

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("runtime_forks", Path(__file__).with_name("forks.py"))
forks = importlib.util.module_from_spec(_spec)
sys.modules["runtime_forks"] = forks
_spec.loader.exec_module(forks)


@pytest.fixture(scope="module")
def tiny_task():
    """The tiny task has a name."""
    with forks.known():
        yield
