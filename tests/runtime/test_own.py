"""A task, a reward and a policy of one's own, named on the command line; and what a stranger's run may not import."""

import json
import os
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
from esper.tamiyo.policies import Decision, Diagnostics, from_mask
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

def scribbles(step):
    step.after.signals.val_accuracy.mul_(2)
    return reward(step)

def away(step):
    return {"one": torch.zeros(6, device="meta")}

async def awaits(step):
    return reward(step)

async def streams(step):
    yield reward(step)

def ends(step):
    return {"one": 1 / (step.structure.config.horizon - step.after.epoch.max().item()) * step.after.signals.val_loss}

def midway(step):
    return {"one": step.after.signals.val_loss * (1 / (2 - step.after.epoch[0].item()))}

def told(*given):
    return acts(lambda memory, seen: (memory, Decision(seen.mask.long().argmin(1), *given)))

def marks(memory, seen):
    seen.state.slots.alpha.add_(1)
    return memory, Decision(seen.mask.long().argmin(1))

def notes(memory, seen):
    seen.observation.fill_(7)
    return memory, Decision(seen.mask.long().argmin(1))

async def waits(memory, seen):
    return memory, Decision(seen.mask.long().argmin(1))

ROWS = torch.zeros(6)
marking, noting, waiting = acts(marks), acts(notes), acts(waits)
alone = acts(lambda memory, seen: Decision(seen.mask.long().argmin(1)))
elsewhere = acts(lambda memory, seen: (memory, Decision(torch.zeros(6, dtype=torch.int64, device="meta"))))
narrow = acts(lambda memory, seen: (memory, Decision(torch.zeros(6, dtype=torch.int32))))
column = acts(lambda memory, seen: (memory, Decision(torch.zeros(6, 1, dtype=torch.int64))))
pair, whole, flat = told((ROWS, ROWS)), told(Diagnostics(ROWS.long(), ROWS)), told(Diagnostics(ROWS, ROWS))
illegal = acts(lambda memory, seen: (memory, Decision(torch.full((6,), seen.mask.shape[1]))))
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
    **{
        f"--reward = 'py:ours:{name}': {said}": ["--reward", f"py:ours:{name}"]
        for name, said in {
            "scribbles": "changed the bits of after.signals.val_accuracy; expected its arguments untouched",
            "away": "gave {'one': 'float32 tensor [6] on meta'}; expected a dict of names to tensors [6] on cpu",
            "awaits": "called with 1 argument: gave a coroutine; expected def, not async def",
            "streams": "called with 1 argument: gave a async_generator; expected def, not async def",
            "ends": "called with 1 argument: ZeroDivisionError",
        }.items()
    },
    **{
        f"--policy = 'py:ours:{name}': {said}": ["--policy", f"py:ours:{name}"]
        for name, said in {
            "marking": "changed the bits of state.slots.alpha; expected its arguments untouched",
            "noting": "changed the bits of observation; expected its arguments untouched",
            "waiting": "act: gave a coroutine; expected def, not async def",
            "alone": "act gave Decision; expected its memory and a Decision, as a pair",
            "elsewhere": "act gave an action that is int64 tensor [6] on meta; expected int64 tensor [6] on cpu",
            "narrow": "act gave an action that is int32 tensor [6]; expected int64 tensor [6] on cpu",
            "column": "act gave an action that is int64 tensor [6, 1]; expected int64 tensor [6] on cpu",
            "pair": "act gave diagnostics that are tuple; expected None or Diagnostics",
            "whole": "act gave value that is int64 tensor [6]; expected floating tensor [6] on cpu",
            "flat": "act gave log_probs that is float32 tensor [6]; expected floating tensor [6, ",
        }.items()
    },
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


def test_a_reward_that_fails_at_the_end_is_found_at_the_door_and_one_that_fails_midway_leaves_no_run(folder, capsys):
    words = ["train", *TRAIN, "--task", "py:ours:task", "--horizon", "3", "--out", "run", "--reward"]
    for name, horizon in (("ends", "3"), ("ends", "1"), ("midway", "3")):
        assert main([*words, f"py:ours:{name}", "--horizon", horizon]) == 2
        said = capsys.readouterr().err
        assert f"--reward = 'py:ours:{name}': called with 1 argument: ZeroDivisionError" in said
        assert said.count("\n") == 1 and not (folder / "run").exists()
    (folder / "run").mkdir()
    (folder / "run" / "mine.txt").write_text("kept")
    assert main([*words, "py:ours:midway"]) == 2 and os.listdir(folder / "run") == ["mine.txt"]
    assert main([*words, "py:ours:reward"]) == 0
    assert main([*words, "py:ours:reward"]) == 2  # there is a run now
    (folder / "ours.py").write_text(MODULE.replace("def reward(step):", "def reward(step):\n    1 / 0"))
    sys.modules.pop("ours")
    kept = {path: path.read_bytes() for path in (folder / "run" / "checkpoints").rglob("*.*")}
    assert main([*words, "py:ours:reward", "--resume", "auto", "--rounds", "2"]) == 2
    assert kept and all(path.read_bytes() == data for path, data in kept.items())


def test_what_a_policy_may_not_do_is_counted_and_shown(folder, capsys):
    """The last action and one are refused at every decision, and carried out as WAIT."""
    words = ["evaluate", "--task", "py:ours:task", *SMALL, "--horizon", "3", "--policy"]
    assert main([*words, "py:ours:illegal", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["policies"]
    assert rows["py:ours:illegal"]["refused"]["values"] == [3] * 6 and rows["random"]["refused"]["mean"] == 0
    assert rows["py:ours:illegal"]["operations"]["WAIT"] == 1
    for name, shown in (("illegal", True), ("policy", False)):
        assert main([*words, f"py:ours:{name}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        head = next(line for line in lines if line.startswith("policy "))
        row = next(line for line in lines if line.startswith(f"py:ours:{name} "))
        assert head.endswith("  refused") == shown and row.endswith("  3.00 ± 0.00") == shown


def test_the_name_of_one_s_own_task_is_kept(folder):
    assert named("py:ours:READY").name == "py:ours:READY"
    assert named("py:ours:READY").settings == named("py:ours:task").settings
