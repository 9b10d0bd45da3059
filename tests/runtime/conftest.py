"""Makes ``forks.py`` and ``documents.py`` known as ``runtime_forks`` and ``runtime_documents``, and the tiny task to
tests that ask for it.
"""

import importlib.util
import subprocess
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


@pytest.fixture
def full_disk(tmp_path):
    """A folder of a file system without a free block."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounts no tmpfs")
    try:
        with pytest.raises(OSError, match="No space left"):
            (place / "filled").write_bytes(bytes(1 << 20))
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
