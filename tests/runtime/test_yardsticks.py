"""What policies are held against: the best script and a static network, as tasks name them."""

import math

import pytest
import torch

import esper
from esper.kasmina.cnn import cnn_host
from esper.leyline.config import ConfigError
from esper.runtime import yardsticks
from esper.runtime.compare import compare
from esper.runtime.own import load
from esper.runtime.own_trials import check_task
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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rival": cnn_host((1, 8, 8), 7, 1, 4)}, "rival: maps (1, 8, 8) to 7 outputs; expected (1, 8, 8) to 10"),
        ({"rival": "cnn"}, "rival: found a str; expected a Host"),
        ({"script": "nope"}, "script = 'nope': expected one of norm,"),
        ({"rewards": {"gamma": 0.5}}, "rewards: expected numbers by name, but for gamma"),
        ({"rewards": None}, "rewards: expected numbers by name"),
    ],
)
def test_one_s_own_task_is_looked_at_before_an_evaluation_needs_it(scene, wrong, said):
    task = scene.task._replace(script="", rival=None)
    check_task("py:ours:task", task)
    with pytest.raises(ConfigError) as error:
        check_task("py:ours:task", task._replace(**wrong))
    assert str(error.value).startswith(f"task 'py:ours:task': {said}") and "\n" not in str(error.value)


def test_a_module_that_leaves_python_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^--reward = 'py:leaves:x': SystemExit: 0; expected a module"):
        load("--reward", "py:leaves:x")


def test_the_static_network_is_run_as_the_scene_is(scene, monkeypatch):
    asked = []
    monkeypatch.setattr(yardsticks, "make", lambda *given, **named: asked.append(given) or esper.make(*given, **named))
    static_network(scene, SEED)
    assert asked[0][3] == "eager" == scene.engine.backend.name
