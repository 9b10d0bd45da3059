"""What must hold wherever Esper runs. Marked ``platform``: also run without a home, a compiler, UTF-8, or a user's
entry (``.ci/platforms``).
"""

import io
import os
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import esper
from esper.leyline.config import ConfigError
from esper.runtime.doctor import DoctorSettings, diagnose
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings
from esper.tezzeret import compiler
from esper.utils.paths import cache_folder

pytestmark = pytest.mark.platform

SMALL = {"num_envs": 2, "rounds": 1, "horizon": 2, "features": 8, "lstm": 8, "epochs": 1, "task": "synthetic"}


def settings(out: Path, **more: object) -> TrainSettings:
    return TrainSettings(**{**SMALL, "out": str(out), "eval_envs": 0, "engine": {"steps_per_epoch": 1}, **more})


def test_a_step_runs_on_what_is_there() -> None:
    engine = esper.make("synthetic", 2, steps_per_epoch=1, val_samples=8)
    state, event = engine.step(engine.init(0), torch.zeros(2, dtype=torch.int64))
    assert torch.isfinite(event.epoch.loss).all() and state.epoch.tolist() == [1, 1]


def test_there_is_a_folder_for_caches() -> None:
    folder = cache_folder("trial")
    (folder / "file").write_text("x")
    (folder / "file").unlink()
    folder.rmdir()


@pytest.mark.parametrize("code", ["ascii", "cp1252"])
def test_training_ends_with_its_report_whatever_the_terminal_can_show(code: str, tmp_path: Path) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=code)
    train(settings(tmp_path / "run", progress="bar", eval_envs=6), stream)
    stream.flush()
    text = stream.buffer.getvalue().decode(code)
    assert "####" in text and ("+/-" in text or "±" in text)
    assert "±" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_training_in_another_thread(tmp_path: Path) -> None:
    """As a notebook's or a server's; Python lets the main thread alone set handlers of signals."""
    found = []
    thread = threading.Thread(target=lambda: found.append(train(settings(tmp_path / "run"), io.StringIO())))
    thread.start()
    thread.join()
    assert [learner.done for learner in found] == [1] and (tmp_path / "run" / "report.html").exists()


ABSENT = ["cuda:99", "gpu", "meta", "", "cpu:x", 3.5, None, "mtia", "hpu"]


@pytest.mark.parametrize("device", ABSENT)
def test_a_device_that_is_not_there_is_one_documented_error(device: object) -> None:
    with pytest.raises(ConfigError) as error:
        esper.make("synthetic", 2, device=device)
    assert str(error.value).startswith(f"device = {device!r}: ") and "\n" not in str(error.value)
    assert "expected one that is here: cpu" in str(error.value)


def test_the_doctor_says_what_is_here() -> None:
    out = io.StringIO()
    facts = diagnose(DoctorSettings(), out)
    assert facts["backends"]["eager"] == "runs" and facts["devices"][0] == "cpu"
    found = compiler.find_compiler()
    assert facts["compiler"] == (None if found is None else " ".join(found))
    assert (found is None) == any("install g++" in remedy for remedy in facts["remedies"])
    assert f"torch       {version('torch')}" in out.getvalue() and "backend native" in out.getvalue()


BARE = """
import pwd, sys
def absent(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = absent
from esper.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A user id without an entry, which a test that is no administrator cannot have."""


@pytest.mark.skipif(os.name != "posix", reason="users without an entry are a thing of POSIX")
def test_a_run_in_bare_surroundings(tmp_path: Path) -> None:
    """No HOME, no entry, no UTF-8, a compiler that is not there: speed and decoration go, the run stays."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "TMPDIR") if name in os.environ}
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "CXX": "/nowhere/c++", "OMP_NUM_THREADS": "1"}
    words = "train --task synthetic --num-envs 2 --rounds 1 --horizon 1 --eval-envs 6 --features 8 --lstm 8"
    words += " --engine steps_per_epoch=1 --backend eager --progress bar"
    root = Path(esper.__file__).parents[1]
    kept["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [kept.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", BARE, *words.split(), "--out", "run"],
        env=kept | bare, cwd=tmp_path, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert (tmp_path / "run" / "report.html").exists() and b"+/-" in done.stdout
