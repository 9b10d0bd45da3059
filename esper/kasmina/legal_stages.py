"""In which stages an operation may be carried out, and what is said of it in the others."""

from esper.leyline.actions import Op
from esper.leyline.codes import Refusal
from esper.leyline.stages import FAILURE, TERMINAL, WEIGHED, Cause, Stage, routes, sources

OP_CAUSE = {op: Cause[op.name] for op in Op if op.name in Cause.__members__}
"""Operations that move a seed from stage to stage, and what they are called in the table of transitions."""

FROM = {op: sources(cause) for op, cause in OP_CAUSE.items()} | {Op.RETARGET: WEIGHED}
"""The stages in which an operation may be carried out; WAIT may in all."""

(EMPTY,) = routes(Cause.INIT)
"""The stage in which slots begin."""


def stage_refusal(op: Op, stage: Stage) -> Refusal:
    """What is said of an operation because of the stage that its slot is in; NONE where it may be carried out."""
    if op is Op.WAIT or stage in FROM[op]:
        return Refusal.NONE
    if stage in TERMINAL:
        return Refusal.PERMANENT
    if stage in FAILURE:
        return Refusal.BLOCKED
    if stage is EMPTY:
        return Refusal.EMPTY
    return Refusal.OCCUPIED if op is Op.GERMINATE else Refusal.WRONG_STAGE


def stage_refusals() -> list[list[int]]:
    """The whole table: a row for every ``Op``, a column for every ``Stage``, each by number."""
    return [[int(stage_refusal(op, stage)) for stage in sorted(Stage)] for op in sorted(Op)]
