"""What is shipped, and what importing it costs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import esper

ROOT = Path(esper.__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl"))).namelist()


def test_the_wheel_ships_esper_and_nothing_else(wheel):
    assert {name.split("/")[0] for name in wheel} == {"esper", f"esper_growth-{esper.__version__}.dist-info"}
    assert "esper/tolaria/datasets/digits.npz" in wheel
    assert "esper/py.typed" in wheel
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "esper").rglob("*.py")}
    documents = {str(path.relative_to(ROOT)) for path in (ROOT / "esper").rglob("*.md")}
    assert sources | documents <= set(wheel) and len(documents) >= 9


def test_importing_esper_loads_no_triton_no_torchrl_and_no_foreign_kernels():
    """Of its own: where triton is installed, tensordict loads it with torch._dynamo, whoever imports tensordict."""
    heavy = "{'triton', 'torchrl', 'kernels', 'matplotlib'}"
    code = "import sys, tensordict; known = {*sys.modules}; import esper; "
    code += f"print([*{heavy} & {{*sys.modules}} - known])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_public():
    assert esper.__version__.count(".") == 2
