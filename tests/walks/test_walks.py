"""What it takes to add something: patches for a copy of the package, the files they touch, and laws they must pass."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
WALKS = {
    "stage": ["esper/kasmina/quality_gates.py", "esper/leyline/codes.py", "esper/leyline/stages.py"],
    "optimizer": ["esper/kasmina/optimizers/lion.py"],
    "blueprint": ["esper/kasmina/conv_blueprints.py"],
    "host_layer": ["esper/kasmina/cnn.py", "esper/kasmina/layers.py"],
    "reward_term": ["esper/simic/reward_terms.py", "esper/simic/rewards.py"],
}


@pytest.mark.skipif(shutil.which("patch") is None, reason="needs the command patch")
@pytest.mark.parametrize("name", WALKS)
def test_adding_one_touches_few_files(name, tmp_path):
    for part in ("esper", "kernels"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    patch = FOLDER / f"{name}.patch"
    assert sorted(re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), re.M)) == WALKS[name]
    subprocess.run(["patch", "-p1", "-i", str(patch)], cwd=tmp_path, check=True, capture_output=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / f"{name}_law.py")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
