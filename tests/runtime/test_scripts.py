"""Scripts: where and when they grow; the ceiling they make in hindsight, and scores by it."""

import math

import pytest
import torch

import esper
from esper.leyline.actions import Blend, Op
from esper.leyline.config import ConfigError
from esper.leyline.contexts import Choice, Variation
from esper.runtime.compare import compare
from esper.runtime.own_trials import check_task
from esper.runtime.rollout import rollout
from esper.runtime.scene import Rules, build_scene
from esper.runtime.scripts import every_script, play, waiting
from esper.runtime.table import table
from esper.runtime.task import Script
from esper.runtime.tasks import TASKS, named
from esper.runtime.yardsticks import hindsight, score
from esper.tamiyo import scripted
from esper.tamiyo.policies import from_mask

SEED, ENVS = 3, 6


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, 3, backend="eager", horizon=4)


@pytest.mark.parametrize("slots", [1, 0])
@pytest.mark.parametrize("start", [0, 2])
def test_seeds_are_sown_from_the_epoch_on_and_in_the_first_slots_alone(engine, slots, start):
    _, outcome = rollout(engine, play(engine, Script("conv_light", slots, start)), SEED)
    trace = outcome.trace
    sown = (trace.op == int(Op.GERMINATE)).nonzero()[:, 0]
    used = sorted({int(slot) for slot in trace.slot[trace.op == int(Op.GERMINATE)]})
    assert sown.min() == start and not outcome.refused.any()
    assert used == list(range(min(slots or 3, 4 - start)))


def test_the_plain_script_is_grow(engine):
    first = rollout(engine, play(engine, Script("norm")), SEED)[1]
    other = rollout(engine, from_mask("grow norm", scripted.grow(engine.codec, "norm")), SEED)[1]
    assert first.policy == other.policy and torch.equal(first.trace.op, other.trace.op)
    assert torch.equal(first.test_loss, other.test_loss)


def test_every_script_is_every_kind_in_one_slot_and_in_all(engine):
    found = list(every_script(engine.structure, (0, 4)))
    kinds = [blueprint.name for blueprint in engine.structure.blueprints]
    assert found == [Script(kind, slots, start) for kind in kinds for slots in (1, 0) for start in (0, 4)]
    assert len({script.name for script in found}) == len(found)
    assert [Script("norm").name, Script("norm", 1, 4).name] == ["grow norm", "grow norm in 1 from 4"]


def test_a_blend_is_the_script_s_own(engine):
    found = list(every_script(engine.structure, (0,), (None, Blend.LINEAR)))
    assert len({script.name for script in found}) == len(found) and found[1].name == "grow norm in 1 by linear"
    for script, blend in zip(found[:2], (Blend.SIGMOID, Blend.LINEAR), strict=True):
        trace = rollout(engine, play(engine, script), SEED)[1].trace
        assert set(trace.blend[trace.op == int(Op.GERMINATE)].tolist()) == {int(blend)}


@pytest.mark.parametrize("name", [name for name in TASKS if name.endswith("_varied")])
def test_the_scripts_of_varied_presets_are_on_offer_and_their_environments_differ(name):
    task = named(name)
    engine = esper.make(task, 32, backend="eager")
    assert len({play(engine, script).name for script in task.scripts}) == len(task.scripts) > 4
    context = engine.init(SEED).context
    assert all(len(context.get(number).unique()) > 1 for number in task.data.variation.distributions)


def varied_scene(scripts):
    """The quick task at two prices: nothing is worth 60 pp an e-fold, anything is worth nothing."""
    numbers = {"steps_per_epoch": 2, "host_lr": 0.02}
    scene = build_scene(Rules(task="synthetic", horizon=3, engine=numbers, rewards={"price": 1.0}), ENVS, "eager")
    data = scene.task.data._replace(variation=Variation({"price": Choice((0.0, 60.0))}))
    task = scene.task._replace(data=data, scripts=scripts)
    return scene._replace(task=task, engine=esper.make(task, ENVS, backend="eager", horizon=3, **numbers))


def test_hindsight_takes_what_validation_says_and_tells_the_test(engine):
    _, one = rollout(engine, waiting(engine), SEED)
    tensor = torch.tensor
    first = one._replace(test_accuracy=tensor([50.0, 60.0, 70.0]), val_accuracy=tensor([55.0, 50.0, torch.nan]))
    other = one._replace(policy="b", test_accuracy=tensor([40.0, 90.0, 30.0]), val_accuracy=tensor([56.0, 49.0, 1.0]))
    first, other = (each._replace(utility=each.test_accuracy - 10) for each in (first, other))
    loud = one._replace(policy="c", val_accuracy=tensor([99.0, 99.0, 99.0]))
    assert hindsight([first, loud, other], ["wait", "b"]).tolist() == [30.0, 50.0, 20.0]


def test_the_score_is_a_share_of_what_hindsight_gains():
    waited, ceiling = torch.tensor([10.0, 20.0, torch.nan]), torch.tensor([20.0, 50.0, 30.0])
    assert score(waited, waited, ceiling) == 0 and score(ceiling, waited, ceiling) == 1
    assert score(torch.tensor([30.0, 20.0, 99.0]), waited, ceiling) == pytest.approx(20 / 40)
    assert score(ceiling, ceiling, waited) is None


def test_evaluations_play_the_scripts_and_score_by_them():
    scene = varied_scene((Script("conv_light"), Script("norm", start=1), Script("conv9")))
    report, outcomes = compare(scene, [waiting(scene.engine)], SEED, lambda line: None)
    found, names = report["hindsight"], ["wait", "grow conv_light", "grow norm from 1"]
    assert list(report["policies"]) == found["scripts"] == names
    cheap = scene.engine.init(SEED).context.price == 0
    assert 0 < int(cheap.sum()) < ENVS
    best = [
        max(outcomes, key=lambda each: float(each.utility[env] - each.test_accuracy[env] + each.val_accuracy[env]))
        for env in range(ENVS)
    ]
    assert all(best[env].policy == "wait" for env in range(ENVS) if not cheap[env])
    ceiling = [float(each.utility[env]) for env, each in enumerate(best)]
    assert found["utility"]["mean"] == pytest.approx(sum(ceiling) / ENVS, rel=1e-6)
    gains = [sum(each.utility.tolist()) - sum(outcomes[0].utility.tolist()) for each in outcomes]
    most = sum(ceiling) - sum(outcomes[0].utility.tolist())
    assert most <= 0 or list(found["score"].values()) == pytest.approx([gain / most for gain in gains], abs=1e-6)
    assert "best of 3 scripts in hindsight" in table(report) and not math.isnan(most)


def test_a_script_of_nothing_on_offer_is_refused_at_the_door(small_task):
    with pytest.raises(ConfigError, match=r"^task 'py:ours:task': script = 'conv9': expected one of norm,"):
        check_task("py:ours:task", small_task._replace(scripts=(Script("conv9"),)))
