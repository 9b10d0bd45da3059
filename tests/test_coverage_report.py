"""What is printed of coverage, against a program whose lines are counted by hand."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

coverage = pytest.importorskip("coverage")

_spec = importlib.util.spec_from_file_location("coverage_report", Path(__file__).with_name("coverage_report.py"))
module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(module)

PROGRAM = {
    "pack/__init__.py": "",
    "pack/whole.py": "x = 1\ny = 2\n",
    "pack/half.py": "def f():\n    a = 1\n    return a\n\n\nz = 3\n",
    "main.py": "import pack.half\nimport pack.whole\n",
    "pack/never.py": "a = 1\nb = 2\nc = 3\n",
}


def test_lines_are_counted_as_by_hand(tmp_path):
    """``half`` has 4 statements, 2 of which run: def and z; ``never`` has 3 and is not imported."""
    for name, text in PROGRAM.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "coverage", "run", "--data-file=data", "--source=pack", "main.py"]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = {Path(each.name).name: each[1:] for each in module.covered(str(tmp_path / "data"))}
    assert found == {"whole.py": (2, 2), "half.py": (4, 2), "never.py": (3, 0)}
    lines = module.report(module.covered(str(tmp_path / "data")), f"{tmp_path}/").splitlines()
    assert lines[0] == "coverage: 44.4 % of 9 statements in 3 files; least covered:"
    assert [line.split() for line in lines[1:]] == [
        ["0.0", "%", "3", "pack/never.py"],
        ["50.0", "%", "4", "pack/half.py"],
        ["100.0", "%", "2", "pack/whole.py"],
    ]


def test_ten_files_are_named_the_least_covered_first():
    files = [module.Covered(f"f{number:02}", 100, number) for number in range(20, 0, -1)]
    lines = module.report(files).splitlines()
    assert len(lines) == 11 and [line.split()[-1] for line in lines[1:]] == [f"f{number:02}" for number in range(1, 11)]
    assert lines[0].startswith("coverage: 10.5 % of 2,000")
