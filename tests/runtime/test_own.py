"""A task, a reward and a policy of one's own, named on the command line; and what a stranger's run may not import."""

import json
import sys

import pytest

from esper.__main__ import main
from esper.leyline.config import ConfigError
from esper.runtime.own import load
from esper.runtime.tasks import named

MODULE = """
import pathlib
import torch
from esper.runtime.tasks import synthetic
from esper.tamiyo.policies import from_mask
from esper.tamiyo.scripted import wait

pathlib.Path("imported").touch()

def task():
    found = synthetic()
    return found._replace(settings=found.settings | {"steps_per_epoch": 1, "batch_size": 4, "val_samples": 4})

READY = task()

def reward(step):
    return {"accuracy": step.after.signals.val_accuracy / 100, "one": torch.ones_like(step.after.signals.val_loss)}

def policy(engine):
    return wait_policy(engine)

NUMBER = 3

def needs(what):
    return what

def fails(*given):
    raise RuntimeError("boom")

def floats(step):
    return {"one": 1.0}

def short(step):
    return {"one": torch.ones(2)}

def nan(step):
    return {"one": step.after.signals.val_loss * torch.nan}

def unnamed(step):
    return {1: step.after.signals.val_loss}

def renamed(step):
    return {f"after {int(step.after.epoch[0])}": step.after.signals.val_loss}

def later(step):
    lost = (torch.arange(6) < 3) & (step.after.epoch == 2)
    return {"one": torch.where(lost, torch.nan, step.after.signals.val_loss)}

def at_last(step):
    return {"one": torch.where(step.ends, torch.inf, step.after.signals.val_loss)}

def acts(give):
    return lambda engine: wait_policy(engine)._replace(act=give)

def wait_policy(engine):
    return from_mask("mine", wait(engine.codec))

forgetful = acts(lambda memory, seen: seen.mask.long().argmin(1))
breaks = acts(lambda memory, seen: 1 / 0)

"""
SMALL = ["--num-envs", "6", "--horizon", "1"]
TRAIN = [*SMALL, "--rounds", "1", "--eval-envs", "0", "--progress", "off", "--features", "8", "--lstm", "8"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "ours.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "ours", raising=False)
    return tmp_path


def test_one_s_own_task_reward_and_policy_train_are_recorded_and_never_imported_unasked(folder, monkeypatch, capsys):
    own = ["--task", "py:ours:task", "--reward", "py:ours:reward"]
    assert main(["train", *own, *TRAIN, "--out", "run"]) == 0
    config = json.loads((folder / "run" / "config.json").read_text())
    assert (config["task"], config["reward"]) == ("py:ours:task", "py:ours:reward")
    capsys.readouterr()
    assert main(["evaluate", "--run", "run", *own, *SMALL, "--policy", "py:ours:policy", "--json", "true"]) == 0
    report = json.loads(capsys.readouterr().out)
    mine, waiting = report["policies"]["py:ours:policy"], report["policies"]["wait"]
    assert mine["total_reward"] == waiting["total_reward"]
    expected = [1 + value / 100 for value in waiting["val_accuracy"]["values"]]
    assert waiting["total_reward"]["values"] == pytest.approx(expected, rel=1e-5)
    monkeypatch.delitem(sys.modules, "ours")
    (folder / "imported").unlink()
    for words in (["evaluate", "--run", "run", *SMALL], ["inspect", "--run", "run", "--horizon", "1"]):
        assert main(words) == 2
        assert "--task py:ours:task" in capsys.readouterr().err
        assert main([*words, "--task", "synthetic"]) == 2  # the reward is the run's, too
        assert "--reward py:ours:reward" in capsys.readouterr().err
    assert main(["train", *TRAIN, "--out", "run", "--resume", "auto"]) == 2
    assert not (folder / "imported").exists() and "ours" not in sys.modules


def test_inspection_takes_a_policy_of_one_s_own(folder, capsys):
    words = ["inspect", "--task", "py:ours:READY", "--policy", "py:ours:policy", "--horizon", "1", "--json", "true"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["policy"] == "py:ours:policy"


WRONG = {
    "py:": "expected py:module:name",
    "py:ours": "expected py:module:name",
    "py:ours:a b": "expected py:module:name",
    "py:no_such_module_at_all:x": "ModuleNotFoundError",
    "py:ours:tasks": "has no 'tasks'; expected a name that it has; did you mean 'task'?",
    "py:broken:x": "ZeroDivisionError",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_leads_nowhere_is_one_line(name, folder):
    (folder / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError) as error:
        load("--task", name)
    assert WRONG[name] in str(error.value) and "\n" not in str(error.value) and repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "--task", "py:ours:NUMBER"], "found a int; expected an esper.Task"),
        (["evaluate", "--task", "synthetic", "--reward", "py:ours:NUMBER"], "found a int; expected a function"),
        (["evaluate", "--task", "synthetic", "--policy", "py:ours:NUMBER"], "found a int; expected a function from"),
        (["evaluate", "--task", "synthetic", "--policy", "mine"], "expected py:module:name"),
        (["evaluate", "--task", "synthetic", "--reward", "shapd"], "--reward = 'shapd': expected shaped or"),
        (["inspect", "--task", "synthetic", "--policy", "mine"], "or py:module:name"),
        (["train", "--task", "synthetic", "--reward", "fame", "--out", "run"], "--reward = 'fame': expected shaped or"),
    ],
)
def test_what_is_no_task_reward_or_policy_is_refused(words, said, folder, capsys):
    assert main(words) == 2
    lines = capsys.readouterr().err
    assert said in lines and lines.count("\n") == 1 and not (folder / "run").exists()


