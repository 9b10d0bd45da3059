"""Profiles and what replaces their numbers."""

import math
from dataclasses import asdict, fields
from itertools import pairwise

import pytest

from esper.nissa.profiles import MEASURES, PROFILES, Profile, profile_of, profile_table
from esper.utils.settings import SettingsError


def test_the_tables_name_the_same_numbers_and_every_profile_is_allowed():
    names = [field.name for field in fields(Profile)]
    assert list(MEASURES) == names
    assert list(PROFILES) == ["off", "production", "minimal", "standard", "diagnostic", "research"]
    for name, profile in PROFILES.items():
        assert profile_of(name, {}) == profile
        assert profile_of("off", asdict(profile)) == profile
    assert PROFILES["off"].is_off and not any(profile.is_off for name, profile in PROFILES.items() if name != "off")


def test_later_profiles_measure_no_less():
    order = list(PROFILES.values())
    for less, more in pairwise(order[2:]):
        assert more.history >= less.history and more.samples >= less.samples and more.curvature >= less.curvature
        assert more.classes >= less.classes and more.layers >= less.layers and more.events >= less.events
        assert set(less.percentiles) <= set(more.percentiles)
    assert (PROFILES["diagnostic"].samples, PROFILES["research"].samples) == (5, 10)
    assert {profile.scale for profile in order} == {0.01}


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("history", 5, 5),
        ("history", 100, 100),
        ("samples", 20, 20),
        ("scale", 0.5, 0.5),
        ("classes", True, True),
        ("percentiles", "1+50+99", (1.0, 50.0, 99.0)),
        ("percentiles", (0, 12.5, 100), (0.0, 12.5, 100.0)),
        ("percentiles", 50, (50.0,)),
        ("percentiles", (), ()),
    ],
)
def test_a_number_that_is_allowed_takes_the_place_of_the_profiles(name, value, found):
    assert profile_of("standard", {name: value}) == Profile(**(asdict(PROFILES["standard"]) | {name: found}))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("history", 4, "an integer from 5 to 100"),
        ("history", 101, "an integer from 5 to 100"),
        ("history", 10.0, "an integer from 5 to 100"),
        ("samples", 21, "an integer from 0 to 20"),
        ("samples", -1, "an integer from 0 to 20"),
        ("samples", True, "an integer from 0 to 20"),
        ("scale", 0, "a number between 0 and 1, without these"),
        ("scale", 1, "a number between 0 and 1, without these"),
        ("scale", math.nan, "a number between 0 and 1, without these"),
        ("scale", "x", "a number between 0 and 1, without these"),
        ("percentiles", "50+1", "numbers from 0 to 100 that ascend"),
        ("percentiles", (1, 1), "numbers from 0 to 100 that ascend"),
        ("percentiles", (-1, 5), "numbers from 0 to 100 that ascend"),
        ("percentiles", "1+101", "numbers from 0 to 100 that ascend"),
        ("percentiles", (math.nan,), "numbers from 0 to 100 that ascend"),
        ("percentiles", (True,), "numbers from 0 to 100 that ascend"),
        pytest.param("percentiles", 10**400, "numbers from 0 to 100 that ascend", id="huge percentiles"),
        ("percentiles", "1+x", "numbers from 0 to 100 that ascend"),
        ("classes", 1, "true or false"),
        pytest.param("gradients", 10**400, "an integer from 0 to 100000", id="huge"),
        pytest.param("scale", 10**400, "a number between 0 and 1, without these", id="huge scale"),
    ],
)
def test_a_number_that_is_not_allowed_is_one_line(name, value, expected):
    with pytest.raises(SettingsError) as caught:
        profile_of("standard", {name: value})
    assert str(caught.value).startswith(f"--measure: {name} = ") and expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_one_line():
    with pytest.raises(SettingsError, match=r"--measure: sample: unknown; did you mean 'samples'\?"):
        profile_of("standard", {"sample": 1})
    with pytest.raises(SettingsError, match="--telemetry = 'loud': expected off or production or minimal"):
        profile_of("loud", {})


def test_the_table_for_people_has_every_number_of_every_profile():
    lines = profile_table().splitlines()
    assert lines[0].split() == list(PROFILES) and [line.split()[0] for line in lines[1:]] == list(MEASURES)
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert rows["history"] == [str(profile.history) for profile in PROFILES.values()]
    assert rows["gradients"] == ["-", "-", "-", "last", "5", "1"] and rows["samples"] == ["-", "-", "-", "-", "5", "10"]
    assert max(map(len, lines)) <= 120
