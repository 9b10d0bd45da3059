"""What policies are held against: the best script and a static network, as tasks name them."""

import math

import pytest
import torch

import esper
from esper.kasmina.cnn import cnn_host
from esper.runtime.compare import compare
from esper.runtime.scene import Rules, build_scene
from esper.runtime.table import table
from esper.runtime.yardsticks import best_script, static_network
from esper.tamiyo import scripted
from esper.tamiyo.policies import from_mask

ENVS, HORIZON, SEED = 6, 3, 11


@pytest.fixture(scope="module")
def scene():
    rules = Rules(
        task="synthetic", horizon=HORIZON, engine={"steps_per_epoch": 2, "host_lr": 0.02}, rewards={"price": 3.0}
    )
    built = build_scene(rules, ENVS, "eager")
    rival = cnn_host((1, 8, 8), built.task.data.num_classes, num_blocks=2, base_channels=6)
    return built._replace(task=built.task._replace(script="conv_light", rival=rival))


@pytest.fixture(scope="module")
def report(scene):
    return compare(scene, [from_mask("wait", scripted.wait(scene.engine.codec))], SEED, lambda line: None)[0]


def size(host):
    return sum(math.prod(param.shape) for block in host.blocks for param in block.params)


def test_both_stand_beside_the_policies(report):
    assert list(report["policies"]) == ["wait", "grow conv_light", "static cnn 6-12"]
    assert report["policies"]["grow conv_light"]["germinated"]["mean"] > 0
    assert all(row["red_flags"] == [] for row in report["policies"].values())
    assert "static cnn 6-12" in table(report) and "were never" not in table(report)


def test_the_static_network_is_what_one_would_train_instead(scene, report):
    """The same host in an engine of one's own, with the scene's numbers, after as many epochs."""
    task = scene.task._replace(host=scene.task.rival)
    engine = esper.make(task, ENVS, backend="eager", slots=(), steps_per_epoch=2, host_lr=0.02, horizon=HORIZON)
    state = engine.init(SEED)
    for _ in range(HORIZON):
        state, _ = engine.step(state, torch.zeros(ENVS, dtype=torch.int64))
    row = report["policies"]["static cnn 6-12"]
    accuracy = engine.test(state).accuracy
    near = 0.4  # a sample of 256, as the backends may differ
    torch.testing.assert_close(torch.tensor(row["test_accuracy"]["values"]), accuracy, rtol=0, atol=near)
    more = size(scene.task.rival) - size(scene.engine.structure.host)
    assert row["added"]["values"] == [more] * ENVS and row["total_reward"]["mean"] is None
    price = 3 * math.log(1 + more / size(scene.engine.structure.host))
    expected = [value - price for value in row["test_accuracy"]["values"]]
    assert row["utility"]["values"] == pytest.approx(expected, abs=1e-4)


def test_what_is_not_there_is_left_out(scene):
    assert best_script(scene._replace(task=scene.task._replace(script=""))) == []
    assert best_script(scene._replace(task=scene.task._replace(script="conv32x9"))) == []
    assert static_network(scene._replace(task=scene.task._replace(rival=None)), SEED) == []
    assert static_network(scene._replace(mode=lambda step: {}), SEED) == []
