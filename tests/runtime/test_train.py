"""The training command: resumable to the bit, honest about errors, and its files."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import esper.__main__
from esper.leyline.actions import OPTIONAL_OPS, Op
from esper.runtime.best_rounds import SMOOTHING
from esper.runtime.interrupt import Stopped
from esper.runtime.policy_checkpoint import WHICH, load_run
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings

ROUNDS = 7


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    small = {"features": 8, "lstm": 8, "minibatches": 2, "epochs": 2, "horizon": 4}
    numbers = {"engine": {"steps_per_epoch": 1, "host_lr": 0.02}, "rewards": {"rent_weight": 0.25}}
    return TrainSettings(task="synthetic", num_envs=4, rounds=ROUNDS, eval_envs=6, out=str(out), **small, **numbers)


@pytest.fixture(scope="module")
def whole(settings):
    out = io.StringIO()
    train(settings, out)
    return out.getvalue()


class Interrupting(io.StringIO):
    """Asks its own process to stop when a line with these words is written."""

    def __init__(self, words):
        super().__init__()
        self.words = words

    def flush(self):
        if self.words in self.getvalue():
            self.words = "\x00"
            os.kill(os.getpid(), signal.SIGTERM)


def metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def chained(folder):
    return [(line["return"], line["environments_hash"], line["learner_hash"]) for line in metrics(folder)]


def assert_same_checkpoint(actual, expected, which):
    actual, expected = load_run(actual, which), load_run(expected, which)
    for loaded in (actual, expected):
        del loaded.table["metrics"]  # seconds are among them
    assert actual.table == expected.table and actual.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(actual.tensors[name], tensor), name


def test_a_resumed_run_ends_in_the_same_bits(settings, whole, tmp_path):
    """Interrupted by SIGTERM after its sixth round, taken up elsewhere from the directory, interrupted in the
    evaluation, and taken up again in place. A line without its checkpoint does not count.
    """
    part = replace(settings, out=str(tmp_path / "part"), tensorboard=False)
    out = Interrupting("round   6/7")
    with pytest.raises(Stopped, match="SIGTERM") as stopped:
        train(part, out)
    assert stopped.value.status == 143
    assert f"SIGTERM: stopped after round 6; python -m esper train --resume {part.out} goes on" in out.getvalue()
    assert load_run(tmp_path / "part").table["done"] == 6
    assert "stopped after 6 of 7 rounds" in (tmp_path / "part" / "report.html").read_text()
    assert not (tmp_path / "part" / "evaluation.json").exists()

    with (tmp_path / "part" / "metrics.jsonl").open("a") as file:  # a round whose checkpoint was never written
        file.write('{"round": 7, "return": 1e9}\n{"round": 8, "ret')

    out = Interrupting("playing random")
    with pytest.raises(Stopped):
        train(replace(settings, out=str(tmp_path / "other"), resume=str(tmp_path / "part")), out)
    assert "stopped after round 7" in out.getvalue() and not (tmp_path / "other" / "evaluation.json").exists()
    resumed = ["train", "--resume", str(tmp_path / "other")]  # needs nothing but the directory
    assert esper.__main__.main(resumed) == 0

    for which in WHICH:
        assert_same_checkpoint(tmp_path / "other", Path(settings.out), which)
        assert any(name.startswith("adam.") for name in load_run(tmp_path / "other", which).tensors)
    wanted = chained(settings.out)
    assert chained(tmp_path / "other") == wanted and len(set(wanted)) == ROUNDS
    evaluations = [json.loads((Path(f) / "evaluation.json").read_text()) for f in (settings.out, tmp_path / "other")]
    for report in evaluations:
        for row in report["policies"].values():
            del row["seconds"]
    assert evaluations[0] == evaluations[1]


def test_another_process_killed_and_taken_up_computes_the_same_bits(settings, whole, tmp_path):
    """The chains of the rounds, to the last, of a run that another process begins and does not live to end."""
    folder = tmp_path / "killed"
    words = ["train", "--config", str(Path(settings.out) / "config.json"), "--out", str(folder), "--eval-envs", "0"]
    command = [sys.executable, "-m", "esper", *words, "--save-every", "0.001"]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(metrics(folder) if (folder / "metrics.jsonl").exists() else ()) < 3:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL and 3 <= len(metrics(folder)) < ROUNDS
    begun = chained(folder)
    assert esper.__main__.main(["train", "--resume", str(folder)]) == 0
    assert chained(folder) == chained(settings.out) and begun == chained(settings.out)[: len(begun)]


def test_the_best_policy_is_the_one_after_the_best_rounds_in_a_row(settings, whole):
    """Found again in the metrics by brute force; the first full window counts from its own end on."""
    returns = [row["return"] for row in metrics(settings.out)]
    ends = range(SMOOTHING, ROUNDS + 1)
    means = {end: sum(returns[end - SMOOTHING : end]) / SMOOTHING for end in ends}
    best = load_run(Path(settings.out), "best").table
    assert best["done"] == max(means, key=means.get) and best["best"] == pytest.approx(max(means.values()))
    assert len(set(means.values())) == ROUNDS - SMOOTHING + 1


def test_a_run_directory_tells_what_was_run(settings, whole):
    folder = Path(settings.out)
    names = ["checkpoints", "config.json", "evaluation.json", "lock", "metrics.jsonl", "owner.json", "report.html"]
    names += ["blueprint_table.json", "resolved.json", "seeds.jsonl", "versions.json", "watch.jsonl"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert len(kept) <= settings.keep and kept[-1] == f"round-{ROUNDS:06d}"
    assert json.loads((folder / "config.json").read_text()) == asdict(settings)
    resolved = json.loads((folder / "resolved.json").read_text())["synthetic"]
    assert resolved["config"]["steps_per_epoch"] == 1 and resolved["config"]["sample_order"] == "shared"
    assert resolved["hypers"]["host_lr"] == pytest.approx(0.02) and resolved["rewards"]["rent_weight"] == 0.25
    told = {"train": 512, "validation": 128, "test": 256}  # twice an epoch's 64 training samples decide
    assert resolved["data"]["samples"] == told and "of 256 validation samples 128 are used" in resolved["data"]["split"]
    assert json.loads((folder / "versions.json").read_text())["torch"] == version("torch")
    rows = metrics(folder)
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1)) and all(row["refused"] == 0 for row in rows)
    for row in rows:
        assert sum(row[f"share_{op.name.lower()}"] for op in Op if op not in OPTIONAL_OPS) == pytest.approx(1, abs=1e-6)
        assert (
            0 < row["validation_seconds"] < row["host_seconds"] <= row["collect_seconds"] and row["learn_seconds"] > 0
        )
        assert row["collect_seconds"] + row["learn_seconds"] == pytest.approx(row["seconds"])


def test_what_training_prints(settings, whole):
    rows = metrics(settings.out)
    assert whole.count("round   ") == ROUNDS and "round   7/7" in whole
    counted = rows[1:]
    share = 100 * (1 - sum(r["host_seconds"] for r in counted) / sum(r["seconds"] for r in counted))
    validation = 100 * sum(r["validation_seconds"] for r in counted) / sum(r["host_seconds"] for r in counted)
    assert f"validation: {validation:.1f} % of a step; " in whole
    assert f"other than the hosts: {share:.1f} % of a round" in whole
    assert whole.count("  validation  ") == ROUNDS
    assert "synthetic, 6 environments from seed 1, 4 decisions, reward utility" in whole
    assert whole.splitlines()[-1] == str(Path(settings.out) / "report.html")


def test_other_settings_or_a_taken_directory_are_refused(settings, whole, capsys, tmp_path):
    words = ["train", "--task", "synthetic", "--out", settings.out]

    def refused(*more):
        assert esper.__main__.main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert f"holds a run already; python -m esper train --resume {settings.out} goes on with it" in refused()
    error = refused("--resume", "auto", "--num-envs", "32", "--engine", "seed_lr=0.5")
    assert "written with other settings (" in error and "num_envs 4, not 32" in error and "'seed_lr': 0.5" in error
    assert f"--rounds = 3: {settings.out} is of a run of 7; expected as many or more" in refused(
        "--resume", "auto", "--rounds", "3"
    )
    assert "no such file" in refused("--resume", settings.out + "-none")
    (tmp_path / "checkpoint.npz").write_bytes(b"something else")
    words[-1] = str(tmp_path)
    assert "expected an unused directory" in refused("--resume", settings.out)
    words[-1] = str(tmp_path / "unused")
    assert "not readable" in refused("--resume", str(tmp_path))
    assert not (tmp_path / "unused").exists()


WRONG = {
    ("--rewards", "rent=1"): "--rewards: rewards.rent: unknown; known are gamma, ",
    ("--rewards", "rent_weight=-1"): "--rewards: rewards.rent_weight = -1.0: expected 0 to 1000",
    ("--rewards", "gamma=0.9"): "--rewards: gamma: is a setting of its own (--gamma)",
    ("--engine", "host_lrr=1"): "--engine: make('digits'): unknown setting 'host_lrr'; did you mean 'host_lr'?",
    ("--engine", "steps_per_epoch=1.5"): "--engine: config.steps_per_epoch = 1.5: expected an integer >= 1",
    ("--engine", "host_optimizer=rms"): "--engine: config.host_optimizer = 'rms': expected adam or adamw or sgd",
    ("--engine", "num_envs=3"): "--engine: num_envs: is a setting of its own (--num-envs)",
    ("--engine", "host_lr=fast"): "--engine: hypers.host_lr = 'fast': expected a number",
    ("--eval-envs", "3"): "--eval-envs = 3: expected 0 (no evaluation) or an integer >= 6",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_numbers_name_flag_value_and_what_is_allowed(words, capsys, tmp_path):
    assert esper.__main__.main(["train", "--out", str(tmp_path / "x"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"esper train: {WRONG[words]}") and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_tables_of_a_file_are_the_flags(settings, tmp_path, monkeypatch):
    """The same run from a TOML file: the same settings in force, the same first round."""
    lines = ['task = "synthetic"', "num_envs = 4", f"rounds = {ROUNDS}", "features = 8", "lstm = 8", "minibatches = 2"]
    lines += ["epochs = 2", "horizon = 4", "eval_envs = 0", 'progress = "off"']
    lines += ["[engine]", "steps_per_epoch = 1", "host_lr = 0.02", "[rewards]", "rent_weight = 0.25"]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    out = Path(tmp_path / "out")
    assert esper.__main__.main(["train", "--config", str(tmp_path / "run.toml"), "--out", str(out)]) == 0
    assert json.loads((out / "resolved.json").read_text())["synthetic"]["hypers"]["host_lr"] == pytest.approx(0.02)
    assert load_run(out).table["settings"] == load_run(Path(settings.out)).table["settings"]
    assert [row["return"] for row in metrics(out)] == [row["return"] for row in metrics(settings.out)]
    assert "Nothing was played" in (out / "report.html").read_text()


def test_interrupting_what_cannot_be_saved_is_one_line(capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started in the background ignores it
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert esper.__main__.main(["evaluate"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "esper evaluate: interrupted\n"


def test_the_commands_are_listed(capsys):
    for words in ([], ["--help"]):
        assert esper.__main__.main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[2:]] == [*esper.__main__.COMMANDS, *esper.__main__.WORDS]
        assert all(len(line.split()) > 3 for line in lines[2:])
