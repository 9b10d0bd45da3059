"""Events of an episode that was written by hand."""

import math

import pytest
import torch

from esper.leyline.actions import NONE, Action, Blend, Op, build_codec
from esper.leyline.codes import Check, Refusal, Verdict
from esper.leyline.stages import Stage as S
from esper.nissa.event_record import OCCURRENCES
from esper.nissa.growth_events import EpisodePlace, growth_events, plateau_length, report_events
from esper.nissa.trace import Trace

CODEC = build_codec(((0, 1), (0, 1)), (Blend.LINEAR,), ("norm", "conv"))
GROW = CODEC.encode(Action(Op.GERMINATE, 0, 1, int(Blend.LINEAR)))
DURING = [[S.GERMINATED, S.DORMANT], [S.TRAINING, S.DORMANT], [S.TRAINING, S.DORMANT], [S.FOSSILIZED, S.DORMANT]]
AFTER = [[S.TRAINING, S.DORMANT], [S.TRAINING, S.DORMANT], [S.PROBATIONARY, S.DORMANT], [S.FOSSILIZED, S.DORMANT]]
"""Of environment 0: conv is placed in slot 0, trains, passes to probation by the clock, is made permanent."""


def episode(loss, accuracy, alpha=0.0):
    """Environment 0 as above; environment 1 waits, is refused, and loses a seed to a rollback."""
    length = len(DURING)
    lost = [[S.DORMANT, S.BLENDING], [S.DORMANT, S.BLENDING], [S.DORMANT, S.BLENDING], [S.DORMANT, S.CULLED]]
    kept = [[S.DORMANT, S.BLENDING], [S.DORMANT, S.BLENDING], [S.DORMANT, S.CULLED], [S.DORMANT, S.CULLED]]

    def numbers(*columns):
        return torch.tensor(columns).T

    during = torch.tensor([DURING, lost], dtype=torch.int8).movedim(0, 1)
    stage = torch.tensor([AFTER, kept], dtype=torch.int8).movedim(0, 1)
    none = torch.zeros(length, 2)
    checks = int(Check.TOO_YOUNG | Check.UNHEALTHY)
    return Trace(
        action=numbers([GROW, 0, 0, CODEC.encode(Action(Op.FOSSILIZE, 0))], [0, GROW, CODEC.size + 7, 0]).int(),
        op=numbers([Op.GERMINATE, 0, 0, Op.FOSSILIZE], [0, 0, 0, 0]).char(),
        slot=numbers([0, NONE, NONE, 0], [NONE] * 4).short(),
        kind=numbers([1, NONE, NONE, NONE], [NONE] * 4).short(),
        blend=none.char(),
        refusal=numbers([0] * 4, [0, Refusal.GATE_FAILED, Refusal.OUT_OF_RANGE, 0]).char(),
        failed=numbers([0] * 4, [0, checks, 0, 0]).short(),
        verdict=numbers([0] * 4, [0, 0, Verdict.SPIKE, 0]).char(),
        rolled_back=numbers([False] * 4, [False, False, True, False]),
        during=during,
        stage=stage,
        blueprint=torch.where(stage > int(S.DORMANT), 1, NONE).short(),
        alpha=torch.where(stage == int(S.TRAINING), alpha, 0.5).float(),
        effect=none.unsqueeze(2).expand(-1, -1, 2),
        effect_error=none.unsqueeze(2).expand(-1, -1, 2),
        accuracy=numbers(accuracy, [1.0, 2, 3, 4]),
        loss=numbers(loss, [2.0] * 4),
        reward=none + 0.5,
        terms=none.unsqueeze(2),
        term_names=("r",),
        diagnostics=None,
    )


UNCUT = ("term_names", "diagnostics", "account")
LOSS, ACCURACY = [math.nan, 2.0, 1.5, 1.75], [math.nan, 10.0, 30.0, 25.0]
PLACE = EpisodePlace(round=3, task="t", codec=CODEC, slots=("block0", "block1"))
TIMES = (100.0, 101.0, 102.5, 103.0)


@pytest.fixture(scope="module")
def events():
    return growth_events(episode(LOSS, ACCURACY), TIMES, PLACE)


def kinds(events, env, decision):
    return [
        each.kind
        for each in events
        if (each.fields["environment"], each.fields["decision"]) == (env, decision) and each.kind != "epoch.completed"
    ]


def test_decisions_transitions_and_their_ends_are_told_in_order(events):
    assert kinds(events, 0, 1) == [
        *("command.issued", "command.executed", "seed.germinated"),
        *("seed.stage_changed", "seed.stage_changed"),  # by the decision, then by the clock
    ]
    assert kinds(events, 0, 2) == ["command.issued"]
    assert kinds(events, 0, 3) == ["command.issued", "seed.stage_changed", "improvement.detected"]
    assert kinds(events, 0, 4) == [
        *("command.issued", "command.executed", "seed.stage_changed", "seed.fossilized", "performance.degraded")
    ]
    assert kinds(events, 1, 2) == ["command.issued", "command.failed"]
    assert kinds(events, 1, 3) == [
        *("command.issued", "command.failed", "seed.stage_changed", "seed.culled", "environment.rolled_back")
    ]
    assert kinds(events, 1, 4) == ["command.issued", "plateau.detected"]
    assert sum(each.kind == "epoch.completed" for each in events) == 8


def told(events, kind, env=0):
    return [each.fields for each in events if each.kind == kind and each.fields["environment"] == env]


