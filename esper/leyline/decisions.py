"""Decisions as records: what they risk, why they were taken, and whether they tried something out.

Reasons and intents travel as numbers beside the actions, with a text for each; a risk follows from the operation and
from what the governor said of the epoch before.
"""

from enum import IntEnum

from esper.leyline.actions import Op
from esper.leyline.codes import Verdict


class Risk(IntEnum):
    """How much harm a decision may do."""

    GREEN = 1
    YELLOW = 2
    ORANGE = 3
    RED = 4
    CRITICAL = 5


RISKS = {
    Op.WAIT: Risk.GREEN,
    Op.GERMINATE: Risk.YELLOW,
    Op.ADVANCE: Risk.YELLOW,
    Op.RETARGET: Risk.YELLOW,
    Op.CULL: Risk.ORANGE,
    Op.CHANGE_BLUEPRINT: Risk.ORANGE,
    Op.FOSSILIZE: Risk.ORANGE,
}
"""What an operation risks while the governor is calm."""


def risk_of(op: Op, verdict: Verdict) -> Risk:
    """The risk of an operation.

    Args:
      op: what is done.
      verdict: the governor's of the epoch before; RED after a spike, CRITICAL after a rollback, whatever is done.
    """
    if verdict is Verdict.CALM:
        return RISKS[op]
    return Risk.RED if verdict is Verdict.WATCHED else Risk.CRITICAL


class Intent(IntEnum):
    """Whether a decision tries something out, or takes what did best so far; NEITHER where there is no such choice."""

    NEITHER = 0
    EXPLOIT = 1
    EXPLORE = 2


class Reason(IntEnum):
    """Why an action was taken."""

    UNSAID = 0
    SCRIPT = 1
    DRAWN = 2
    LIKELIEST = 3
    CONTRIBUTES = 4
    GATE_OPEN = 5
    HARMFUL = 6
    NO_CONTRIBUTION = 7
    SETTLED = 8
    NOT_SETTLED = 9
    RESTING = 10
    FULL = 11
    TOO_EARLY = 12
    NO_PLACE = 13
    NO_MEMORY = 14
    UNTRIED = 15
    HIGHEST_BOUND = 16
    HIGHEST_DRAW = 17
    HIGHEST_SCORE = 18
    CHANCE = 19
    BY_WEIGHT = 20
    FIXED_ARM = 21
    STEEPEST = 22
    STRATEGY = 23


REASON_TEXT: dict[Reason, str] = {
    Reason.UNSAID: "the policy gives no reason",
    Reason.SCRIPT: "the script prefers it to all else that is legal",
    Reason.DRAWN: "drawn from the policy's distribution",
    Reason.LIKELIEST: "the likeliest under the policy",
    Reason.CONTRIBUTES: "the seed contributes",
    Reason.GATE_OPEN: "the seed's gate is open",
    Reason.HARMFUL: "accuracy fell too far since the seed's stage began",
    Reason.NO_CONTRIBUTION: "the seed was measured and does not contribute",
    Reason.SETTLED: "the host is stable or on a plateau, and there is room",
    Reason.NOT_SETTLED: "the host is neither stable nor on a plateau",
    Reason.RESTING: "the last change is too recent",
    Reason.FULL: "enough seeds grow already",
    Reason.TOO_EARLY: "it is too early in the episode",
    Reason.NO_PLACE: "no seed can be placed anywhere",
    Reason.NO_MEMORY: "every seed that fits would take too much memory",
    Reason.UNTRIED: "not tried before",
    Reason.HIGHEST_BOUND: "the highest upper confidence bound",
    Reason.HIGHEST_DRAW: "the highest draw from the posteriors",
    Reason.HIGHEST_SCORE: "the highest score so far",
    Reason.CHANCE: "a trial by chance",
    Reason.BY_WEIGHT: "drawn by weight",
    Reason.FIXED_ARM: "the one choice that this policy has",
    Reason.STEEPEST: "the largest gradient of the validation loss",
    Reason.STRATEGY: "a part of the strategy's plan",
}
