"""Every block of Python in the documents runs alone, and the guide's commands run in order at small sizes."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from docs_texts import DOCUMENTS, FOLDER, blocks, commands, name_of

from esper.__main__ import main

SPEC = importlib.util.spec_from_file_location("readme_commands", Path(__file__).parents[1] / "readme_commands.py")
assert SPEC is not None and SPEC.loader is not None
readme = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(readme)

PYTHON = [(name_of(path), number, body) for path in DOCUMENTS for number, body in enumerate(blocks(path, "python"))]
FILE = re.compile(r"# (\w+\.py)\n")


@pytest.mark.parametrize(("document", "number", "body"), PYTHON, ids=[f"{name}-{at}" for name, at, _ in PYTHON])
def test_a_python_block_runs_alone(document, number, body, capsys):
    exec(compile(body, f"{document}, block {number}", "exec"), {"__name__": "pasted"})
    assert "nan" not in capsys.readouterr().out


def test_the_guide_has_a_block_on_each_of_the_five():
    assert len(blocks(FOLDER / "guide.md", "python")) >= 8


ELSEWHERE = ("supervise", "redis:", "postgresql:", "s3:", "otlp:", "wandb", "mlflow", "9464", "9465")
"""Words of commands that need a service or a process of their own; other tests start these."""

MORE = {"watch": ["--port", "0", "--seconds", "0.1"]}
"""Flags that let a command end."""


def runnable(document):
    """Commands of a document that end by themselves and need nothing but Esper; words after ``esper``."""
    for command in commands():
        whole = command.is_whole and command.document.endswith(document) and command.words[0] == "esper"
        if whole and not any(each in " ".join(command.words) for each in ELSEWHERE):
            yield list(command.words[1:])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a dataset, the guide's module, a log and a run; a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(readme.STORE, str(tmp_path / "store"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    readme.prepare(tmp_path)
    for body in blocks(FOLDER / "guide.md", "python"):
        if found := FILE.match(body):
            (tmp_path / found[1]).write_text(body, encoding="utf-8")
    (tmp_path / "run.log").write_text("checkpoint 3: not written (OSError: No space left on device); the run goes on\n")
    assert main(["blueprint", "export", "conv_light", "--to", "mine.json"]) == 0
    assert main(["train", "--task", "digits", "--out", "runs/digits", *readme.SMALL["train"]]) == 0
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("document", "least"),
    [
        ("guide.md", 8),
        ("runbooks.md", 8),
        pytest.param("integration.md", 4, marks=pytest.mark.large),
        pytest.param("tuning.md", 2, marks=pytest.mark.large),
        pytest.param("troubleshooting.md", 2, marks=pytest.mark.large),
    ],
)
def test_a_document_s_commands_run_in_order_at_small_sizes(document, least, place, capfd):
    """In one folder: later commands read what earlier ones wrote. Of some, the README has all but the addresses, and
    its commands run every day.
    """
    told = [[word.replace("PATH", str(place / "d.npz")) for word in words] for words in runnable(document)]
    capfd.readouterr()
    for words in told:
        status = main([*words, *readme.SMALL.get(words[0], []), *MORE.get(words[0], [])])
        said = capfd.readouterr()
        assert status == 0, f"{words}: {said.err}"
    assert len(told) >= least


def test_data_check_reads_what_the_guide_s_first_block_describes(tmp_path, capsys):
    draw = np.random.default_rng(0)
    names = ("train", "test")
    np.savez(
        tmp_path / "d.npz",
        **{f"x_{part}": draw.integers(0, 256, (20, 1, 8, 8)).astype(np.uint8) for part in names},
        **{f"y_{part}": np.arange(20) % 4 for part in names},
    )
    assert main(["data", "check", str(tmp_path / "d.npz")]) == 0
    assert "20" in capsys.readouterr().out
