"""Runs whose precision and residence are settings: what a record says, and that datasets taking turns change no bit."""

import io

import pytest
import torch

from esper.runtime.policy_checkpoint import load_run
from esper.runtime.scene import SceneSettings, rules_of
from esper.runtime.train import train
from esper.runtime.train_settings import TrainSettings

SMALL = {"steps_per_epoch": 1, "batch_size": 4, "val_samples": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A mixed run in bf16 and in chunks, whose two datasets stay on the device, or take turns there."""
    found = {}
    for limit in (0.0, 1e-6):
        folder = tmp_path_factory.mktemp("mixed") / "run"
        sizes = {"num_envs": 2, "rounds": 2, "horizon": 4, "eval_envs": 0, "features": 8, "lstm": 8, "head": 8}
        sizes |= {"task": "synthetic,digits", "precision": "bf16", "sequence_chunk": 2, "engine": SMALL}
        settings = TrainSettings(data_limit=limit, backend="eager", out=str(folder), progress="off", **sizes)
        found[limit] = folder, train(settings, io.StringIO())
    return found


def test_a_limit_of_one_dataset_gives_the_same_bits(runs):
    kept, turns = (learner for _, learner in runs.values())
    assert all(map(torch.equal, kept.policy.parameters(), turns.policy.parameters()))


def test_a_run_is_played_in_its_own_precision(runs):
    folder, _ = runs[0.0]
    settings = SceneSettings(run=str(folder))
    assert settings.rules(settings.loaded()).precision == "bf16"
    other = SceneSettings(run=str(folder), precision="float32")
    assert other.rules(other.loaded()).precision == "float32"
    assert load_run(folder).table["settings"]["precision"] == "bf16"


def test_the_precision_of_an_earlier_versions_run_is_found():
    rules = rules_of({"task": "digits", "engine": {"precision": "float64", "host_lr": 0.1}})
    assert rules.precision == "float64" and dict(rules.engine) == {"host_lr": 0.1}
