"""Bandits by the evaluation and inspection commands: statistics kept from run to run, records, the report, the door."""

import io
import json

import pytest
import torch

import esper.__main__
from esper.leyline.actions import Op
from esper.runtime.arm_files import recall_statistics
from esper.runtime.evaluate import EvaluateSettings, evaluate
from esper.runtime.inspect import InspectSettings, inspect
from esper.runtime.policies import NAMED, bandit_of
from esper.runtime.rollout import rollout
from esper.runtime.scene import Rules, build_scene
from esper.tamiyo.bandits import bandit_policy
from esper.tamiyo.selection import STRATEGIES

FEW = {"task": "synthetic", "engine": {"steps_per_epoch": 1}, "horizon": 7, "num_envs": 6}
BANDIT = {"cool_down": 1, "max_active": 3}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Two evaluations one after the other on two seeds, the second with what the first left."""
    folder = tmp_path_factory.mktemp("kept")
    reports = []
    for seed in (2, 3):
        asked = {"statistics": str(folder / "arms.npz"), "records": str(folder / f"{seed}.jsonl"), "bandit": BANDIT}
        names = "ucb,thompson,wait"
        reports.append(evaluate(EvaluateSettings(policies=names, seed=seed, **asked, **FEW), io.StringIO()))
    return folder, reports


def test_kept_and_taken_up_statistics_are_those_of_one_that_went_on(played):
    """Two episodes with one memory in between against two commands with a file, bit for bit."""
    folder, reports = played
    rules = Rules(task="synthetic", engine=FEW["engine"], horizon=7, bandit=BANDIT)
    scene = build_scene(rules, 6, "auto")
    bandits = {name: bandit_of(scene, name) for name in ("ucb", "thompson")}
    kept = recall_statistics(str(folder / "arms.npz"), scene, bandits)
    for name, bandit in bandits.items():
        statistics = None
        for seed in (2, 3):
            policy = bandit_policy(name, bandit, statistics)
            outcome = rollout(scene.engine, policy, seed, scene.mode, scene.params)[1]
            statistics = outcome.memory.statistics
        assert all(torch.equal(kept[name].get(field), value) for field, value in statistics.items())
        assert reports[1]["policies"][name]["total_reward"]["values"] == outcome.total_reward.tolist()
        lines = [json.loads(line) for line in (folder / "3.jsonl").read_text().splitlines()]
        mine = [row for row in lines if row["policy"] == name]
        assert len(mine) == 6 * 7
        for row in mine:
            assert Op[row["command"]] == int(outcome.trace.op[row["epoch"] - 1, row["env"]])
            assert row["reason"] and 0 <= row["confidence"] <= 1 and row["risk"]["level"] in range(1, 6)
            assert (row["mode"] is not None) == (row["score"] is not None) == (row["command"] == "GERMINATE")


def test_the_report_has_confidence_and_exploration(played):
    _, (first, second) = played
    for report in (first, second):
        row = report["policies"]["ucb"]
        assert row["confidence"]["count"] > 6 and 0 <= row["confidence"]["brier"] <= 1
        assert report["policies"]["wait"]["confidence"] is None
        assert report["policies"]["wait"]["exploring_by_third"] is None
    assert first["policies"]["ucb"]["exploring_by_third"][0] == 1.0, "nothing was tried before"
    out = io.StringIO()
    evaluate(EvaluateSettings(policies="softmax,epsilon,first", bandit=BANDIT, **FEW), out)
    assert "Brier" in out.getvalue() and max(map(len, out.getvalue().splitlines())) <= 130


@pytest.mark.parametrize("name", [*STRATEGIES, "first"])
def test_a_bandit_can_be_inspected(name):
    few = {key: value for key, value in FEW.items() if key != "num_envs"}
    story = inspect(InspectSettings(policy=name, bandit=BANDIT, **few), out := io.StringIO())
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 110
    for row in story["decisions"]:
        record = row["record"]
        assert row["action"].split()[0] == record["command"] and record["reason"] in text
        assert all("GERMINATE" in other["action"] for other in record["alternatives"])
    assert "explore, confidence" in text


def test_names_and_numbers_are_checked_at_the_door(played, capsys, tmp_path):
    folder, _ = played
    kept, task = str(folder / "arms.npz"), ["--task", "synthetic", "--num-envs", "6"]
    (tmp_path / "bad.npz").write_bytes(b"PK\0\0")
    for words, line in (
        (["--policies", "ucb,ucd"], "--policies = 'ucb,ucd': expected different names among heuristic, random"),
        (["--policies", "ucb,ucb"], "--policies = 'ucb,ucb': expected different names"),
        (
            ["--policies", "ucb", "--bandit", "recent=60"],
            "--bandit: bandit.recent = 60: expected at most the window, 50",
        ),
        (["--policies", "ucb", "--bandit", "urgency=1"], "--bandit: urgency: unknown; known are window, recent"),
        (
            ["--policies", "ucb", "--statistics", str(tmp_path / "bad.npz")],
            "bad.npz: its bytes do not match their digest",
        ),
        (["--policies", "ucb", "--statistics", kept, "--num-envs", "7"], "ucb: has envs 6, not 7"),
        (["--policies", "ucb", "--statistics", kept, "--bandit", "window=60"], "ucb: has window 50, not 60"),
        (["--policies", "ucb", "--engine", "slots="], "no seed can be germinated"),
        (["--records", str(tmp_path / "no" / "x")], "expected a place for a file"),
    ):
        assert esper.__main__.main(["evaluate", *task, *words]) == 2, words
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1, words
    assert esper.__main__.main(["inspect", "--policy", "ucd"]) == 2
    assert set(STRATEGIES) < NAMED.keys()
