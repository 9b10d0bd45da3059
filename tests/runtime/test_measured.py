"""Nothing is reported that was not measured: hosts that diverge, numbers that stop learning, flags without cause."""

import io
import json
import math

import pytest
import torch

import esper
from esper.__main__ import main
from esper.leyline.config import ConfigError
from esper.nissa.charts import Interval, interval_chart, smooth
from esper.runtime.evaluate import EvaluateSettings, evaluate
from esper.runtime.inspect import InspectSettings, inspect
from esper.simic.ppo_config import PPOConfig
from esper.utils.documents import as_number, to_json
from esper.utils.stats import mean_interval, measured_interval

TINY = {"steps_per_epoch": 4, "batch_size": 4, "val_samples": 8}
DIVERGING = TINY | {"steps_per_epoch": 12, "host_lr": 100.0, "host_clip": math.inf, "host_optimizer": "sgd"}


@pytest.fixture(scope="module")
def diverged():
    """Hosts that are not finite from their first epoch on; and the same text that a terminal gets."""
    out = io.StringIO()
    settings = EvaluateSettings(num_envs=6, task="synthetic_tokens", horizon=2, backend="eager", engine=DIVERGING)
    report = evaluate(settings, out)
    return report, out.getvalue()


def test_a_host_that_diverges_at_once_has_no_validation_figures(diverged):
    report, text = diverged
    for row in report["policies"].values():
        for name in ("val_bits", "val_accuracy"):
            measured = sum(not math.isnan(value) for value in row[name]["values"])
            assert row[name]["measured"] == measured < 6 and row[name]["mean"] is None
        assert row["test_bits"]["measured"] == 6  # the snapshot that it was rolled back to is a network
    assert "not finite from the first epoch on" in text and " 0.000" not in text.split("paired")[0]


def test_what_is_written_of_it_is_json_that_every_parser_reads(diverged):
    report, _ = diverged

    def refuse(word):
        raise AssertionError(word)

    read = json.loads(to_json(report), parse_constant=refuse)
    assert None in read["policies"]["wait"]["val_bits"]["values"]


def test_inspection_says_nothing_of_what_was_not_measured():
    settings = InspectSettings(task="synthetic_tokens", horizon=2, backend="eager", engine=DIVERGING, policy="wait")
    out = io.StringIO()
    story = inspect(settings, out)
    assert story["end"]["val_loss"] is None and "validation 0.0" not in out.getvalue()


def test_values_by_environment_give_the_means_and_pool_over_seeds():
    def played(seed, count):
        settings = EvaluateSettings(num_envs=count, task="synthetic", horizon=1, seed=seed, engine=TINY)
        return json.loads(to_json(evaluate(settings, io.StringIO())))["policies"]["random"]["total_reward"]

    one, two = played(1, 6), played(3, 6)
    assert one["mean"] == pytest.approx(sum(one["values"]) / 6) and len(one["values"]) == 6
    pooled, _ = mean_interval(torch.tensor([*one["values"], *two["values"]]))
    assert pooled == pytest.approx((one["mean"] + two["mean"]) / 2, rel=1e-5)


def test_intervals_are_of_measured_values_only():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    holes = torch.cat((values, values.new_full((3,), torch.nan)))
    assert measured_interval(holes) == (*mean_interval(values), 6)
    assert measured_interval(holes[1:]) == (None, None, 5)
    assert measured_interval(torch.cat((values, values.new_tensor([torch.inf])))) == (math.inf, None, 7)


@pytest.mark.parametrize(
    ("value", "text"), [(math.nan, "null"), (math.inf, '"inf"'), (-math.inf, '"-inf"'), (1.5, "1.5"), (True, "true")]
)
def test_numbers_that_are_none_and_infinities_survive_json(value, text):
    assert to_json({"a": [value]}).strip() == f'{{"a": [{text}]}}'
    again = as_number(json.loads(text))
    assert again == value or (math.isnan(again) and math.isnan(value))


def test_charts_leave_gaps_where_nothing_was_measured():
    means = smooth([1.0, 2.0, math.nan, 4.0, 5.0, 6.0], 2)
    assert [m if m == m else None for m in means] == [None, 1.5, None, None, 4.5, 5.5]
    chart = interval_chart("t", "x", [Interval("a", 1.0, 0.5), Interval("b", math.nan, math.nan)])
    assert "nan" not in chart and "b" in chart


def test_waiting_is_no_red_flag_for_a_policy_that_can_do_nothing_else(diverged):
    report, text = diverged
    assert report["policies"]["wait"]["red_flags"] == [] and "  wait: WAIT" not in text
    assert any("WAIT is over 90" in flag for flag in report["policies"]["heuristic"]["red_flags"])


STOPPING = ["clip=2", "clip=1", "clip=0", "entropy_start=inf", "entropy_end=inf", "value_scale=inf", "lr=nan"]


@pytest.mark.parametrize("setting", STOPPING)
def test_a_number_that_would_stop_all_learning_is_refused(setting, tmp_path, capsys):
    name, _, word = setting.partition("=")
    words = ["train", "--task", "synthetic", "--out", str(tmp_path / "run"), f"--{name.replace('_', '-')}", word]
    assert main(words) == 2 and f"--{name.replace('_', '-')} = " in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"ppo.{name} = "):
        PPOConfig(**{name: float(word)})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["host_lr", "alpha_target", "loss_limit"])
@pytest.mark.parametrize("value", [True, torch.tensor(True)])
def test_true_is_no_number(name, value):
    with pytest.raises(ConfigError, match=f"{name} = .*expected a number"):
        esper.make("synthetic", 2, backend="eager", **{name: value})


def test_true_is_no_number_of_the_reward_either(tmp_path, capsys):
    words = ["train", "--task", "synthetic", "--out", str(tmp_path / "run"), "--rewards", "rent_weight=true"]
    assert main(words) == 2 and "rewards.rent_weight = True: expected a number" in capsys.readouterr().err
