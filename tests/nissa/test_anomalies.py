"""Anomalies and trends: against the governor, published quantiles, NumPy's fit, and series with known answers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from esper.leyline.codes import Verdict
from esper.leyline.config import Config
from esper.leyline.hypers import build_hypers
from esper.nissa.anomalies import RULES, AnomalyMemory, anomalies, deviate, observe
from esper.nissa.trends import trend, trends
from esper.tolaria.governor import _remember, initial_governor, judge

BY_NAME = {rule.name: rule for rule in RULES}


def series(name, values):
    return [{"round": number, name: value} for number, value in enumerate(values, start=1)]


def found(name, values, rule):
    return [each for each in anomalies(series(name, values))[1] if each.rule == rule]


@pytest.mark.parametrize("seed", range(5))
def test_a_spike_of_ten_times_is_flagged_with_its_own_sample(seed):
    values = np.random.default_rng(seed).normal(1.5, 0.1, 60)
    values[40] *= 10
    hit = [each for each in found("val_loss", values.tolist(), "sudden") if each.round == 41]
    assert len(hit) == 1 and hit[0].severity == "high" and hit[0].value == values[40]


def test_calm_samples_are_rarely_flagged():
    """A calm series of 1,000, many times: under 1 % each, and 0.27 % on the whole."""
    shares = []
    for seed in range(40):
        values = np.random.default_rng(seed).normal(2.0, 0.3, 1000).tolist()
        shares.append(len(found("val_loss", values, "sudden")) / 1000)
    assert max(shares) < 0.01
    assert np.mean(shares) == pytest.approx(0.0027, abs=0.0009)  # 40,000 samples: over three standard errors


def student_tail(t, df):
    """P(T > t) by quadrature of the density."""
    x = np.linspace(t, t + 400, 400_001)
    log = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    return float(np.trapezoid(np.exp(log - (df + 1) / 2 * np.log1p(x * x / df)), x))


@pytest.mark.parametrize("n", [8, 12, 20])
@pytest.mark.parametrize("t", [2.0, 3.0, 4.5])
def test_a_score_is_the_normal_deviate_of_students_probability(n, t):
    window = np.random.default_rng(n).normal(0, 1, n)
    value = window.mean() + t * window.std(ddof=1) * math.sqrt(1 + 1 / n)
    z = deviate(window.tolist(), value)
    assert 0.5 * math.erfc(z / math.sqrt(2)) == pytest.approx(student_tail(t, n - 1), rel=0.12)
    assert deviate((-window).tolist(), -value) == pytest.approx(-z)


def test_the_quadrature_knows_printed_quantiles():
    assert student_tail(2.0930, 19) == pytest.approx(0.025, abs=2e-5)
    assert student_tail(2.3646, 7) == pytest.approx(0.025, abs=2e-5)


@pytest.mark.parametrize("seed", range(6))
def test_the_spike_rule_is_the_governors(seed):
    """The governor watches one environment with the same losses; both name the same rounds."""
    hypers = build_hypers({}, 1, torch.float64, torch.device("cpu"))
    generator = np.random.default_rng(seed)
    losses = generator.normal(3.0, 0.4, 200)
    for start in generator.integers(15, 190, 12):
        losses[start : start + generator.integers(2, 8)] = generator.choice([9.0, 14.0, 14.0, 40.0, 40.0])
    sizes = SimpleNamespace(loss_window=Config.loss_window, precision=SimpleNamespace(dtype=torch.float64))
    governor, named = initial_governor(sizes, 1, torch.device("cpu")), []
    for number, loss in enumerate(losses, start=1):
        value = torch.tensor([loss], dtype=torch.float64)
        verdict = judge(hypers, governor, value, torch.tensor([True]), 1e9)
        governor = _remember(governor, value, verdict)
        named += [number] if int(verdict) == int(Verdict.SPIKE) else []
    assert named and [each.round for each in found("val_loss", losses.tolist(), "spike")] == named


def test_its_numbers_are_the_governors():
    rule, hypers = BY_NAME["spike"], build_hypers({}, 1, torch.float64, torch.device("cpu"))
    numbers = (hypers.loss_sigmas, hypers.min_history, hypers.loss_multiple, hypers.loss_limit, hypers.spikes_in_a_row)
    assert (rule.limit, rule.least, rule.multiple, rule.absolute, rule.in_a_row) == tuple(map(float, numbers))
    assert rule.window == Config.loss_window


def test_rules_of_the_table_by_hand():
    assert [each.round for each in found("val_loss", [1, 2, 3, 3.0001, 3.0002, 3.0001, 3.0002, 3], "stall")] == [7]
    assert [each.round for each in found("rolled_back", [0, 0.1, 0.11, 0.2, 0, 0.5], "rollbacks")] == [3, 6]
    success = [0.4] * 4 + [0.6] + [0.4] * 7
    assert [each.round for each in found("seed_success", success, "failing seeds")] == [10]
    assert [each.round for each in found("memory_bytes", [10, 11, 12, 14.9, 17], "memory")] == [5]
    assert not found("memory_bytes", [10, 10, 15, 15, 15], "memory")  # exactly half more is allowed
    short = found("memory_left", [0.2, 0.1, 0.09, 0.02, 0.3, 0.04], "memory runs out")
    assert [(each.round, each.severity) for each in short] == [(3, "medium"), (6, "high")]
    assert [each.severity for each in found("compile_seconds", [5.0, 5.1, 1, 61], "slow compilations")] == [
        "medium",
        "high",
    ]
    assert [each.round for each in found("compile_failed", [0.05, 0.06], "failed compilations")] == [2]


def test_gaps_are_not_judged_and_a_series_that_moves_from_zero_is_told():
    values = [1.0] * 9 + [math.nan] * 3 + [1.0, 2.0]
    assert [each.round for each in found("val_loss", values, "sudden")] == [14]
    assert anomalies([{"round": 1, "return": "inf"}, {"round": 2}, {"round": 3, "return": None}])[1] == []


def test_a_memory_goes_on_where_it_was_and_inputs_are_as_they_were():
    values = series("val_loss", [*np.random.default_rng(0).normal(1, 0.1, 50).tolist(), 9.0])
    memory, first = anomalies(values[:30])
    kept = (dict(memory.windows), dict(memory.streaks))
    rest = []
    for sample in values[30:]:
        memory, new = observe(memory, sample)
        rest += new
    assert first + rest == anomalies(values)[1] and anomalies(values[:30])[0] == AnomalyMemory(*kept)


@pytest.mark.parametrize("seed", range(5))
def test_a_rising_series_gives_its_slope(seed):
    """Ten units an hour in noise of half a unit, sampled a hundred times an hour: within 5 %, over the last hour."""
    generator = np.random.default_rng(seed)
    seconds = np.arange(0, 7200, 36.0)
    hours = seconds / 3600
    values = np.where(hours < 0.99, 50.0, 10 * hours) + generator.normal(0, 0.5, len(hours))
    line = trend(seconds.tolist(), values.tolist())
    assert (
        line.slope == pytest.approx(10, rel=0.05)
        and line.word == "rises"
        and line.minutes == pytest.approx(60, abs=0.7)
    )
    recent = seconds >= seconds[-1] - 3600
    fit, covariance = np.polyfit(hours[recent], values[recent], 1, cov=True)
    assert line.slope == pytest.approx(fit[0]) and line.error == pytest.approx(math.sqrt(covariance[0, 0]))


def test_trends_of_rows():
    rows = [{"round": n, "seconds": 60.0, "return": 2.0 * n, "kl": math.nan, "x": None} for n in range(1, 11)]
    lines = trends(rows, ["return", "kl", "x", "absent"])
    assert list(lines) == ["return"] and lines["return"].slope == pytest.approx(120) and lines["return"].samples == 10
    assert trend([0, 1], [1, 2]) is None and trend([5, 5, 5], [1, 2, 3]) is None
    assert trend([0, 60, 120], [3.0, 3.0, 3.0]).word == "level"
