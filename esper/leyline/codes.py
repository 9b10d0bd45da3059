"""Codes: what failed and why, as numbers that travel inside the compiled step, with a text for each.

Inside the step nothing raises. A request that cannot be carried out is the identity plus a ``Refusal``; a gate that
does not open says which of its checks failed as ``Check`` bits; the governor's judgement is a ``Verdict``.
"""

from enum import IntEnum, IntFlag


class Check(IntFlag):
    """A failed check of a gate; a gate passes when its bits are 0."""

    OVER_BUDGET = 1
    NOT_GERMINATED = 2
    TOO_YOUNG = 4
    LOW_GRADIENT = 8
    UNHEALTHY = 16
    NO_IMPROVEMENT = 32
    LOW_ALPHA = 64
    NOT_MEASURED = 128
    LOW_CONTRIBUTION = 256
    NOT_IN_SNAPSHOT = 512


class Gate(IntEnum):
    """The quality gates, in the order in which a seed meets them."""

    G0 = 0
    G1 = 1
    G2 = 2
    G3 = 3
    G4 = 4
    G5 = 5


GATE_CHECKS: dict[Gate, Check] = {
    Gate.G0: Check.OVER_BUDGET,
    Gate.G1: Check.NOT_GERMINATED,
    Gate.G2: Check.TOO_YOUNG | Check.LOW_GRADIENT | Check.UNHEALTHY | Check.NO_IMPROVEMENT,
    Gate.G3: Check.TOO_YOUNG | Check.LOW_ALPHA,
    Gate.G4: Check.NOT_MEASURED,
    Gate.G5: Check.NOT_MEASURED | Check.LOW_CONTRIBUTION | Check.UNHEALTHY | Check.NOT_IN_SNAPSHOT,
}
"""Which checks each gate makes. That the slot is empty is a matter of the stage (``Refusal.OCCUPIED``); that the
blueprint is known at its site is settled at build time: the action codec lists no other combination.
"""

CHECK_TEXT: dict[Check, str] = {
    Check.OVER_BUDGET: "the seed's parameters exceed the budget",
    Check.NOT_GERMINATED: "the seed is not in GERMINATED",
    Check.TOO_YOUNG: "too few epochs in the stage",
    Check.LOW_GRADIENT: "the seed's gradient is too small beside the host's",
    Check.UNHEALTHY: "the seed's gradients are not finite or explode",
    Check.NO_IMPROVEMENT: "neither the accuracy since the stage began nor the prospect improved enough",
    Check.LOW_ALPHA: "alpha is not near its target",
    Check.NOT_MEASURED: "the contribution was not measured often enough",
    Check.LOW_CONTRIBUTION: "the measured contribution is too small",
    Check.NOT_IN_SNAPSHOT: "the snapshot holds no copy of this seed yet",
}


class Refusal(IntEnum):
    """Why an action was not carried out; NONE where it was."""

    NONE = 0
    OUT_OF_RANGE = 1
    OCCUPIED = 2
    BLOCKED = 3
    EMPTY = 4
    PERMANENT = 5
    WRONG_STAGE = 6
    GATE_FAILED = 7
    SAME_BLUEPRINT = 8
    SAME_TARGET = 9


REFUSAL_TEXT: dict[Refusal, str] = {
    Refusal.NONE: "carried out",
    Refusal.OUT_OF_RANGE: "the action's number is outside the codec",
    Refusal.OCCUPIED: "the slot holds a seed already",
    Refusal.BLOCKED: "the slot is blocked after a cull",
    Refusal.EMPTY: "the slot holds no seed",
    Refusal.PERMANENT: "the seed is fossilized",
    Refusal.WRONG_STAGE: "the seed's stage has no such transition",
    Refusal.GATE_FAILED: "a gate's check failed",
    Refusal.SAME_BLUEPRINT: "the seed has that blueprint already",
    Refusal.SAME_TARGET: "the seed's alpha has that target already",
}


class Verdict(IntEnum):
    """The governor's judgement of an environment's epoch; every value above CALM and WATCHED is a rollback."""

    CALM = 0
    WATCHED = 1
    NONFINITE = 2
    SPIKE = 3
    RANDOM_GUESS = 4


VERDICT_TEXT: dict[Verdict, str] = {
    Verdict.CALM: "nothing unusual",
    Verdict.WATCHED: "the loss spiked; rollback if it goes on",
    Verdict.NONFINITE: "rolled back: loss, parameters or gradients not finite",
    Verdict.SPIKE: "rolled back: the loss spiked several epochs in a row",
    Verdict.RANDOM_GUESS: "rolled back: the loss fell back to random guessing",
}


def failed_checks(bits: int) -> list[str]:
    """Texts of the checks set in ``bits``, in bit order."""
    return [text for check, text in CHECK_TEXT.items() if bits & check]
