"""What a run will need: the straight lines by hand, and what is said against a run that is really played."""

import io
import json

import pytest

from esper.runtime.estimate import EstimateSettings, ShortRun, counted, estimate, fitting, needs, probed
from esper.runtime.memory_plan import EPISODES, STATES
from esper.utils.settings import SettingsError

MIB = 1 << 20


def test_the_lines_by_hand():
    small = ShortRun(10, 5, 100 * MIB, 1.0, 0.5, 1000, 10)
    large = ShortRun(20, 5, 120 * MIB, 1.5, 0.7, 1000, 10)
    found = needs(small, large, 100, 5, 3)
    assert found.memory == (120 + 80 * 2) * MIB
    assert found.round_seconds == pytest.approx((1.5 + 80 * 0.05) + (0.7 + 80 * 0.02))
    assert found.seconds == pytest.approx(3 * found.round_seconds)
    longer = needs(small, large, 100, 10, 1)
    assert longer.round_seconds == pytest.approx(2 * found.round_seconds)
    assert longer.memory == found.memory + 100 * 5 * 10 * EPISODES


def test_memory_is_never_less_than_what_can_be_counted():
    small = ShortRun(10, 5, 100 * MIB, 1.0, 0.5, MIB, 10)
    flat = small._replace(num_envs=20)
    found = needs(small, flat, 1020, 5, 1)
    assert found.memory == 100 * MIB + 1000 * (STATES * MIB + EPISODES * 50) == 100 * MIB + 1000 * counted(flat, 5)
    assert needs(small, small, 10, 5, 1).memory == 100 * MIB  # the run itself was measured
    assert needs(small, small, 20, 5, 1).round_seconds == pytest.approx(3.0)


@pytest.mark.parametrize("memory", [100 * MIB, 121 * MIB, 300 * MIB])
def test_what_fits_is_the_last_that_does(memory):
    """Against a walk through all numbers."""
    small = ShortRun(10, 5, 100 * MIB, 1.0, 0.5, 1000, 10)
    large = ShortRun(20, 5, 120 * MIB, 1.5, 0.7, 1000, 10)
    expected = max(count for count in range(200) if needs(small, large, count, 5, 1).memory <= memory)
    assert fitting(small, large, 5, memory) == expected
    assert fitting(small, large, 5, 10 * MIB) == 0


def test_what_is_said_is_near_what_a_run_holds():
    out = io.StringIO()
    settings = EstimateSettings(task="synthetic", num_envs=96, rounds=5, horizon=3, features=8, lstm=8, json=True)
    found = estimate(settings, out)
    told = json.loads(out.getvalue())
    assert (told["memory"], told["num_envs"], told["decisions"]) == (found.memory, 96, 3)
    assert [probe["num_envs"] for probe in told["probes"]] == [16, 64]
    assert told["room"]["limit"] >= told["room"]["left"] > 0 and told["num_envs_that_fit"] >= 96
    real = probed(settings)
    assert found.memory == pytest.approx(real.peak, rel=0.25)
    assert found.seconds == pytest.approx(5 * found.round_seconds) and found.round_seconds > 0


def test_learning_from_records_plays_nothing():
    with pytest.raises(SettingsError, match="plays no round"):
        estimate(EstimateSettings(algorithm="bc"), io.StringIO())
