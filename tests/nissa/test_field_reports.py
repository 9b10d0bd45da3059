"""Field reports, the table per blueprint and the narrative, against an episode written by hand."""

import math

import pytest
import torch

from esper.leyline.actions import NONE, Op
from esper.leyline.codes import Verdict
from esper.leyline.stages import Stage as S
from esper.nissa.anomalies import anomalies
from esper.nissa.blueprint_table import BlueprintCost, blueprint_table, costs_from, joined, tally
from esper.nissa.field_reports import field_reports
from esper.nissa.lanes import MOST_POINTS, lanes
from esper.nissa.narrative import Topic, narrate
from esper.nissa.seeds import lives
from esper.nissa.trace import Trace

NAMES = ("norm", "conv")


def by_hand(length, slots, decisions, accuracy, during, after=None, rolled_back=()):
    """One environment. decisions: {t: (op, slot, kind)}; during, after: [T][S] stages."""
    during = torch.tensor(during, dtype=torch.int8).unsqueeze(1)
    stage = during.clone() if after is None else torch.tensor(after, dtype=torch.int8).unsqueeze(1)
    full = {name: torch.full((length, 1), NONE, dtype=torch.int16) for name in ("slot", "kind")}
    op = torch.zeros(length, 1, dtype=torch.int8)
    for t, (what, slot, kind) in decisions.items():
        op[t], full["slot"][t], full["kind"][t] = int(what), slot, kind
    back = torch.zeros(length, 1, dtype=torch.bool)
    verdict = torch.zeros(length, 1, dtype=torch.int8)
    for t in rolled_back:
        back[t], verdict[t] = True, int(Verdict.NONFINITE)
    none = torch.zeros(length, 1)
    return Trace(
        action=none.int(), op=op, **full, blend=none.char(), refusal=none.char(), failed=none.short(), verdict=verdict,
        rolled_back=back, during=during, stage=stage, blueprint=torch.full_like(stage, NONE).short(),
        alpha=stage.float(), effect=torch.full(stage.shape, -0.5), effect_error=stage.float(),
        accuracy=torch.tensor(accuracy).unsqueeze(1), loss=none, reward=none, terms=none.unsqueeze(2),
        term_names=("r",), diagnostics=None,
    )  # fmt: skip


@pytest.fixture
def trace():
    """Slot 0: norm germinates at 1, trains, is culled by a decision at 4; conv germinates at 5 and becomes permanent.
    Slot 1: conv germinates at 0, the clock removes it after epoch 2; norm at 3, a rollback takes it after 5.
    """
    d, g, t, p, f, c = S.DORMANT, S.GERMINATED, S.TRAINING, S.PROBATIONARY, S.FOSSILIZED, S.CULLED
    during = [[d, g], [g, p], [t, p], [t, g], [c, g], [g, t], [p, c], [f, c]]
    after = [[d, g], [g, p], [t, c], [t, g], [c, g], [g, c], [p, c], [f, c]]
    decisions = {
        0: (Op.GERMINATE, 1, 1),
        1: (Op.GERMINATE, 0, 0),
        3: (Op.GERMINATE, 1, 0),
        4: (Op.CULL, 0, NONE),
        5: (Op.GERMINATE, 0, 1),
        7: (Op.FOSSILIZE, 0, NONE),
    }
    return by_hand(8, 2, decisions, [10.0, 20, 30, 40, 50, 60, 70, 80], during, after, rolled_back=(5,))


def test_reports_tell_each_seeds_life(trace):
    reports = {(each.slot, each.seed): each for each in field_reports(trace, lives(trace), NAMES)}
    first = reports[0, 0]
    assert (first.blueprint, first.germinated, first.ended, first.last_stage) == ("norm", 1, 4, "TRAINING")
    assert first.success is False and first.epochs == {"GERMINATED": 1, "TRAINING": 2}
    assert (first.accuracy_before, first.accuracy_after, first.improvement) == (10.0, 40.0, 30.0)
    assert first.reason == "removed by a decision" and first.contribution == -0.5
    permanent = reports[0, 1]
    assert permanent.success is True and permanent.last_stage == "FOSSILIZED" and permanent.reason == ""
    assert permanent.improvement == 30.0 and permanent.ended == 8
    clock = reports[1, 0]
    assert (clock.accuracy_before, clock.improvement, clock.accuracy_after) == (None, None, 30.0)
    assert clock.reason == "it did not contribute" and clock.last_stage == "PROBATIONARY"
    lost = reports[1, 1]
    assert (lost.reason, lost.ended, lost.improvement) == ("rolled back: nonfinite", 6, 30.0) and len(reports) == 4


