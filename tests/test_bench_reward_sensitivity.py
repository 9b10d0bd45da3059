"""J's sensitivity to the rewards' numbers: returns of variants are those that the rewards themselves would pay."""

import pytest
import torch

from esper.runtime.policies import NAMED
from esper.runtime.rollout import rollout
from esper.runtime.scene import Rules, build_scene
from esper.runtime.scripts import Script, play
from esper.simic.rewards import RewardMode, build_reward_params

CHANGES = [
    (RewardMode.SHAPED, "contribution_weight", 2.0, 0.1),
    (RewardMode.SHAPED, "fossil_share", 2.0, 1.0),  # twice 1 is not allowed: it stays within its bounds
    (RewardMode.LOSS, "loss_scale", 0.0, 1e-6),
    (RewardMode.SPARSE, "sparse_rent", 0.5, 0.05),
]


@pytest.fixture(scope="module")
def scene():
    return build_scene(Rules(task="synthetic", horizon=4), 4, "auto")


def policies(scene):
    return [NAMED["random"](scene, None), play(scene.engine, Script("norm"))]


def test_a_changed_number_pays_what_the_reward_with_it_pays(bench_module, scene, monkeypatch):
    study = bench_module("reward_sensitivity")
    monkeypatch.setattr(study, "policies_of", policies)
    played = study.play_all(scene)
    for mode, name, factor, value in CHANGES:
        params = build_reward_params({name: value}, scene.engine.config)
        returns = study.returns_of(played, mode, name, factor)
        for policy, got in zip(policies(scene), returns, strict=True):
            paid = rollout(scene.engine, policy, study.HELD_OUT, mode, params)[1].total_reward
            torch.testing.assert_close(got, paid, rtol=1e-5, atol=1e-5)


def test_figures_by_hand(bench_module):
    """Two policies in two environments: returns rank episodes as J does but for one pair, and prefer the worse one."""
    study = bench_module("reward_sensitivity")
    utility = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = study.figures(torch.tensor([[1.0, 9.0], [2.0, 3.0]]), utility)
    assert found == {"episodes": pytest.approx(0.4), "policies": pytest.approx(-1.0), "J": 1.5}
