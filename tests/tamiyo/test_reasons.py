"""Confidence and reasons of policies: by hand, by the definition of entropy, and by one condition at a time."""

import math

import pytest
import torch

import esper
from esper.leyline.actions import NONE, Action, Blend, Op
from esper.leyline.decisions import Intent, Reason
from esper.leyline.stages import Stage
from esper.tamiyo.baselines import HeuristicConfig
from esper.tamiyo.policies import PolicyInput, heuristic_policy, random_policy
from esper.tamiyo.reasons import certainty, drawn_intent
from esper.utils import rng


@pytest.fixture(scope="module")
def engine(small_task):
    return esper.make(small_task, num_envs=1, slots=(0, 1), blends=(Blend.SIGMOID,))


def decided(engine, legal, signals, epoch=9, **slots):
    """The rule of thumb's decision on a made-up state; ``legal`` beside WAIT."""
    state = engine.init(0)
    leaves = {name: torch.as_tensor(value).expand(1, 2).clone() for name, value in slots.items()}
    given = {name: torch.tensor([value]) for name, value in signals.items()}
    state = state.replace(
        slots=state.slots.replace(**leaves), signals=state.signals.replace(**given), epoch=torch.tensor([epoch])
    )
    mask = torch.zeros(1, engine.codec.size, dtype=torch.bool)
    mask[:, [0, *map(engine.codec.encode, legal)]] = True
    policy = heuristic_policy(engine.codec, HeuristicConfig())
    _, decision = policy.act(policy.init(1), PolicyInput(state, engine.observe(state), mask, rng.key(0)[None]))
    op = Op(int(engine.codec.op[decision.action]))
    return op, Reason(int(decision.account.reason)), float(decision.account.confidence)


PLANT = Action(Op.GERMINATE, 1, 0, int(Blend.SIGMOID))
GROWING = {"stage": [int(Stage.TRAINING), 1], "blueprint": [0, NONE]}
FLAT = {"plateau": 4, "stable": False}
EMPTY = {"stage": 1, "blueprint": NONE}


@pytest.mark.parametrize(
    ("legal", "signals", "epoch", "slots", "expected"),
    [
        ([PLANT], FLAT, 9, EMPTY, (Op.GERMINATE, Reason.SETTLED, 0.8)),
        ([PLANT], {"plateau": 11, "stable": False}, 9, EMPTY, (Op.GERMINATE, Reason.SETTLED, 1.0)),
        ([PLANT], {"plateau": 2, "stable": True}, 9, EMPTY, (Op.GERMINATE, Reason.SETTLED, 0.4)),
        ([PLANT], {"plateau": 2, "stable": False}, 9, EMPTY, (Op.WAIT, Reason.NOT_SETTLED, 0.6)),
        ([PLANT], FLAT, 4, EMPTY, (Op.WAIT, Reason.TOO_EARLY, 0.2)),
        ([], FLAT, 9, EMPTY, (Op.WAIT, Reason.NO_PLACE, 0.2)),
        ([PLANT], FLAT, 9, GROWING, (Op.WAIT, Reason.FULL, 0.2)),
    ],
)
def test_the_rule_of_thumb_says_why_it_germinates_or_waits(engine, legal, signals, epoch, slots, expected):
    op, reason, confidence = decided(engine, legal, signals, epoch, **slots)
    assert (op, reason) == expected[:2] and confidence == pytest.approx(expected[2])


@pytest.mark.parametrize(
    ("action", "slots", "reason", "confidence"),
    [
        (Action(Op.ADVANCE, 0), GROWING | {"improvement": [2.0, 0.0]}, Reason.GATE_OPEN, 0.4),
        (Action(Op.CULL, 0), GROWING | {"improvement": [-4.0, 0.0], "stage_age": 6}, Reason.HARMFUL, 0.8),
        (
            Action(Op.FOSSILIZE, 0),
            {"stage": [int(Stage.PROBATIONARY), 1], "blueprint": [0, NONE], "measured": [True, False]}
            | {"contribution": [1.5, 0.0], "improvement": 50.0},
            Reason.CONTRIBUTES,
            0.3,
        ),
        (
            Action(Op.CULL, 0),
            {"stage": [int(Stage.PROBATIONARY), 1], "blueprint": [0, NONE], "measured": [True, False]}
            | {"contribution": [-25.0, 0.0]},
            Reason.NO_CONTRIBUTION,
            1.0,
        ),
    ],
)
def test_what_grows_is_tended_for_a_reason(engine, action, slots, reason, confidence):
    op, found, sure = decided(engine, [action], FLAT, **slots)
    assert (op, found) == (action.op, reason) and sure == pytest.approx(confidence)


def test_certainty_is_what_entropy_leaves():
    """Uniform over three of four: 0; one legal action: 1; (1/2, 1/4, 1/4): 1 - 1.5 ln 2 / ln 3."""
    chances = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0], [0.0, 1.0, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]])
    expected = [0.0, 1.0, 1 - 1.5 * math.log(2) / math.log(3)]
    assert certainty(chances.log()).tolist() == pytest.approx(expected, abs=1e-6)
    intent = drawn_intent(chances.log(), torch.tensor([2, 1, 1]))
    assert intent.tolist() == [int(Intent.EXPLOIT), int(Intent.EXPLOIT), int(Intent.EXPLORE)]


def test_a_random_policy_is_as_sure_as_its_distribution(engine):
    state = engine.init(0)
    mask = engine.mask(state)
    policy = random_policy(engine.codec)
    _, decision = policy.act(None, PolicyInput(state, engine.observe(state), mask, rng.key(0)[None]))
    ops = engine.codec.op[mask[0]].tolist()
    chance = [1 / len(set(ops)) / ops.count(op) for op in ops]
    entropy = -sum(p * math.log(p) for p in chance)
    assert float(decision.account.confidence) == pytest.approx(1 - entropy / math.log(len(ops)), abs=1e-5)