def test_the_table_adds_rounds_up(trace):
    one = tally(trace, lives(trace), NAMES)
    assert (one["germinated/conv"], one["fossilized/conv"], one["culled/conv"]) == (2, 1, 1)
    assert one["gained/conv"] == 1 and one["gain/conv"] == 30.0  # of the other nothing was known when it was placed
    row = joined([one])
    other = {"germinated/conv": 5, "fossilized/conv": 0, "culled/conv": 3, "gained/conv": 3, "gain/conv": -10.0}
    rows = [{"round": 1, **row}, {"round": 2}, {"round": 3, **joined([other])}]
    lines = {line.blueprint: line for line in blueprint_table(rows, {"conv": BlueprintCost(304, 2.5)})}
    conv = lines["conv"]
    assert (conv.germinated, conv.fossilized, conv.culled, conv.success) == (7, 1, 4, 0.2)
    assert conv.gain == pytest.approx((1 * 30 + 3 * -10) / 4) and (conv.params, conv.multiplier) == (304, 2.5)
    assert lines["norm"].params is None and rows[2]["seed_success"] == 0 and math.isnan(joined([])["seed_success"])


def test_several_tasks_are_one_tally():
    tasks = [
        {"germinated/a": 2, "fossilized/a": 1, "culled/a": 0, "gained/a": 1, "gain/a": 4.0},
        {"germinated/a": 3, "fossilized/a": 0, "culled/a": 3, "gained/a": 3, "gain/a": 0.0},
    ]
    found = joined(tasks)
    assert (found["germinated/a"], found["gained/a"], found["gain/a"], found["seed_success"]) == (5, 4, 1.0, 0.25)
    costs = costs_from({"x": {"blueprint_costs": {"a": [3, 1.5]}}, "y": {"blueprint_costs": {"a": [2, 2.0]}}, "z": {}})
    assert costs == {"a": BlueprintCost(3, 2.0)}


def test_lanes_hold_every_stretch_and_long_curves_are_thinned(trace):
    (env,) = lanes(trace, lives(trace), NAMES)
    assert env["accuracy"] == [[t, 10.0 * t] for t in range(1, 9)]
    for slot, stretches in enumerate(env["slots"]):
        named = [stage for stage, start, stop, _ in stretches for _ in range(start, stop + 1)]
        assert named == [S(int(x)).name for x in trace.during[:, 0, slot] if int(x) != S.DORMANT]
    assert env["slots"][0][0] == ["GERMINATED", 2, 2, "norm"]
    length = 5000
    long = by_hand(length, 1, {}, [float(t) for t in range(length)], [[S.DORMANT]] * length)
    (env,) = lanes(long, lives(long), NAMES)
    assert len(env["accuracy"]) <= MOST_POINTS + 1 and env["accuracy"][-1] == [length, length - 1.0]
    assert all(value == t - 1 for t, value in env["accuracy"])


def rounds(count, **columns):
    return [{"round": n, **{name: of(n) for name, of in columns.items()}} for n in range(1, count + 1)]


def told(rows, reports=(), table=()):
    return {(each.topic, each.text) for each in narrate(rows, anomalies(rows)[1], table, reports)}


def test_a_run_is_told_in_words():
    rows = rounds(
        12, val_accuracy=lambda n: 50.0 + 2 * n, val_loss=lambda n: 1 / n, rolled_back=lambda n: float(n == 3)
    )
    rows[-1] |= {"share_wait": 0.95, "entropy": 0.05, "explained_variance": -0.2}
    found = told(
        rows, [{"reason": "removed by a decision"}] * 3 + [{"reason": "it did not contribute"}, {"reason": ""}]
    )
    assert (Topic.FAILED, "Why watched seeds were lost: removed by a decision 3, it did not contribute 1.") in found
    texts = " ".join(text for _, text in found)
    assert "Mean accuracy rose: from 57.00 % to 69.00 % (first and last 6 of 12 rounds, error 2.16)." in texts
    assert "1.00 rollbacks per environment in all rounds together, in 1 of them." in texts
    assert "95% of the last round's decisions are WAIT." in texts and "entropy 0.050" in texts and "-0.20" in texts
    assert "1 anomaly, 0 of them severe; the last: round 3: rolled_back 1," in texts


def test_a_calm_run_and_an_empty_one():
    rows = rounds(4, val_accuracy=lambda n: 50.0 + n % 2, val_loss=lambda n: 1 / n)
    assert (Topic.LOOK, "Nothing is out of the ordinary.") in told(rows)
    assert told([]) == {(Topic.LEARNED, "No round was finished.")}


def test_a_plateau_and_blueprints_that_fail_or_do_best():
    rows = rounds(6, val_loss=lambda n: 3.0 - min(n, 2) + 0.0011 * n)
    row = {"germinated/a": 20, "fossilized/a": 15, "culled/a": 5, "gained/a": 20, "gain/a": 2.5}
    row |= {"germinated/b": 12, "fossilized/b": 0, "culled/b": 12, "gained/b": 12, "gain/b": -1.0}
    texts = " ".join(text for _, text in told(rows, (), blueprint_table([row], {})))
    assert "stays within 0.005 of 1.007 for 5 rounds" in texts
    assert "32 seeds germinated; 15 became permanent, 47% of those that ended; 17 were removed." in texts
    assert "a does best: 75% become permanent and +2.50 points" in texts
    assert "No seed of b became permanent; 12 were removed." in texts
