"""Rank correlation: a published example, ties in plain Python, and what it must not see. Means of runs by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.utils import rng
from esper.utils.stats import interquartile_mean, rank_correlation, ranks, stratified_interval

IQ = (106, 100, 86, 101, 99, 103, 97, 113, 112, 110)
HOURS = (7, 27, 2, 50, 28, 29, 20, 12, 6, 17)
"""The example of the English Wikipedia's page on Spearman's coefficient, which gives -29/165."""

small = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


def mean_rank(values, value):
    """How many are smaller, and half of the equal ones: counted, not sorted."""
    return sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2


def pearson(xs, ys):
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    cross = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    return cross / (sum((x - mx) ** 2 for x in xs) * sum((y - my) ** 2 for y in ys)) ** 0.5


def test_a_published_example():
    found = rank_correlation(torch.tensor(IQ, dtype=torch.float64), torch.tensor(HOURS, dtype=torch.float64))
    assert found == pytest.approx(-29 / 165, abs=1e-12)


@given(small)
def test_ties_share_the_mean_of_their_ranks(values):
    assert ranks(torch.tensor(values, dtype=torch.float64)).tolist() == [mean_rank(values, value) for value in values]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12))
def test_it_is_the_correlation_of_the_ranks(pairs):
    xs, ys = zip(*pairs, strict=True)
    found = rank_correlation(*(torch.tensor(each, dtype=torch.float64) for each in (xs, ys)))
    if len(set(xs)) == 1 or len(set(ys)) == 1:
        assert found is None
    else:
        expected = pearson([mean_rank(xs, x) for x in xs], [mean_rank(ys, y) for y in ys])
        assert found == pytest.approx(expected, abs=1e-12)


def test_what_was_not_measured_is_left_out():
    first, second = torch.tensor([1.0, torch.nan, 2.0, 3.0]), torch.tensor([1.0, 5.0, 2.0, torch.nan])
    assert rank_correlation(first, second) == pytest.approx(1.0)
    assert rank_correlation(first[1:2], second[1:2]) is None


def test_the_interquartile_mean_by_hand():
    """Of 9 scores floor(9 / 4) = 2 are left out at either end; of 3 none; of 4 one."""
    scores = torch.tensor([9.0, 1.0, 100.0, 4.0, 5.0, -50.0, 6.0, 3.0, 2.0])
    assert float(interquartile_mean(scores)) == pytest.approx((2 + 3 + 4 + 5 + 6) / 5)
    assert float(interquartile_mean(scores[:3])) == pytest.approx(110 / 3)
    assert interquartile_mean(scores[:8].reshape(2, 4)).tolist() == pytest.approx([(9 + 4) / 2, (3 + 5) / 2])


def test_runs_are_drawn_again_within_their_tasks():
    """Two runs of one task: a resample's mean is the lower, the middle or the higher, by 1/4, 1/2 and 1/4. Two tasks
    far apart: a resample never takes a run of one for the other, so the mean keeps its distance.
    """
    middle, low, high = stratified_interval(torch.tensor([[1.0], [3.0]]), rng.key(0))
    assert (middle, low, high) == (2.0, 1.0, 3.0)
    once = stratified_interval(torch.tensor([[5.0, 7.0]]), rng.key(0))
    assert once == (6.0, 6.0, 6.0)
    apart = torch.tensor([[0.0, 1000.0], [1.0, 1001.0]])
    middle, low, high = stratified_interval(apart, rng.key(1))
    assert middle == 500.5 and 500.0 <= low < high <= 501.0


def test_the_interval_of_runs_has_the_width_of_their_law():
    """Of many runs of a normal law the interquartile mean's standard error is about 1.09 sigma / sqrt(n): the
    influence function of the trimmed mean, integrated for trimming a quarter (Huber 1981, 3.3).
    """
    scores = rng.normal(rng.key(4), (400, 1), torch.float64)
    _, low, high = stratified_interval(scores, rng.key(5))
    assert (high - low) / 2 == pytest.approx(1.96 * 1.09 / 20, rel=0.15)
