"""Records of decisions: risks by the table, reasons in words, scores with their alternatives; and their calibration."""

import json

import pytest
import torch

from esper.leyline.actions import Action, Blend, Op, build_codec
from esper.leyline.codes import Verdict
from esper.leyline.decisions import REASON_TEXT, RISKS, Intent, Reason, Risk, risk_of
from esper.nissa.accounts import record_account, stack_accounts
from esper.nissa.actions import exploring_by_third
from esper.nissa.calibration import better_soon, confidence_calibration
from esper.nissa.records import record_of
from esper.utils.documents import to_json

CODEC = build_codec(((0, 1), (0,)), (Blend.SIGMOID,), ("a", "b"))


class Told:
    """The fields of a trace that a record is made of."""

    def __init__(self, action, verdict, account=None):
        self.action, self.verdict, self.account = action, verdict, account


def test_risks_are_the_table():
    words = {Op.WAIT: "1 green", Op.GERMINATE: "2 yellow", Op.ADVANCE: "2 yellow", Op.RETARGET: "2 yellow"}
    words |= dict.fromkeys((Op.CULL, Op.CHANGE_BLUEPRINT, Op.FOSSILIZE), "3 orange")
    assert {op: f"{risk} {risk.name.lower()}" for op, risk in RISKS.items()} == words
    for op in Op:
        assert risk_of(op, Verdict.CALM) is RISKS[op]
        assert risk_of(op, Verdict.WATCHED) is Risk.RED
        assert all(risk_of(op, Verdict(v)) is Risk.CRITICAL for v in range(2, len(Verdict)))
    assert set(REASON_TEXT) == set(Reason)


def test_a_record_says_what_was_chosen_among_what():
    """Two decisions of one environment: a germination among three arms, and a WAIT after a rollback."""
    plant = CODEC.encode(Action(Op.GERMINATE, 1, 0, int(Blend.SIGMOID)))
    others = [CODEC.encode(Action(Op.GERMINATE, 0, kind, int(Blend.SIGMOID))) for kind in (0, 1)]
    scores = torch.full((2, 1, CODEC.size), torch.nan, dtype=torch.float64)
    scores[0, 0, [plant, *others]] = torch.tensor([0.5, float("inf"), -2.0], dtype=torch.float64)
    action, reason = torch.tensor([[plant], [0]]), torch.tensor([[int(Reason.CHANCE)], [int(Reason.RESTING)]])
    intent = torch.tensor([[int(Intent.EXPLORE)], [int(Intent.NEITHER)]])
    frames = [record_account(action[t], torch.tensor([0.25]), reason[t], intent[t], scores[t]) for t in range(2)]
    verdict = torch.tensor([[int(Verdict.SPIKE)], [int(Verdict.CALM)]])
    told = Told(action, verdict, stack_accounts(frames))
    first, second = (record_of(told, CODEC, t, 0) for t in range(2))
    assert first["command"] == "GERMINATE" and first["risk"] == {"level": 2, "colour": "yellow"}
    assert first["target"] == {"slot": 1, "blueprint": "a", "blend": "sigmoid"}
    assert (first["confidence"], first["reason"], first["mode"]) == (0.25, "a trial by chance", "explore")
    assert first["score"] == 0.5 and [other["score"] for other in first["alternatives"]] == [float("inf"), -2.0]
    assert [other["action"] for other in first["alternatives"]] == [CODEC.describe(index) for index in others]
    assert second["command"] == "WAIT" and second["risk"] == {"level": 5, "colour": "critical"}
    assert (second["mode"], second["score"], second["alternatives"]) == (None, None, [])
    assert json.loads(to_json(first))["alternatives"][0]["score"] == "inf"
    silent = record_of(Told(action, verdict), CODEC, 0, 0)
    assert silent["reason"] is None and silent["confidence"] is None and silent["command"] == "GERMINATE"


def test_exploring_by_third_counts_choices_alone():
    E, X, N = Intent.EXPLOIT, Intent.EXPLORE, Intent.NEITHER
    intent = torch.tensor([[X, N], [X, E], [N, N], [N, N], [E, E], [E, X]])
    assert exploring_by_third(intent) == [pytest.approx(2 / 3), None, pytest.approx(1 / 4)]


def test_confidence_is_held_against_what_came_of_it():
    """Accuracy by hand, two decisions ahead; then Brier's score and the shares of a small table."""
    nan = float("nan")
    accuracy = torch.tensor([[nan], [10.0], [12.0], [11.0], [11.0]])
    found = better_soon(accuracy, ahead=2)[:, 0].tolist()
    assert found[0] != found[0] and found[1] != found[1] and found[2:] == [1.0, 0.0, 0.0]
    rising = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0])[:, None].expand(8, 6)
    sure = torch.tensor([0.9, 0.8, 0.6, 0.4, 0.5, 0.2, 0.1, 0.3])[:, None].expand(8, 6)
    acted = torch.tensor([True, True, False, True, False, True, False, False])[:, None].expand(8, 6)
    outcomes = [int(float(rising[min(t + 4, 7), 0]) > float(rising[t - 1, 0])) for t in (1, 3, 5)]
    judged = confidence_calibration(sure, acted, rising)
    assert judged["count"] == 18 and judged["mean"] == pytest.approx((0.8 + 0.4 + 0.2) / 3)
    assert judged["better"] == pytest.approx(sum(outcomes) / 3)
    gaps = [(p - y) ** 2 for p, y in zip((0.8, 0.4, 0.2), outcomes, strict=True)]
    assert judged["brier"] == pytest.approx(sum(gaps) / 3)
    assert confidence_calibration(sure, torch.zeros_like(acted), rising) is None
