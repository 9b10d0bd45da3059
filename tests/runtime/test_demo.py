"""The demonstration's command: what it prints, and that growing pays."""

import io

import pytest

import esper.__main__
from esper.runtime.demo import DemoSettings, demonstrate
from esper.utils.stats import mean_interval, t_quantile


def test_growing_beats_waiting():
    """A small edition of the README's table: 6 environments instead of 32."""
    out = io.StringIO()
    static, grown = demonstrate(DemoSettings(num_envs=6), out)
    mean, half = mean_interval(grown.test_accuracy - static.test_accuracy)
    assert mean - half >= 10
    assert (grown.fossilized > 0).all() and (static.added == 0).all()
    text = out.getvalue()
    assert f"growing adds {mean:.1f} ± {half:.1f} percentage points" in text
    assert "static (wait)" in text and "grown (conv8x2)" in text


@pytest.mark.parametrize("words", [["demo", "--num-envs", "5"], ["demo", "--blueprint", "lore"], ["dance"]])
def test_bad_words_exit_with_2_and_say_why(words, capsys):
    assert esper.__main__.main(words) == 2
    error = capsys.readouterr().err
    assert words[-1] in error and error.count("\n") == 1


@pytest.mark.parametrize(("degrees", "expected"), [(5, 2.5706), (10, 2.2281), (31, 2.0395), (100, 1.9840)])
def test_student_quantiles(degrees, expected):
    """Table values of Student's t at 0.975."""
    assert t_quantile(0.975, degrees) == pytest.approx(expected, abs=2e-3)
