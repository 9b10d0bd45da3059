"""What must hold once ``reward_term.patch`` is applied: SHAPED has a term that a network pays for overfitting.

To be run against a patched copy of the package: ``python -m pytest reward_term_law.py``.
"""

import os

os.environ.setdefault("ESPER_NATIVE", "0")  # nothing is built for the copy

import pytest
import torch

import esper
from esper.leyline.config import ConfigError, Precision
from esper.leyline.hypers import numbers
from esper.runtime.rollout import rollout
from esper.simic.rewards import TERMS, RewardMode, RewardParams, bound, build_reward_params, reward
from esper.tamiyo.baselines import random_legal
from esper.tamiyo.policies import random_policy
from esper.utils import rng

E, EXACT = 4, {"rtol": 0.0, "atol": 1e-12}
WEIGHTS, SLACK = [0.0, 0.01, 0.5, 2.0], 3.0


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, E, backend="eager", precision=Precision.FLOAT64)


@pytest.fixture(scope="module")
def params(engine):
    own = {"overfit_weight": torch.tensor(WEIGHTS, dtype=torch.float64), "overfit_slack": SLACK}
    return build_reward_params(own, engine.config)


@pytest.fixture(scope="module")
def legs(engine):
    """Steps (before, after, event) of a random legal walk; one is rolled back, and accuracies are far apart in some."""
    found, state, policy = [], engine.init(3), random_legal(engine.codec)
    for number in range(8):
        if number == 5:
            params = state.host.params.clone()
            params[1:3] = torch.nan
            state = state.replace(host=state.host.replace(params=params))
        action = policy(engine.mask(state), rng.fold_in(rng.key(number), torch.arange(E)))
        before, (state, event) = state, engine.step(state, action)
        spread = 100 * rng.uniform(rng.key(90 + number), (2, E)).double()
        signals = state.signals.replace(train_accuracy=spread[0], val_accuracy=spread[1])
        found += [(before, state, event), (before, state.replace(signals=signals), event)]
    return found


def in_python(after, event, weight: float, env: int) -> float:
    if event.judgement.rolled_back[env].item():
        return 0.0
    gap = after.signals.train_accuracy[env].item() - after.signals.val_accuracy[env].item()
    return -weight * (gap - SLACK) if gap > SLACK else 0.0


def test_equals_the_formula_in_plain_python(engine, params, legs):
    met = set()
    for before, after, event in legs:
        paid = reward(RewardMode.SHAPED, params, engine.structure, before, after, event)
        wanted = [in_python(after, event, weight, env) for env, weight in enumerate(WEIGHTS)]
        torch.testing.assert_close(paid.terms["overfitting"], torch.tensor(wanted, dtype=torch.float64), **EXACT)
        met |= {(worth < 0, bool(event.judgement.rolled_back[env])) for env, worth in enumerate(wanted)}
    assert met == {(True, False), (False, False), (False, True)}


def test_is_a_part_of_the_shaped_reward_alone(engine, params, legs):
    off = params.replace(overfit_weight=torch.zeros(E, dtype=torch.float64))
    for before, after, event in legs:
        for mode in RewardMode:
            paid, free = (reward(mode, each, engine.structure, before, after, event) for each in (params, off))
            own = paid.terms.get("overfitting", torch.zeros(E, dtype=torch.float64))
            assert ("overfitting" in paid.terms) == (mode is RewardMode.SHAPED)
            torch.testing.assert_close(paid.total - free.total, own, **EXACT)


def test_its_bounds_hold_and_are_reached(engine, params, legs):
    low, high = TERMS["overfitting"].bounds(params, engine.config.num_slots)
    before, after, event = legs[0]
    full = torch.full((E,), 100.0, dtype=torch.float64)
    worst = after.replace(signals=after.signals.replace(train_accuracy=full, val_accuracy=0 * full))
    best = after.replace(signals=after.signals.replace(train_accuracy=0 * full, val_accuracy=full))
    for state, wanted in ((worst, low), (best, high)):
        paid = reward(RewardMode.SHAPED, params, engine.structure, before, state, event)
        torch.testing.assert_close(paid.terms["overfitting"], torch.zeros_like(full) + wanted, **EXACT)
    least, most = bound(RewardMode.SHAPED, params, engine.config.num_slots)
    for leg in legs:
        total = reward(RewardMode.SHAPED, params, engine.structure, *leg).total
        assert ((least <= total) & (total <= most)).all()


def test_the_documented_bound_of_the_shaped_reward(engine):
    slots = engine.config.num_slots
    low, high = bound(RewardMode.SHAPED, build_reward_params({}, engine.config), engine.config.num_slots)
    assert "SHAPED [-9.395 - 5.4 S, 23 + 7.291 S]" in bound.__doc__
    assert low.item() == pytest.approx(-9.395 - 5.4 * slots) and high.item() == pytest.approx(23 + 7.291 * slots)


def test_its_numbers_are_in_the_table_and_its_name_in_traces(engine):
    assert TERMS["overfitting"].doc.endswith(".")
    for name in ("overfit_weight", "overfit_slack"):
        number = numbers(RewardParams)[name]
        assert number.unit and number.source and number.low <= number.default <= number.high
        with pytest.raises(ConfigError, match=rf"^rewards\.{name} = "):
            build_reward_params({name: -1.0}, engine.config)
    _, outcome = rollout(engine, random_policy(engine.codec), 0, RewardMode.SHAPED)
    place = outcome.trace.term_names.index("overfitting")
    assert outcome.trace.terms[..., place].le(0).all() and outcome.trace.terms[..., place].lt(0).any()
