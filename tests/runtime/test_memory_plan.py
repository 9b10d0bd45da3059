"""Memory that runs out is said before, with settings that fit: by hand, by bytes of tensors, and in runs."""

import json

import pytest
from runtime_forks import words

import esper.__main__
from esper.runtime import memory_plan
from esper.runtime.collect import make_track, play
from esper.runtime.interrupt import Watch
from esper.runtime.learner import make_learner
from esper.runtime.memory_plan import MIB, MemoryPlan, MemoryWatch, before_it_begins, plan_of, while_it_goes_on
from esper.runtime.scene import build_scene
from esper.runtime.train_settings import TrainSettings
from esper.utils.memory_room import Room

PLAN = MemoryPlan(64, 2 * MIB, MIB)
"""Four states and two episodes: 10 MiB of each environment."""


def test_what_fits_before_a_run_by_hand():
    assert PLAN.each == 10 * MIB and PLAN.total == 640 * MIB
    assert before_it_begins(PLAN, Room(1000 * MIB, 640 * MIB, "this machine")) is None
    said = before_it_begins(PLAN, Room(1000 * MIB, 600 * MIB, "this machine"))
    assert said == (
        "memory: 64 environments need at least 640 MiB, and 600 are left of the 1,000 of this machine; "
        "--num-envs 40 instead of 64 would fit (esper estimate says more)"  # 600 - 200 that are to be left
    )
    assert "no number of them would fit" in before_it_begins(PLAN, Room(1000 * MIB, 210 * MIB, "this machine"))


def test_what_fits_while_a_run_goes_on_by_hand():
    assert while_it_goes_on(PLAN, Room(1000 * MIB, 100 * MIB, "cuda:0")) is None
    said = while_it_goes_on(PLAN, Room(1000 * MIB, 95 * MIB, "cuda:0"))
    assert said == (
        "memory runs out: 95 MiB are left of the 1,000 of cuda:0; "
        "--num-envs 53 instead of 64 would fit (esper estimate says more)"  # 105 more are to be left: 10.5 of 10 each
    )


@pytest.mark.parametrize("tasks", ["synthetic", "synthetic,digits"])
def test_a_plan_counts_what_states_and_episodes_hold(tasks):
    """Bytes of the state's storage by TensorDict, and of what a collector hands over, which holds that and more."""
    settings = TrainSettings(task=tasks, num_envs=3, horizon=3, features=4, lstm=4, engine={"steps_per_epoch": 1})
    scenes = [build_scene(rules, 3, "eager") for rules in settings.rules()]
    plan, found = plan_of([scene.engine for scene in scenes]), 0
    assert plan.state * 3 == sum(scene.engine.init(1).bytes() for scene in scenes)
    for scene in scenes:
        learner = make_learner(settings, [scene], scene.engine.interface)
        track = make_track(scene, scene.engine.interface, learner, Watch())
        batch = play(track, 0, None, lambda now: None)
        track.collector.shutdown()
        named = ("observation", "action_mask", "logits", ("next", "observation"), ("next", "action_mask"))
        found += sum(batch.get(name).nbytes for name in named)
        assert batch.bytes() >= sum(batch.get(name).nbytes for name in named)
    assert plan.decision * 3 == found


def test_it_is_said_once_until_it_is_better():
    said, shares = [], [0.5, 0.09, 0.05, 0.15, 0.08, 0.3, 0.09]
    rooms = iter([Room(100 * MIB, int(share * 100 * MIB), "x") for share in shares])
    watch = MemoryWatch(said.append, lambda device: next(rooms))
    watch._plan = MemoryPlan(4, MIB, 0)
    found = [watch.look()["memory_left"] for _ in shares]
    assert found == pytest.approx(shares, abs=0.01)
    assert len(said) == 2 and "9 MiB are left" in said[0] and "9 MiB are left" in said[1]
    assert MemoryWatch(said.append, lambda device: None).look() == {}


@pytest.mark.parametrize(
    ("left", "words_of_it"),
    [(8 << 10, "need at least"), (50 * MIB, "memory runs out: 50 MiB are left"), (900 * MIB, None)],
)
def test_a_run_says_so_and_goes_on(tiny_task, tmp_path, monkeypatch, left, words_of_it):
    said, place = [], Room(1000 * MIB, left, "this control group")
    monkeypatch.setattr(memory_plan.MemoryWatch.__init__, "__defaults__", (said.append, lambda device: place))
    assert esper.__main__.main(words(tmp_path / "run", 2)) == 0
    assert len(said) == (words_of_it is not None) and all(words_of_it in line for line in said)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["memory_left"] for row in rows] == [left / (1000 * MIB)] * 2
    told = [row["anomaly"] for row in rows]
    assert ("memory runs out" in told[0]) == (left < 100 * MIB) and "memory runs out" not in told[1]
