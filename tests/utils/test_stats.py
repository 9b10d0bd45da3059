"""Rank correlation: a published example, ties in plain Python, and what it must not see."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.utils.stats import rank_correlation, ranks

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
