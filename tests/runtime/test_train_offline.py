"""Training from recorded episodes: from a dataset to a run that is gone on with, evaluated, reported and fine-tuned."""

import io
import json

import pytest
import torch

import esper.__main__
from esper.runtime.generate import GenerateSettings, generate
from esper.runtime.learn import learn
from esper.runtime.policy_checkpoint import load_run
from esper.runtime.train_settings import TrainSettings
from esper.utils.settings import SettingsError

TINY = {"task": "tiny", "horizon": 4, "num_envs": 2, "features": 4, "lstm": 4, "head": 4, "progress": "off"}
SMALL = {"fitted": 2, "updates": 3, "batch": 4, "held_out": 0.25}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_task):
    folder = tmp_path_factory.mktemp("episodes") / "mix"
    mix = "wait:0.25,random:0.5,heuristic:0.25"
    generate(
        GenerateSettings(task="tiny", horizon=4, out=str(folder), policies=mix, episodes=16, num_envs=8), io.StringIO()
    )
    return folder


def settings(episodes, out, algorithm="iql", **more):
    given = {"algorithm": algorithm, "dataset": str(episodes), "offline": SMALL, "rounds": 2, "eval_envs": 0} | more
    return TrainSettings(**(TINY | given), out=str(out))


@pytest.mark.parametrize(
    ("algorithm", "network"), [("bc", "mlp"), ("bc", "graph"), ("iql", "recurrent"), ("cql", "recurrent")]
)
def test_a_run_ends_in_a_report(dataset, tmp_path, algorithm, network):
    told = io.StringIO()
    learner = learn(settings(dataset, tmp_path / "run", algorithm, policy_network=network, eval_envs=6), told)
    assert learner.done == 2
    found = json.loads((tmp_path / "run" / "offline.json").read_text())
    assert found["importance_sampling"]["episodes"] == 4
    assert found["fitted"] == found["fitted"]
    assert "learned" in json.loads((tmp_path / "run" / "evaluation.json").read_text())["policies"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert "16 episodes (wait 4, random 8, heuristic 4)" in told.getvalue()


@pytest.mark.parametrize("algorithm", ["bc", "iql", "cql"])
def test_going_on_ends_in_the_same_bits(dataset, tmp_path, algorithm):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    learn(settings(dataset, whole, algorithm, rounds=3), io.StringIO())
    learn(settings(dataset, parts, algorithm, rounds=1), io.StringIO())
    learn(settings(dataset, parts, algorithm, rounds=3, resume=str(parts)), io.StringIO())
    ours, theirs = load_run(whole).tensors, load_run(parts).tensors
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("critics.") for name in ours) == (algorithm != "bc")
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_it_is_gone_on_with_by_the_command(dataset, tmp_path, capsys):
    learn(settings(dataset, tmp_path / "run", rounds=1), io.StringIO())
    assert esper.__main__.main(["train", "--resume", str(tmp_path / "run"), "--rounds", "2"]) == 0
    assert load_run(tmp_path / "run").table["done"] == 2


def test_ppo_starts_from_it(dataset, tmp_path):
    """Its first policy is the one that was learned from records, to the bit; the optimizer is fresh."""
    learn(settings(dataset, tmp_path / "offline"), io.StringIO())
    online = TrainSettings(**TINY, start_from=str(tmp_path / "offline"), out=str(tmp_path / "online"), dry_run=True)
    ours, theirs = learn(online, io.StringIO()).policy.state_dict(), load_run(tmp_path / "offline").tensors
    for name, value in ours.items():
        assert torch.equal(value, theirs[f"policy.{name}"]), name
    played = TrainSettings(
        **TINY, start_from=str(tmp_path / "offline"), out=str(tmp_path / "online"), rounds=1, eval_envs=0
    )
    assert learn(played, io.StringIO()).done == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dataset": ""}, "expected --dataset"),
        ({"reward": "sparse"}, "its reward is"),
        ({"task": "synthetic"}, "its task is 'tiny'"),
        ({"demonstrations": 1}, "none of --room-for, --demonstrations and --record"),
        ({"offline": {"tau": 0.7}}, "--offline: tau: unknown; known are gamma, expectile"),
        ({"offline": {"expectile": 1.5}}, "offline.expectile = 1.5: expected a number from 0.5 to 0.999"),
        ({"offline": {"updates": 2.5}}, "offline.updates = 2.5: expected an integer"),
        ({"offline": {"horizon": "open"}}, "offline.horizon = 'open': expected cut or end"),
    ],
)
def test_what_is_refused(dataset, tmp_path, more, words):
    with pytest.raises(SettingsError, match=words):
        learn(settings(dataset, tmp_path / "run", **more), io.StringIO())


@pytest.mark.parametrize(
    ("more", "words"),
    [({"lstm": 5}, "a policy of --lstm 4"), ({"policy_network": "mlp"}, "a policy of --policy-network recurrent")],
)
def test_another_policy_is_no_start(dataset, tmp_path, more, words):
    learn(settings(dataset, tmp_path / "offline", rounds=1), io.StringIO())
    online = TrainSettings(
        **(TINY | more), start_from=str(tmp_path / "offline"), out=str(tmp_path / "online"), dry_run=True
    )
    with pytest.raises(SettingsError, match=words):
        learn(online, io.StringIO())


def test_a_run_goes_on_with_its_own_dataset(dataset, tmp_path):
    own = tmp_path / "own"
    mix = GenerateSettings(task="tiny", horizon=4, out=str(own), policies="random:1", episodes=8, num_envs=8)
    generate(mix, io.StringIO())
    learn(settings(own, tmp_path / "run", rounds=1), io.StringIO())
    generate(GenerateSettings(**(vars(mix) | {"episodes": 16})), io.StringIO())
    with pytest.raises(SettingsError, match="not the episodes that this run began with"):
        learn(settings(own, tmp_path / "run", resume=str(tmp_path / "run")), io.StringIO())
