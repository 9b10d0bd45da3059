"""The study: searches over static sizes by hand, choices kept apart from scores, what is written and gone on with."""

import json
import math
import sys

import pytest
import torch

import esper
from esper.leyline.contexts import Choice, Variation
from esper.runtime.rollout import rollout
from esper.runtime.scene import Rules, build_scene
from esper.tamiyo.policies import random_policy

NAN = math.nan


def course(module, name, seen, gflops, tested=None):
    """A static network in one environment for every list of J by epoch."""
    curve = torch.tensor(seen, dtype=torch.float64).T
    other = curve if tested is None else torch.tensor(tested, dtype=torch.float64).T
    envs = curve.shape[1]
    return module.Course(name, torch.full((envs,), 7.0), curve, other, curve, other, torch.full((envs,), gflops))


@pytest.fixture
def courses(bench_module):
    """Four sizes over eight epochs: rungs of the two halvings lie after epochs 2 and 4."""
    static = bench_module("study_static")
    early = [0.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    late = [0.0, 1.0, 1.0, 1.0, 99.0, 99.0, 99.0, 99.0]
    good = [0.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 6.0]
    lost = [NAN] * 8
    rows = {"a": (early, early), "b": (late, good), "c": (good, late), "d": (lost, lost)}
    return static, [course(static, name, seen, float(2**place)) for place, (name, seen) in enumerate(rows.items())]


def test_halving_keeps_the_better_half_and_counts_whatever_ran(courses):
    """Environment 0: b and d go after two epochs, a after four; environment 1 likewise, with b and c exchanged."""
    static, sizes = courses
    which, spent = static.halved(sizes, 8)
    assert [sizes[number].host for number in which.tolist()] == ["c", "b"]
    all_for_two = 2 * (1 + 2 + 4 + 8)
    assert spent.tolist() == [all_for_two + 2 * (1 + 4) + 4 * 4, all_for_two + 2 * (1 + 2) + 4 * 2]
    page = static.searched(sizes, 8)
    assert page.utility.tolist() == [6.0, 6.0] and page.gflops.tolist() == spent.tolist()
    assert page.facts["chosen"] == {"a": 0, "b": 1, "c": 1, "d": 0} and page.total_reward.isnan().all()


def test_a_budget_buys_as_many_epochs_as_it_pays_for(courses):
    static, sizes = courses
    costs = [float(static.halved(sizes, last)[1].mean()) for last in range(1, 9)]
    assert costs == sorted(costs)
    for last, cost in enumerate(costs, start=1):
        assert (
            static.affordable(sizes, cost) == max(n for n, other in enumerate(costs, start=1) if other <= cost) >= last
        )
    assert static.affordable(sizes, costs[0] - 1) == 0
    one = static.always(sizes, 2)
    assert one.gflops.tolist() == [32.0, 32.0] and one.utility.tolist() == [6.0, 99.0]


def test_an_episode_costs_the_sum_of_its_steps(small_task, bench_module):
    """Beside ``step_flops`` of every step, whatever a policy does by chance."""
    flops = bench_module("frontier_flops")
    engine = esper.make(small_task, 4, backend="eager", horizon=10)
    policy = random_policy(engine.codec)
    state, outcome = rollout(engine, policy, 5)
    replayed, total = engine.init(5), flops.nothing(4)
    for action in outcome.trace.action.long():
        total = total.plus(flops.step_flops(engine, replayed, action))
        replayed, _ = engine.step(replayed, action)
    assert torch.equal(replayed.slots.stage, state.slots.stage) and int(outcome.germinated.sum()) > 4
    for mine, other in zip(flops.trace_flops(engine, outcome.trace), total, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=0)


def test_static_networks_are_given_what_the_environments_are(bench_module):
    """Wrong labels and prices, environment by environment: the course of the scene's own host is that of waiting."""
    static, book = bench_module("study_static"), bench_module("book")
    scene = varied_scene(4)
    found = static.course(scene, scene.engine.structure.host, 3)
    waited = rollout(
        scene.engine, bench_module("study_play").scripts.waiting(scene.engine), 3, scene.mode, scene.params
    )[1]
    torch.testing.assert_close(found.tested_utility[-1], waited.utility.double(), rtol=0, atol=0.4)
    torch.testing.assert_close(found.seen, waited.trace.accuracy.double(), rtol=0, atol=0.8)
    page = book.page_of(scene.engine, waited)
    torch.testing.assert_close(found.gflops * scene.engine.config.horizon, page.gflops, rtol=1e-9, atol=0)
    assert found.added.tolist() == [0.0] * 4


NUMBERS = {"steps_per_epoch": 2, "host_lr": 0.02, "batch_size": 16}


def varied_scene(envs):
    scene = build_scene(Rules(task="synthetic", horizon=3, engine=NUMBERS, rewards={"price": 2.0}), envs, "eager")
    data = scene.task.data._replace(
        variation=Variation({"price": Choice((0.0, 30.0)), "label_noise": Choice((0.0, 0.8))})
    )
    task = scene.task._replace(data=data)
    return scene._replace(task=task, engine=esper.make(task, envs, backend="eager", horizon=3, **NUMBERS))


def test_every_environment_has_the_page_that_was_chosen_for_it(bench_module):
    play, book = bench_module("study_play"), bench_module("book")
    columns = {name: torch.arange(3.0) + 10 * place for place, name in enumerate(book.COLUMNS)}
    pages = [
        book.Page(str(n), **{name: value + 100 * n for name, value in columns.items()}, facts={}) for n in range(2)
    ]
    found = play.gathered("both", pages, torch.tensor([1, 0, 1]))
    assert found.test_accuracy.tolist() == [100.0, 1.0, 102.0] and found.facts["chosen"] == {"0": 1, "1": 2}


MODULE = """
from esper.kasmina.conv_blueprints import CONV_LIGHT, NORM
from esper.leyline.contexts import Choice
from esper.runtime.task import Script
from esper.runtime.tasks import synthetic
from esper.runtime.varied import varied


def task():
    given = {"price": Choice((0.0, 30.0)), "label_noise": Choice((0.0, 0.8))}
    found = varied(synthetic(), "ours", given, (Script("conv_light"), Script("norm", 1)))
    numbers = {"slots": (0,), "steps_per_epoch": 1, "batch_size": 8, "val_samples": 16, "horizon": 2}
    data = found.data._replace(test=found.data.test.take(slice(16)))
    found = found._replace(blueprints=(CONV_LIGHT, NORM), data=data, rewards={"price": 2.0})
    return found._replace(settings={**found.settings, **numbers})
"""


def test_a_study_is_written_and_gone_on_with(bench_module, tmp_path, monkeypatch, capsys):
    """All of it, on a task of seconds; what is in the book is not played again, and says the same again."""
    (tmp_path / "study_of_ours.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    study, play = bench_module("study"), bench_module("study_play")
    monkeypatch.setattr(bench_module("bandits"), "DECISIONS", 20)
    monkeypatch.setattr(play, "STARTS", (0,))
    for module in (study, bench_module("bandits")):
        monkeypatch.setattr(module, "STRATEGIES", ("ucb",))
    words = ["--task", "py:study_of_ours:task", "--envs", "6", "--choosing", "6", "--candidates", "2", "--quick"]
    words += ["--groups", "price,label_noise"]
    words += [
        "--backend",
        "eager",
        "--train",
        "rounds=1,num_envs=2,features=4,lstm=4,head=4",
        "--runs",
        str(tmp_path / "r"),
    ]
    words += ["--out", str(tmp_path / "results" / "found")]
    try:
        study.main(words)
        first = json.loads((tmp_path / "results" / "found.json").read_text(encoding="utf-8"))
        monkeypatch.setattr(play, "outcome_of", lambda *given: pytest.fail("played again"))
        study.main([*words, "--only", "rule", "--out", str(tmp_path / "results" / "part")])
    finally:
        sys.modules.pop("study_of_ours", None)
    rows = first["rows"]
    wait, mine = (torch.tensor(rows[name]["J_by_environment"]) for name in ("wait", "learned usual, seed 0"))
    assert first["minus"]["learned usual, seed 0"]["wait"]["mean"] == pytest.approx(
        float((mine - wait).mean()), abs=1e-4
    )
    assert rows["wait"]["score"] in (0.0, None) and {"ucb", "ucb no limits", "random"} <= rows.keys()
    said = (tmp_path / "results" / "found.md").read_text(encoding="utf-8")
    assert "| learned usual, seed 0 |" in said and "interquartile mean over 1 training seeds" in said
    assert (tmp_path / "results" / "found.svg").read_text(encoding="utf-8").startswith("<svg ")
    part = json.loads((tmp_path / "results" / "part.json").read_text(encoding="utf-8"))
    others = ("static", "best", "script", "ucb")
    assert part["rows"] == {name: row for name, row in rows.items() if not name.startswith(others)}
    capsys.readouterr()
    with pytest.raises(SystemExit) as status:
        study.main([*words, "--train", "lr=0.1"])
    error = capsys.readouterr().err
    assert status.value.code == 2 and error.count("\n") == 1 and "--learner usual" in error
