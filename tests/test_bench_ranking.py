"""Ranks, correlations and choices of bench/ against the same in plain Python, and the study as a command."""

import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(scope="module")
def ranking():
    """bench.ranking; the folder is no part of the installed package."""
    spec = importlib.util.spec_from_file_location("bench_ranking", FOLDER / "ranking.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_ranking"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_ranking"]


def plain_ranks(row):
    """The mean place of each value among all, in sorted order."""
    order = sorted(row)
    return [1 + order.index(value) + (order.count(value) - 1) / 2 for value in row]


def plain_spearman(first, second):
    if len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    return statistics.correlation(plain_ranks(first), plain_ranks(second))


@pytest.fixture(scope="module")
def drawn():
    """Scores and gains with ties, and constant rows."""
    scores = np.array([[i * j % 7 for j in range(1, 10)] for i in range(1, 9)], dtype=float)
    gains = np.array([[(3 * i + j * j) % 11 / 2 for j in range(9)] for i in range(8)])
    gains[5] = 1.5
    return scores, gains


def test_ranks_and_correlations(ranking, drawn):
    scores, gains = drawn
    assert ranking.ranks(scores).tolist() == [plain_ranks(row) for row in scores.tolist()]
    found = ranking.spearman(scores, gains)
    truth = [plain_spearman(a, b) for a, b in zip(scores.tolist(), gains.tolist(), strict=True)]
    np.testing.assert_allclose(found, truth, atol=1e-12)
    assert ranking.spearman(scores, 2 * scores + 1)[0] == pytest.approx(1)
    assert ranking.spearman(scores, -scores)[0] == pytest.approx(-1)


def test_choices_and_what_they_are_compared_with(ranking, drawn):
    scores, gains = drawn
    found = ranking.assess(scores, gains, -gains)
    choices, constants = [], []
    for env, (row, brought) in enumerate(zip(scores.tolist(), gains.tolist(), strict=True)):
        choices.append(statistics.mean(b for s, b in zip(row, brought, strict=True) if s == max(row)))
        others = [statistics.mean(gains[e, c] for e in range(8) if e != env) for c in range(9)]
        constants.append(brought[others.index(max(others))])
    assert found["gain"].mean == pytest.approx(statistics.mean(choices))
    assert found["constant"].mean == pytest.approx(statistics.mean(choices) - statistics.mean(constants))
    assert found["random"].mean == pytest.approx(statistics.mean(choices) - gains.mean())
    assert found["regret"].mean == pytest.approx(gains.max(1).mean() - statistics.mean(choices))
    assert found["rank_loss"].mean == pytest.approx(-found["rank"].mean)


def test_what_is_common_to_all_environments_is_not_their_own(ranking):
    """A score that knows every candidate's mean, and one that knows each environment's deviations from it."""
    common, own = np.arange(6.0), np.array([[1, -1, 2, -2, 3, -3], [-1, 1, -2, 2, -3, 3]]) / 10
    gains = common + own
    assert ranking.assess(common + 0 * own, gains, gains)["own"].mean == 0
    assert ranking.assess(own, gains, gains)["own"].mean == pytest.approx(1)


def test_intervals_are_those_of_the_mean(ranking):
    """Of many values the bootstrap's interval is the normal one."""
    values = np.sin(np.arange(400.0)) ** 3
    mean, low, high = ranking.bootstrap(values)
    half = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert (low, high) == (pytest.approx(mean - half, abs=0.1 * half), pytest.approx(mean + half, abs=0.1 * half))
    assert ranking.bootstrap(values) == (mean, low, high), "the key is fixed"


def test_the_study_runs_as_a_command(tmp_path):
    command = [
        sys.executable,
        "-m",
        "bench.grow_by_gradient",
        "--quick",
        "--task",
        "synthetic",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    (numbers,) = tmp_path.glob("*.json")
    (study,) = json.loads(numbers.read_text())["studies"]
    assert (study["envs"], len(study["candidates"])) == (8, 21)
    assert set(study["scores"]) > {"norm at birth", "norm, RMS", "slope, epoch 1", "slope, epoch 2", "slope, epoch 4"}
    for row in study["scores"].values():
        assert -1 <= row["rank"]["low"] <= row["rank"]["mean"] <= row["rank"]["high"] <= 1
        assert row["regret"]["mean"] >= -1e-9
    (picture,) = tmp_path.glob("*.svg")
    assert picture.read_text().startswith("<svg xmlns=") and "norm at birth" in done.stdout
