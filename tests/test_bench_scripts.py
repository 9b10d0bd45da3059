"""The search over scripts and the change of a task: choices are made and scored on different environments."""

import pytest
import torch

import esper
from esper.leyline.config import Isolation
from esper.leyline.contexts import Choice, Variation
from esper.runtime.rollout import rollout
from esper.runtime.scripts import waiting
from esper.tolaria.variations import old_classes

ENVS = 24


@pytest.fixture(scope="module")
def outcomes(small_task):
    """Waiting, and two scripts whose J on validation and test are set by hand."""
    engine = esper.make(small_task, ENVS, backend="eager", horizon=1)
    _, one = rollout(engine, waiting(engine), 1)
    env = torch.arange(ENVS).float()
    cheap, odd = env < ENVS / 2, env % 2 == 1

    def outcome(name, cheap_worth, dear_worth, luck):
        """Worth as much by test as by validation, but for luck in the tests of environments that score."""
        worth = torch.where(cheap, cheap_worth, dear_worth)
        tested = worth + torch.where(odd, luck + 0.01 * env, 0.0)
        return one._replace(policy=name, utility=tested, test_accuracy=tested, val_accuracy=worth)

    return [outcome("wait", 10.0, 10.0, 0.0), outcome("a", 30.0, 5.0, -2.0), outcome("b", 24.0, 12.0, -3.0)], cheap


def test_even_environments_choose_and_odd_ones_score(outcomes, bench_module):
    played, cheap = outcomes
    scripts = bench_module("scripts")
    found = scripts.assess(played, {"cheap": cheap, "dear": ~cheap}, scripts.odd(ENVS))
    assert found["best_of_all"] == "b"  # (24 + 12) / 2 = 18 against (30 + 5) / 2 = 17.5
    assert {name: row["best"] for name, row in found["groups"].items()} == {"cheap": "a", "dear": "b"}
    gain = found["groups"]["cheap"]["less_best_of_all"]
    assert gain["mean"] == pytest.approx((30 - 2) - (24 - 3), abs=1e-4) and gain["measured"] == ENVS // 4
    assert found["groups"]["dear"]["less_best_of_all"]["mean"] == 0
    assert found["hindsight_less_best_of_all"]["mean"] == pytest.approx(((28 - 21) + 0) / 2, abs=1e-4)
    assert found["groups_won_by_another"] == 1
    fixed, best = (21 - 10 + 9 - 10) / 2, (28 - 10 + 9 - 10) / 2
    assert found["score_of_best_of_all"] == pytest.approx(fixed / best, abs=1e-5)


def test_groups_are_halves_of_what_varies(small_task, bench_module):
    data = small_task.data._replace(
        variation=Variation({"price": Choice((1.0, 3.0)), "label_noise": Choice((0.0, 0.5))})
    )
    engine = esper.make(small_task._replace(data=data), ENVS, backend="eager")
    scene = type("Scene", (), {"engine": engine})
    groups = bench_module("scripts").groups_of(scene, 3, ("price", "label_noise"))
    context = engine.init(3).context
    expected = (context.price == 3) & (context.label_noise == 0)
    assert torch.equal(groups["price high, label_noise low"], expected) and 0 < int(expected.sum()) < ENVS
    assert torch.equal(torch.stack(list(groups.values())).sum(0), torch.ones(ENVS, dtype=torch.int64))


def test_forgetting_is_counted_by_old_and_new_classes(small_task, bench_module):
    data = small_task.data._replace(variation=Variation({"shift": Choice((0.5,))}))
    task = small_task._replace(data=data, settings=small_task.settings | {"horizon": 6, "steps_per_epoch": 8})
    row = bench_module("shift").live(task, 3, 2, "conv_light", Isolation.OBJECTIVE)
    share = float(old_classes(data.test.targets, data.num_classes).float().mean())
    whole = share * row["old_at_the_end"] + (1 - share) * row["new_at_the_end"]
    torch.testing.assert_close(row["all_at_the_end"], whole, rtol=0, atol=1e-3)
    assert torch.equal(row["forgotten"], row["old_at_the_change"] - row["old_at_the_end"])
    assert float(row["old_at_the_change"].mean()) > 55 > float(row["old_at_the_end"].mean())
    assert float(row["new_at_the_end"].mean()) > 55
