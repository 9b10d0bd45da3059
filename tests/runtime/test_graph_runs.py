"""Runs of a graph policy: on two tasks, taken up again, played on a third, and told apart from those of the other."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esper.__main__ import main
from esper.runtime.evaluate import EvaluateSettings, evaluate
from esper.runtime.policy_checkpoint import SERIES, load_policy, load_run
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings
from esper.urza import series
from esper.urza.checkpoint import Checkpoint, CheckpointError

SMALL = {"features": 8, "lstm": 8, "head": 8, "minibatches": 2, "epochs": 1, "horizon": 2, "num_envs": 2}
TINY = {"steps_per_epoch": 1, "batch_size": 4, "val_samples": 4}
FEW = {"engine": TINY, "backend": "eager", "eval_envs": 0, "progress": "off"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tmp_path_factory.mktemp("runs") / name for name in ("graph", "part", "recurrent")}


@pytest.fixture(scope="module")
def graph(folders):
    """Two tasks of different hosts, blueprints and slots."""
    tasks, often = "synthetic,synthetic_tokens", {"save_every": 1e-6, "keep": 100}
    made = TrainSettings(
        task=tasks, policy_network="graph", rounds=2, out=str(folders["graph"]), **often, **SMALL, **FEW
    )
    train(made, io.StringIO())
    return made


@pytest.fixture(scope="module")
def recurrent(folders):
    made = TrainSettings(task="digits", rounds=1, out=str(folders["recurrent"]), **SMALL, **FEW)
    train(made, io.StringIO())
    return made


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(row["environments_hash"], row["learner_hash"]) for row in map(json.loads, lines)]


def test_a_run_is_taken_up_to_the_bit(graph, folders):
    """From within a round, after an episode of the first task and a part of the second's."""
    place = series.member(folders["graph"] / SERIES, series.Moment(rounds=1, steps=SMALL["horizon"] + 1))
    assert place.is_dir()
    train(replace(graph, out=str(folders["part"]), resume=str(place)), io.StringIO())
    assert rows(folders["part"]) == rows(folders["graph"]) and len(rows(folders["part"])) == 2
    whole, again = load_run(folders["graph"]).tensors, load_run(folders["part"]).tensors
    assert whole.keys() == again.keys() and all(torch.equal(again[name], value) for name, value in whole.items())


def test_it_plays_a_task_that_it_was_not_trained_on(graph):
    asked = EvaluateSettings(run=graph.out, task="digits_v1", num_envs=6, horizon=2, backend="eager", json=True)
    report = evaluate(replace(asked, policies="wait", engine=TINY), io.StringIO())
    learned = report["policies"]["learned"]
    assert report["task"] == "digits_v1" and learned["operations"]["GERMINATE"] > 0
    assert learned["germinated"]["mean"] > 0


def test_a_recurrent_policy_that_knows_nothing_of_a_task_says_so(recurrent, capsys):
    words = ["evaluate", "--run", recurrent.out, "--num-envs", "6", "--backend", "eager", "--task", "chars"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "policy of digits: a recurrent one, which knows slots and blueprints by" in told
    assert "expected a run with --room-for this task, or with --policy-network graph" in told


@pytest.mark.parametrize("which", ["graph", "recurrent"])
def test_the_network_is_part_of_a_run(graph, recurrent, which, capsys):
    own, other = ("graph", "recurrent") if which == "graph" else ("recurrent", "graph")
    run = {"graph": graph, "recurrent": recurrent}[which]
    assert load_run(Path(run.out)).table["settings"]["policy_network"] == own
    assert main(["train", "--resume", run.out, "--policy-network", other]) == 2
    assert f"was written with other settings (policy_network '{own}', not '{other}')" in capsys.readouterr().err


def test_other_errors_are_one_line(graph, folders, capsys):
    words = ["train", "--task", "synthetic", "--room-for", "digits", "--policy-network", "graph", "--out", "nowhere"]
    assert main(words) == 2
    assert "--room-for = 'digits': a policy of --policy-network graph plays every task" in capsys.readouterr().err
    assert main(["train", "--policy-network", "tree", "--out", "nowhere"]) == 2
    assert "expected recurrent or graph" in capsys.readouterr().err.replace(", ", " or ")
    loaded = load_run(folders["graph"])
    table = loaded.table | {"settings": loaded.table["settings"] | {"policy_network": "tree"}}
    with pytest.raises(CheckpointError, match="policy_network 'tree'; expected one of recurrent, graph"):
        load_policy(Checkpoint(loaded.tensors, table), None, greedy=False)
