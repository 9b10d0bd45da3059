"""The training and evaluation commands: resumable to the bit, honest about errors, and their files."""

import io
import json
import os
import signal
from dataclasses import replace

import pytest
import torch

import esper.__main__
from esper.runtime.evaluate import EvaluateSettings, evaluate
from esper.runtime.train import TrainSettings, train
from esper.urza.checkpoint import load


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    small = {"features": 8, "lstm": 8, "minibatches": 2, "epochs": 2, "horizon": 4, "compile": False}
    return TrainSettings(task="synthetic", num_envs=4, rounds=3, out=str(out), **small)


@pytest.fixture(scope="module")
def whole(settings):
    out = io.StringIO()
    train(settings, out)
    return out.getvalue()


def test_a_resumed_run_ends_in_the_same_bits(settings, whole, tmp_path, monkeypatch):
    """Interrupted by SIGTERM in its second round, then resumed."""
    part = replace(settings, out=str(tmp_path / "part"))
    out = InterruptingStream()
    train(part, out)
    assert "stopped after round 1" in out.getvalue() and load(tmp_path / "part" / "checkpoint.npz").table["done"] == 1
    train(replace(part, resume=True), io.StringIO())
    expected, actual = (load(folder / "checkpoint.npz") for folder in (_folder(settings), tmp_path / "part"))
    assert actual.table == expected.table and actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(actual.tensors[name], tensor), name
    assert any(name.startswith("adam.") for name in expected.tensors)
    wanted = [line["return"] for line in _metrics(_folder(settings))]
    assert [line["return"] for line in _metrics(tmp_path / "part")] == wanted and len(wanted) == 3


class InterruptingStream(io.StringIO):
    """Asks its own process to stop after the first line."""

    def flush(self):
        if self.getvalue().count("round") == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def _folder(settings):
    from pathlib import Path

    return Path(settings.out)


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_directory_tells_what_was_run(settings, whole):
    folder = _folder(settings)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.npz",
        "config.json",
        "metrics.jsonl",
        "versions.json",
    ]
    assert json.loads((folder / "config.json").read_text())["num_envs"] == 4
    assert json.loads((folder / "versions.json").read_text())["torch"] == torch.__version__
    rows = _metrics(folder)
    assert [row["round"] for row in rows] == [1, 2, 3] and all(row["refused"] == 0 for row in rows)
    assert whole.count("\n") == 3 and "round    3/3" in whole


def test_other_settings_or_a_taken_directory_are_refused(settings, whole, capsys):
    words = ["train", "--task", "synthetic", "--compile", "false", "--out", settings.out]
    assert esper.__main__.main(words) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert esper.__main__.main([*words, "--resume", "true"]) == 2
    assert "written with other settings (" in capsys.readouterr().err
    assert esper.__main__.main(["train", "--out", settings.out + "-none", "--resume", "true"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_evaluation_is_paired_and_repeatable(settings, whole):
    asked = EvaluateSettings(
        run=settings.out, task="synthetic", num_envs=6, compile=False, grow="conv_light", json=True
    )
    out = io.StringIO()
    report = evaluate(asked, out)
    assert json.loads(out.getvalue()) == report
    players = report["players"]
    assert list(players) == ["learned", "heuristic", "random", "wait", "grow conv_light"]
    assert players["wait"]["added"]["mean"] == 0 and "no seed was ever germinated" in players["wait"]["red_flags"]
    assert players["wait"]["operations"]["WAIT"] == 1.0
    difference = report["first_minus"]["wait"]["accuracy"]["mean"]
    assert difference == pytest.approx(players["learned"]["accuracy"]["mean"] - players["wait"]["accuracy"]["mean"])
    again = evaluate(asked, io.StringIO())
    for name, row in players.items():
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in again["players"][name].items() if k != "seconds"
        }
    table = io.StringIO()
    evaluate(replace(asked, json=False, grow=""), table)
    assert "paired differences, learned minus" in table.getvalue() and "red flags" in table.getvalue()
