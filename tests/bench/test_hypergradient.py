"""bench.hypergradient: its gradient beside central differences, its searches, its intervals, its report."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from esper.leyline.config import ConfigError, Precision
from esper.leyline.stages import Stage
from esper.runtime.tasks import digits_v1
from esper.utils import rng


@pytest.fixture(scope="module")
def tiny(bench_module):
    """Sixteen environments in float64, six epochs of two small steps; and the space of their schedules."""
    life = bench_module("hyper_life")
    small = {"steps_per_epoch": 2, "batch_size": 8, "precision": Precision.FLOAT64}
    bench = life.set_up(digits_v1(), 16, **small)
    bench = bench._replace(tuning=tuple(part[:40] for part in bench.tuning))
    return bench, life.build_space(bench.eager, life.write_script(digits_v1(), "conv_light", life.QUICK))


def test_slopes_are_central_differences(bench_module, tiny):
    tuning, (bench, space) = bench_module("hyper_tune"), tiny
    along = tuning.directions(16, space.start.shape[0], torch.float64)
    point = space.start.clone()
    point[-1] = 0.9
    found = tuning.hypergradient(bench, space, point, 3)
    errors = []
    for size in (1e-5, 1e-6):
        ends = [tuning.loss_of(bench.eager, bench, space, 3, point + sign * size * along) for sign in (1, -1)]
        errors.append(((ends[0] - ends[1]) / (2 * size) - found.slopes).abs() / found.slopes.abs().max())
    assert torch.stack(errors).min(0).values.max() < 1e-6
    limit = tuning.OUTLIER * found.slopes.abs().median()
    mean = np.linalg.lstsq(along.numpy(), found.slopes.clamp(-limit, limit).numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.gradient.numpy(), mean, atol=1e-12)
    assert found.gradient.abs().min() > 0, "every number matters"


def test_directions_are_orthogonal(bench_module):
    directions = bench_module("hyper_tune").directions
    signs = directions(64, 27, torch.float64)
    assert (signs.abs() == 1).all() and torch.equal(signs.T @ signs, 64 * torch.eye(27, dtype=torch.float64))
    for count in (48, 16):
        with pytest.raises(ValueError, match="expected a power of two of at least 27"):
            directions(count, 27, torch.float64)


def test_rates_are_linear_between_knots(bench_module):
    values = torch.tensor([[0.0, 1.0], [1.0, 3.0], [4.0, 3.0]], dtype=torch.float64)
    found = bench_module("hyper_life").between_knots(values, 9).numpy()
    for column, own in zip(found.T, values.numpy().T, strict=True):
        np.testing.assert_allclose(column, np.interp(np.linspace(0, 2, 9), np.arange(3), own), atol=1e-12)


def test_the_start_is_the_task_with_its_own_ramp(bench_module, tiny):
    life, (bench, space) = bench_module("hyper_life"), tiny
    schedule = life.spread(space, space.start.expand(16, -1))
    assert torch.allclose(schedule.host_lr, bench.eager.hypers.host_lr) and schedule.host_lr.shape == (6, 16)
    assert torch.allclose(schedule.seed_lr, bench.eager.hypers.seed_lr)
    ramp = [1 / (1 + math.exp(-12 * (share - 0.5))) for share in (0, 1 / 3, 2 / 3, 1)]
    shares = [(value - ramp[0]) / (ramp[3] - ramp[0]) for value in ramp]
    np.testing.assert_allclose(schedule.alpha[:, 5].numpy(), [0, 0, 0, *shares[1:]], atol=1e-12)
    with pytest.raises(ConfigError, match="expected one of norm"):
        life.write_script(digits_v1(), "bottelneck")


def test_tuning_descends_and_searches_stay_within_bounds(bench_module, tiny):
    tuning, (bench, space) = bench_module("hyper_tune"), tiny
    tuned = tuning.tune(bench, space, 2, lambda text: None)
    assert len(tuned.losses) == 2 and not torch.equal(tuned.point, space.start)
    before, after = (
        tuning.loss_of(bench.eager, bench, space, 9, each.expand(16, -1)).mean() for each in (space.start, tuned.point)
    )
    assert after < before
    points = [tuned.point]
    for draw in (tuning.draw_few, tuning.draw_all):
        drawn = [draw(space, rng.fold_in(rng.key(1), number)) for number in range(50)]
        assert len({tuple(each.tolist()) for each in drawn}) == 50
        points += drawn
    stacked = torch.stack(points)
    assert ((stacked >= space.low) & (stacked <= space.high)).all()
    trials = [tuning.Trial(space.start, loss) for loss in (math.nan, 2.0, 1.0)]
    assert tuning.best(trials) is trials[2]


def test_the_interval_is_that_of_numpy_and_covers_what_it_should(bench_module):
    crossed = bench_module("hyper_report").crossed_mean
    values = rng.normal(rng.key(5), (40, 30), dtype=torch.float64)
    table, t = values.numpy(), 2.0452296  # Student's t, 0.975, 29 degrees of freedom
    error = math.sqrt(table.mean(1).var(ddof=1) / 40 + table.mean(0).var(ddof=1) / 30)
    found = crossed(values)
    assert found.mean == pytest.approx(table.mean(), abs=1e-12)
    assert found.both == pytest.approx(t * error, rel=1e-5) and found.environments < found.both
    parts = rng.normal(rng.key(6), (400, 71), dtype=torch.float64)
    hit = 0
    for number, part in enumerate(parts):
        noise = rng.normal(rng.fold_in(rng.key(7), number), (40, 30), dtype=torch.float64)
        mean = crossed(part[:40].unsqueeze(1) + 2 * part[40:70] + noise)
        hit += abs(mean.mean) <= mean.both
    assert 0.92 < hit / 400 < 0.99


def test_the_report_is_written(bench_module, tiny, tmp_path):
    report, tuning, (bench, space) = bench_module("hyper_report"), bench_module("hyper_tune"), tiny
    bench = bench._replace(fast=bench.eager)  # no backend is built for a test
    trials = tuning.search(bench, space, tuning.draw_few, 2, lambda text: None)
    others = [("defaults", space.start, []), ("hypergradient", space.start - 0.1, [2.3, 2.2])]
    others.append(("search", tuning.best(trials).point, [trial.loss for trial in trials]))
    contenders = [report.Contender(*each, 3.0, 1.0) for each in others]
    outcomes = [report.measure(bench, space, each.point, 16) for each in contenders]
    assert outcomes[0].losses.shape == (16, 180)
    rows = report.summarise(contenders, outcomes, 1)
    gain = (outcomes[1].losses - outcomes[0].losses).mean()
    assert rows[1]["to defaults"]["loss"]["mean"] == pytest.approx(gain.item())
    assert rows[0]["hypergradient to it"]["loss"]["mean"] == pytest.approx(gain.item())
    text = report.table(rows) + report.schedule_table(space, contenders)
    chart = report.draw(space, contenders, rows, (1, 2))
    paths = report.write(tmp_path, "A name", text, {"contenders": rows}, chart)
    assert [path.suffix for path in paths] == [".md", ".json", ".svg"] and all(path.is_file() for path in paths)
    assert json.loads(paths[1].read_text())["contenders"][1]["tuning losses"] == [2.3, 2.2]
    assert f"| hypergradient | 3 | 1 | {outcomes[1].losses.mean():.4f} |" in text
    assert ElementTree.fromstring(chart).tag == "{http://www.w3.org/2000/svg}svg"
    assert report.progress(contenders[2], 4)[-1] == min(contenders[2].tuning)


@pytest.mark.parametrize("words", [["--envs", "24"], ["--unseen", "65"], ["--outer", "0"]])
def test_a_wrong_word_is_refused(bench_module, words):
    with pytest.raises(SystemExit):
        bench_module("hypergradient").parse(words)


def test_the_script_is_a_life(bench_module):
    script = bench_module("hyper_life").write_script(digits_v1(), "bottleneck")
    assert [int(stage) for stage in script.stages] == sorted(int(stage) for stage in script.stages)
    assert {Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.FOSSILIZED} <= set(script.stages)
