"""The one check of learners' numbers: edges are allowed, what is beyond them or no number is not."""

import math
from types import SimpleNamespace

import pytest

from esper.leyline.config import ConfigError
from esper.simic.offline.config import OFFLINE_RANGES, OfflineConfig
from esper.simic.offline.config import WHOLE as OFFLINE_WHOLE
from esper.simic.ppo_config import RANGES, WHOLE, PPOConfig
from esper.simic.ranges import expect_in_ranges

ONE = {"share": (0.0, 1.0), "count": (1, 4)}


@pytest.mark.parametrize(("share", "count"), [(0.0, 1), (1, 4), (0.5, 2)])
def test_what_is_inside_is_allowed(share, count):
    expect_in_ranges("mine", SimpleNamespace(share=share, count=count), ONE, ("count",))


@pytest.mark.parametrize(
    ("share", "count", "words"),
    [
        (-0.1, 1, "mine.share = -0.1: expected a number from 0 to 1"),
        (math.nan, 1, "mine.share = nan"),
        (math.inf, 1, "mine.share = inf"),
        (True, 1, "mine.share = True"),
        ("0.5", 1, "mine.share = '0.5'"),
        (0.5, 0, "mine.count = 0: expected an integer from 1 to 4"),
        (0.5, 2.0, "mine.count = 2.0: expected an integer"),
        (0.5, 5, "mine.count = 5"),
    ],
)
def test_what_is_not_is_refused(share, count, words):
    with pytest.raises(ConfigError) as caught:
        expect_in_ranges("mine", SimpleNamespace(share=share, count=count), ONE, ("count",))
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("kind", "ranges", "whole"), [(PPOConfig, RANGES, WHOLE), (OfflineConfig, OFFLINE_RANGES, OFFLINE_WHOLE)]
)
def test_both_learners_are_held_to_their_tables(kind, ranges, whole):
    for name, (low, high) in ranges.items():
        for edge in (low, high):
            kind(**{name: edge})
        for odd in (low - 1, math.nan, *([low + 0.5] if name in whole else [])):
            with pytest.raises(ConfigError, match=name):
                kind(**{name: odd})
