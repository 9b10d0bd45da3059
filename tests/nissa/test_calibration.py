"""Value calibration against definitions, numpy and a simulation of its intervals."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.nissa.calibration import calibrate, returns_to_go
from esper.utils import rng

numbers = st.floats(-100, 100)


@given(st.lists(numbers, min_size=1, max_size=12), st.floats(0, 1))
def test_return_to_go_is_the_discounted_sum(rewards, gamma):
    found = returns_to_go(torch.tensor(rewards, dtype=torch.float64)[:, None], gamma)
    for t in range(len(rewards)):
        left = rewards[t:]
        expected = sum(gamma**k * r for k, r in enumerate(left))
        assert float(found[t, 0]) == pytest.approx(expected, abs=1e-9)


def draws(key, *shape):
    return rng.normal(rng.fold_in(rng.key(11), key), shape, torch.float64)


def test_slope_intercept_and_explained_variance():
    predicted = draws(0, 20, 30)
    realised = 2.5 * predicted - 1 + 0.7 * draws(1, 20, 30)
    found = calibrate(predicted, realised)
    x, y = predicted.numpy().ravel(), realised.numpy().ravel()
    slope, intercept = np.polyfit(x, y, 1)
    assert (found["slope"], found["intercept"]) == pytest.approx((slope, intercept), abs=1e-9)
    assert found["explained_variance"] == pytest.approx(1 - np.var(y - x) / np.var(y), abs=1e-9)


def test_bins_are_the_deciles_of_the_predictions():
    predicted, realised = draws(2, 10, 12), draws(3, 10, 12)
    found = calibrate(predicted, realised)["bins"]
    pairs = sorted(zip(predicted.flatten().tolist(), realised.flatten().tolist(), strict=True))
    groups = [pairs[start : start + 12] for start in range(0, 120, 12)]
    for group, expected in zip(found, groups, strict=True):
        assert group["count"] == 12
        assert group["predicted"] == pytest.approx(sum(p for p, _ in expected) / 12)
        assert group["realised"] == pytest.approx(sum(r for _, r in expected) / 12)


def test_a_perfect_critic_and_a_constant_one():
    value = draws(4, 5, 8)
    perfect = calibrate(value, value)
    assert perfect["slope"] == pytest.approx(1) and perfect["explained_variance"] == 1.0
    constant = calibrate(torch.zeros(5, 8), value)
    assert constant["slope"] is None and constant["intercept"] is None
    assert constant["explained_variance"] == pytest.approx(0.0)
    assert calibrate(value, torch.ones(5, 8))["explained_variance"] is None


def test_intervals_cover_what_varies_between_environments():
    """All decisions of an environment share one outcome, so that treating decisions as independent would give a tenth
    of the width. Of 300 simulated intervals about 95 % hold the mean (here 0); 90 to 99 allow for chance.
    """
    held = 0
    for trial in range(300):
        outcome = draws(100 + trial, 1, 16).expand(100, 16)
        groups = calibrate(torch.zeros(100, 16), outcome)["bins"]
        assert sum(group["realised"] for group in groups) / 10 == pytest.approx(float(outcome.mean()))
        held += abs(groups[0]["realised"]) <= groups[0]["half_width"]
    assert 0.90 <= held / 300 <= 0.99


def test_fewer_than_six_environments_give_no_interval():
    assert {row["half_width"] for row in calibrate(draws(5, 10, 5), draws(6, 10, 5))["bins"]} == {None}