def test_events_say_what_where_why_and_when(events):
    assert (
        told(events, "seed.germinated")[0] | {"slot": "block0", "blueprint": "conv"}
        == told(events, "seed.germinated")[0]
    )
    moves = [(each["source"], each["target"], each["cause"]) for each in told(events, "seed.stage_changed")]
    assert moves == [
        ("DORMANT", "GERMINATED", "decision"),
        ("GERMINATED", "TRAINING", "clock"),
        ("TRAINING", "PROBATIONARY", "clock"),
        ("PROBATIONARY", "FOSSILIZED", "decision"),
    ]
    refused, unknown = told(events, "command.failed", env=1)
    assert refused["command"] == "GERMINATE slot 0 conv linear" and refused["reason"] == "a gate's check failed"
    assert refused["checks"] == ("too few epochs in the stage; the seed's gradients are not finite or explode")
    assert unknown["command"] == f"no action: {CODEC.size + 7}" and unknown["checks"] == ""
    assert told(events, "seed.culled", env=1)[0]["cause"] == "governor"
    assert "spiked several epochs" in told(events, "environment.rolled_back", env=1)[0]["verdict"]
    assert {each.seconds for each in events if each.fields["decision"] == 3} == {102.5}
    assert {(each.round, each.fields["task"]) for each in events} == {(3, "t")}


def test_a_seeds_end_is_its_field_report(events):
    """In words, numbers and truth values alone, at the last decision in which it was there."""
    (report,) = report_events(episode(LOSS, ACCURACY), TIMES, PLACE)
    assert (report.kind, report.round, report.seconds) == ("seed.reported", 3, 103.0)
    assert report.fields == {
        **{"task": "t", "environment": 0, "decision": 4, "slot": "block0", "seed": 0, "blueprint": "conv"},
        **{"germinated": 1, "last_stage": "FOSSILIZED", "success": True, "reason": ""},
        **{"epochs_germinated": 1, "epochs_training": 2, "epochs_fossilized": 1},
        **{"accuracy_before": None, "accuracy_after": 25.0, "improvement": None, "contribution": 0.0},
    }


def test_a_seed_that_is_alive_has_no_report_and_one_that_is_removed_says_why():
    whole = episode(LOSS, ACCURACY)
    cut = whole._replace(**{name: getattr(whole, name)[:3] for name in whole._fields if name not in UNCUT})
    assert list(report_events(cut, TIMES[:3], PLACE)) == []
    lost = cut._replace(stage=cut.stage.clone(), rolled_back=cut.rolled_back.clone())
    lost.stage[2, 0, 0] = int(S.CULLED)
    (report,) = report_events(lost, TIMES[:3], PLACE)
    assert (report.fields["decision"], report.seconds) == (3, 102.5)
    assert (report.fields["success"], report.fields["last_stage"]) == (False, "TRAINING")
    assert report.fields["reason"] == "it did not contribute" and report.fields["accuracy_after"] == 30.0


def test_a_seed_that_another_one_takes_the_place_of_is_culled():
    whole = episode(LOSS, ACCURACY)
    changed = whole._replace(**{name: getattr(whole, name).clone() for name in ("op", "slot", "kind")})
    changed.op[2, 0], changed.slot[2, 0], changed.kind[2, 0] = int(Op.CHANGE_BLUEPRINT), 0, 0
    found = growth_events(changed, TIMES, PLACE)
    (culled,) = told(found, "seed.culled")
    assert (culled["slot"], culled["blueprint"], culled["cause"], culled["decision"]) == (
        "block0",
        "conv",
        "decision",
        3,
    )
    placed = told(found, "seed.germinated")
    assert [(each["blueprint"], each["decision"]) for each in placed] == [("conv", 1), ("norm", 3)]
    reports = list(report_events(changed, TIMES, PLACE))
    assert [(each.fields["blueprint"], each.fields["decision"], each.fields["success"]) for each in reports] == [
        ("conv", 2, False),
        ("norm", 4, True),
    ]


def test_deltas_are_those_of_the_epoch_before(events):
    rows = [(each["loss"], each["loss_change"], each["accuracy_change"]) for each in told(events, "epoch.completed")]
    assert rows == [(None, None, None), (2.0, None, None), (1.5, -0.5, 20.0), (1.75, 0.25, -5.0)]


def test_a_seed_behind_the_host_with_a_weight_is_told():
    found = growth_events(episode(LOSS, ACCURACY, alpha=0.25), TIMES, PLACE)
    assert [each["decision"] for each in told(found, "isolation.violated")] == [1, 2]
    assert told(found, "isolation.violated")[0]["alpha"] == 0.25


def test_of_a_part_of_an_episode_only_what_was_seen_is_told():
    found = growth_events(episode(LOSS, ACCURACY), TIMES, PLACE._replace(first=5))
    assert [each["decision"] for each in told(found, "epoch.completed")] == [6, 7, 8, 9]
    assert next(each["target"] for each in told(found, "seed.stage_changed")) == "TRAINING"


@pytest.mark.parametrize(
    ("losses", "length"),
    [([1.0], 0), ([1.0, 1.0], 1), ([1.0, 1.004, 1.002], 2), ([1.0, 2.0, 1.0], 0), ([1.0, math.nan], 0), ([], 0)],
)
def test_plateaus_count_losses_near_the_latest(losses, length):
    assert plateau_length(losses) == length


def test_a_plateau_is_looked_for_within_the_history():
    flat = episode([2.0] * 4, ACCURACY)
    assert len(told(growth_events(flat, TIMES, PLACE), "plateau.detected")) == 1
    assert told(growth_events(flat, TIMES, PLACE._replace(history=3)), "plateau.detected") == []


def test_only_known_kinds_are_told(events):
    assert {each.kind for each in events} <= set(OCCURRENCES)