FAILING = {
    "task = 'py:ours:needs': called with 0 arguments: TypeError": ["--task", "py:ours:needs"],
    "task = 'py:ours:fails': called with 0 arguments: RuntimeError: boom": ["--task", "py:ours:fails"],
    "--reward = 'py:ours:fails': called with 1 argument: RuntimeError: boom": ["--reward", "py:ours:fails"],
    "--reward = 'py:ours:floats': gave {'one': 'float'}; expected a dict of names to tensors [6]": [
        "--reward",
        "py:ours:floats",
    ],
    "--reward = 'py:ours:short': gave {'one': 'float32 tensor [2]'}; expected a dict of names to tensors [6]": [
        "--reward",
        "py:ours:short",
    ],
    "--reward = 'py:ours:needs': gave EnvStep; expected a dict of names to tensors [6]": ["--reward", "py:ours:needs"],
    "--reward = 'py:ours:unnamed': gave {1: 'float32 tensor [6]'}; expected a dict of names": [
        "--reward",
        "py:ours:unnamed",
    ],
    "--reward = 'py:ours:nan': gave one [nan, nan, nan, nan, nan, nan] after a first step; expected finite numbers": [
        "--reward",
        "py:ours:nan",
    ],
    "--policy = 'py:ours:task': called with 1 argument: TypeError": ["--policy", "py:ours:task"],
    "--policy = 'py:ours:breaks': act: ZeroDivisionError": ["--policy", "py:ours:breaks"],
    "--policy = 'py:ours:forgetful': act gave int64 tensor [6]; expected its memory and a Decision": [
        "--policy",
        "py:ours:forgetful",
    ],
}


@pytest.mark.parametrize("said", FAILING)
def test_what_one_s_own_function_does_wrong_is_one_line_before_anything_is_written(said, folder, capsys):
    words = FAILING[said]
    given = words if words[0] == "--task" else ["--task", "py:ours:task", *words]
    commands = {"evaluate": SMALL, "train": [*TRAIN, "--out", "run"], "train --dry-run": TRAIN}
    for command, sizes in commands.items():
        if words[0] == "--policy" and command != "evaluate":
            continue
        assert main([*command.split(), *given, *sizes]) == 2
        lines = capsys.readouterr().err
        assert said in lines and lines.strip().count("\n") == 0 and not (folder / "run").exists()


def test_a_reward_that_ceases_to_be_finite_is_left_out_and_that_is_said(folder, capsys):
    """The second of four rewards is lost in half of the environments: their episodes teach nothing."""
    words = [*TRAIN, "--task", "py:ours:task", "--horizon", "4", "--rounds", "2"]
    assert main(["train", *words, "--reward", "py:ours:later", "--out", "run"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(said) == 1 and "50 % of all decisions, from round 1 on" in said[0]
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["left_out"] for row in rows] == [pytest.approx(0.5)] * 2
    assert all(isinstance(row["return"], float) and isinstance(row["explained_variance"], float) for row in rows)


def test_rewards_of_which_nothing_can_be_learned_end_the_run(folder, capsys):
    words = ["train", *TRAIN, "--task", "py:ours:task", "--horizon", "2", "--out", "run"]
    assert main([*words, "--reward", "py:ours:at_last"]) == 2
    assert "--reward = 'py:ours:at_last': round 1: in no episode are all" in capsys.readouterr().err
    assert main(["train", *TRAIN, "--horizon", "2", "--task", "py:ours:task", "--reward", "py:ours:renamed"]) == 2
    assert "gave ['after 2']; expected ['after 1'] as in the first step" in capsys.readouterr().err


def test_the_name_of_one_s_own_task_is_kept(folder):
    assert named("py:ours:READY").name == "py:ours:READY"
    assert named("py:ours:READY").settings == named("py:ours:task").settings
