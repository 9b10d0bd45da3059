"""Axes of what can be measured: single numbers, equal ones, enormous ones, none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.nissa.charts import Series, line_chart, stacked_chart
from esper.nissa.frame import Axis, span, ticks

anything = st.lists(st.floats(), max_size=4)


@given(anything, st.sampled_from([(), (0.0,), (0.0, 100.0)]), st.integers(0, 30), st.booleans())
def test_every_axis_has_an_extent_and_a_few_ticks_within_it(values, include, about, whole):
    axis = span("y", values, include)
    assert axis.low < axis.high and math.isfinite(axis.high - axis.low)
    found = ticks(axis, about, whole)
    room = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - room <= value <= axis.high + room for value in found) and len(found) <= 3 * about + 8


@pytest.mark.parametrize("value", [1.0, 0.0, -3.5])
def test_a_range_without_extent_has_its_one_number(value):
    """An episode of one decision."""
    assert ticks(Axis("", value, value), 5, whole=True) == [value]


@given(anything)
def test_charts_of_any_numbers(values):
    assert "<svg" in line_chart("t", "x", "y", [Series("a", values)])
    sound = [abs(value) for value in values if math.isfinite(value)]
    assert "<svg" in stacked_chart("t", "x", "y", [Series("a", sound), Series("b", sound)])
