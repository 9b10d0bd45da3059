"""bench.isolation: what became of seeds, intervals and the rule, by hand."""

import math
import statistics
from types import SimpleNamespace

import pytest
import torch

from esper.leyline.stages import Stage


@pytest.fixture(scope="module")
def bench(bench_module):
    """The modules by their short names."""
    return SimpleNamespace(main=bench_module("isolation"), report=bench_module("isolation_report"))


def test_what_is_not_allowed_is_one_line_before_anybody_trains(bench, tmp_path, monkeypatch, capsys):
    (tmp_path / "FILE").write_text("kept")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench.main, "play", None)
    refused = {
        "--envs 2": "--envs = 2: expected an integer from 6",
        "--seed -1": "--seed = -1: expected an integer from 0",
        "--threads -2": "--threads = -2: expected an integer from 0",
        "--out FILE": "FILE is no directory; expected a place for one",
        "--tasks synthetic,digts": "task 'digts': expected one of",
    }
    for words, expected in refused.items():
        with pytest.raises(SystemExit) as stopped:
            bench.main.main(words.split())
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and expected in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_fates_are_of_the_first_seed(bench):
    """One passes its gate at once, one after two epochs, one never, one is culled and its successor passes."""
    train, blend, cull, kept = Stage.TRAINING, Stage.BLENDING, Stage.CULLED, Stage.FOSSILIZED
    rows = ([blend, kept, kept], [train, train, kept], [train, train, train], [train, cull, kept])
    found = bench.main.fates(torch.tensor([[int(stage) for stage in row] for row in rows]).mT)
    assert found["gate"].tolist()[:2] == [1, 3] and found["gate"][2:].isnan().all()
    assert found["permanent"].tolist() == [1, 1, 0, 1]
    expected = [[False] * 3, [True, True, False], [True] * 3, [True, False, False]]
    assert found["training"].mT.tolist() == expected


def cell(isolation, test, task="t", form="slot", optimizer="sgd"):
    """A cell at two rates, of which the second validates better."""
    found = {"task": task, "form": form, "optimizer": optimizer, "isolation": isolation}
    return found | {"test": [[0.0] * len(test), test], "validation": [[1.0] * len(test), [2.0] * len(test)]}


THROUGH = [50.0, 52.0, 54.0, 56.0, 58.0, 60.0]


def moved(by, spread=0.0):
    return [value + by + spread * (-1) ** number for number, value in enumerate(THROUGH)]


def test_gains_are_paired_at_the_best_rate_and_averaged_over_cells(bench):
    rows = [cell("straight_through", THROUGH, form=form) for form in ("slot", "bypass")]
    rows += [cell("objective", moved(2.0, 1.0)), cell("objective", moved(4.0, 1.0), form="bypass")]
    mean, half = bench.report.gains(rows, "objective", "straight_through")["t"]
    by_hand = [3 + (-1) ** number for number in range(6)]
    assert mean == pytest.approx(3.0)
    assert half == pytest.approx(2.5706 * statistics.stdev(by_hand) / math.sqrt(6), rel=1e-3)
    assert bench.report.combined([(1.0, 3.0), (3.0, 4.0)]) == (2.0, 2.5)


@pytest.mark.parametrize(
    ("own", "other", "none", "chosen"),
    [
        (2.0, 2.0, 0.0, "objective"),
        (2.0, -1.5, 0.0, "straight_through"),  # better in the mean, but worse by more than a point on one task
        (2.0, -0.5, 0.0, "objective"),
        (-0.1, -0.1, 0.0, "straight_through"),
        (2.0, 2.0, 2.5, "objective"),  # none has to be better by a point
        (2.0, 2.0, 3.5, "none"),
    ],
)
def test_the_rule(bench, own, other, none, chosen):
    rows = list[dict]()
    for task, by in (("a", own), ("b", other)):
        rows += [cell("straight_through", THROUGH, task), cell("objective", moved(by), task)]
        rows.append(cell("none", moved(none), task))
    assert bench.report.by_rule(rows) == chosen


def test_a_host_loses_beside_one_that_waits(bench):
    """Two epochs of three in TRAINING, at the better rate."""
    curve = [[[0.0] * 2, [10.0, 10.0]], [[0.0] * 2, [20.0, 20.0]], [[0.0] * 2, [30.0, 30.0]]]
    waiting = [[[0.0] * 2, [11.0, 10.0]], [[0.0] * 2, [23.0, 20.0]], [[0.0] * 2, [99.0, 99.0]]]
    during = [[[True] * 2] * 2, [[True] * 2, [True] * 2], [[False] * 2] * 2]
    row = {"curve": curve, "training": during, "validation": [[1.0], [2.0]]}
    assert bench.report.cost_of_training(row, {"curve": waiting}).tolist() == [2.0, 0.0]
