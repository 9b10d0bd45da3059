"""A sweep: every member is the run that its words make, what is whole is not run again, and the table is its means."""

import json

import pytest
import torch

import esper.__main__
from esper.nissa.sinks import METRICS
from esper.runtime.sweep import SweepSettings, plan
from esper.runtime.sweep_table import Member, sweep_table
from esper.utils.settings import SettingsError

SMALL = ["--task", "synthetic", "--backend", "eager", "--num-envs", "2", "--rounds", "1", "--horizon", "2"]
SMALL += ["--eval-envs", "0", "--features", "8", "--lstm", "8", "--head", "8", "--epochs", "1"]
SMALL += ["--engine", "steps_per_epoch=1,batch_size=4,val_samples=8"]


def test_a_sweep_is_its_runs_and_goes_on_where_it_was(tmp_path, capsys):
    command = ["sweep", "--out", str(tmp_path / "s"), "--seeds", "4", "--progress", "lines", "--processes", "2"]
    command += ["--vary", "lr=0.0+0.01", "--", "train", *SMALL]
    assert esper.__main__.main(command) == 0
    said = capsys.readouterr().out
    folders = sorted(path for path in (tmp_path / "s").iterdir() if path.is_dir())
    assert [path.name for path in folders] == ["lr-0.0,seed-4", "lr-0.01,seed-4"] and "2 runs, 0 of them whole" in said
    alone = ["train", *SMALL, "--threads", "1", "--lr", "0.01", "--seed", "4", "--out", str(tmp_path / "alone")]
    assert esper.__main__.main([*alone, "--progress", "off"]) == 0
    one, other = (json.loads((path / METRICS).read_text()) for path in (tmp_path / "alone", folders[1]))
    one, other = (
        {name: value for name, value in row.items() if not name.endswith(("seconds", "memory_bytes", "memory_left"))}
        for row in (one, other)
    )
    assert one == other
    (folders[0] / "report.html").unlink()
    written = (folders[1] / "config.json").stat().st_mtime_ns
    capsys.readouterr()
    assert esper.__main__.main(command) == 0
    assert "2 runs, 1 of them whole" in capsys.readouterr().out and (folders[0] / "report.html").exists()
    assert (folders[1] / "config.json").stat().st_mtime_ns == written
    assert esper.__main__.main([*command, "--gamma", "0.9"]) == 2
    assert "a sweep of train --task synthetic" in capsys.readouterr().err


def test_the_grid_is_every_choice_with_every_seed():
    settings = SweepSettings(
        out="x", vary={"lr": (0.1, 0.2), "engine.host_lr": 0.05, "reward": ("loss", "sparse")}, seeds="1,7"
    )
    found = plan(settings, ["--task", "digits"])
    assert len(found) == 8 == len({each.folder for each in found})
    first = " ".join(found[0].words)
    assert (
        "--lr 0.1 --engine host_lr=0.05 --reward loss --seed 1 --out x/lr-0.1,engine.host_lr-0.05,reward-loss,seed-1"
        in first
    )


@pytest.mark.parametrize(
    ("vary", "seeds", "words", "expected"),
    [
        ({"learning": 1}, "1", [], "--vary: learning: unknown"),
        ({"seed": 1}, "1", [], "--vary: seed: unknown"),
        ({"lr.x": 1}, "1", [], "--vary: lr.x: unknown"),
        ({"lr": (0.1, -1)}, "1", [], "lr"),
        ({}, "1,1", [], "--seeds = '1,1': expected different integers"),
        ({}, "1", ["--nothing", "1"], "--nothing"),
    ],
)
def test_what_no_run_takes_is_told_before_any_begins(vary, seeds, words, expected):
    with pytest.raises(SettingsError, match=expected):
        plan(SweepSettings(vary=vary, seeds=seeds), words)


def test_the_table_has_means_over_seeds_and_intervals_of_six(tmp_path):
    """Against Student's t by hand: the quantile of 5 degrees of freedom is 2.571."""
    members, returns = [], {"a": [1.0, 2.0, 4.0, 3.0, 5.0, 9.0], "b": [7.0, 8.0]}
    for name, values in returns.items():
        for seed, value in enumerate(values):
            folder = tmp_path / f"{name}{seed}"
            folder.mkdir()
            row = {"round": 1, "return": value, "val_accuracy": 50.0}
            (folder / METRICS).write_text(json.dumps(row) + "\n")
            members.append(Member({"reward": name}, seed, folder, ""))
    members.append(Member({"reward": "c"}, 0, tmp_path / "none", "ended with status 3"))
    table, report = sweep_table(members)
    assert [row["settings"] for row in report["rows"]] == ["reward = b", "reward = a", "reward = c"]
    half = 2.571 * torch.tensor(returns["a"]).std().item() / 6**0.5
    assert report["rows"][1]["return"]["half"] == pytest.approx(half, rel=2e-3)
    assert "| reward = b | 2 | 7.50 (7.00 to 8.00) |" in table and f"| reward = a | 6 | 4.00 ± {half:.2f} |" in table
    assert "| reward = c | 0 |" in table and "failed: none: ended with status 3" in table
