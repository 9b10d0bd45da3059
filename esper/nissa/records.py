"""Records: every decision as one would write it into a log.

The command, what it is aimed at, how sure the policy was and why, and what it risked. A policy that chooses among arms
also has the score of the one taken, the best others, and whether it explored.
"""

from typing import Any

from esper.leyline.actions import NONE, Blend, Codec
from esper.leyline.codes import Verdict
from esper.leyline.decisions import REASON_TEXT, Intent, Reason, risk_of
from esper.nissa.accounts import AccountTrace
from esper.nissa.trace import Trace


def record_of(trace: Trace, codec: Codec, t: int, env: int) -> dict[str, Any]:
    """A decision as a record, JSON-able.

    Returns:
      "command": the operation; "target": "slot", "blueprint" and "blend" as far as it has them; "confidence" and
      "reason" (None of a policy that gives no account); "risk": "level" and "colour"; "score", "alternatives" (the
      best others with their scores) and "mode" (explore or exploit), None or empty where the policy does not choose
      among scores. An action that the codec does not know has the command None.
    """
    index, account = int(trace.action[t, env]), trace.account
    known = 0 <= index < codec.size
    action = codec.actions[index] if known else codec.actions[0]
    before = Verdict(int(trace.verdict[t - 1, env])) if t else Verdict.CALM
    risk = risk_of(action.op, before)
    target = {
        "slot": None if action.slot == NONE else action.slot,
        "blueprint": None if action.blueprint == NONE else codec.blueprint_names[action.blueprint],
        "blend": None if action.blend == NONE else Blend(action.blend).name.lower(),
    }
    return {
        "command": action.op.name if known else None,
        "target": target,
        **_said(account, (t, env)),
        "risk": {"level": int(risk), "colour": risk.name.lower()},
        "alternatives": [] if account is None else _others(account, codec, index, (t, env)),
    }


def _said(account: AccountTrace | None, here: tuple[int, int]) -> dict[str, Any]:
    if account is None:
        return {"confidence": None, "reason": None, "mode": None, "score": None}
    intent, score = Intent(int(account.intent[here])), float(account.score[here])
    return {
        "confidence": float(account.confidence[here]),
        "reason": REASON_TEXT[Reason(int(account.reason[here]))],
        "mode": None if intent is Intent.NEITHER else intent.name.lower(),
        "score": None if score != score else score,
    }


def _others(account: AccountTrace, codec: Codec, taken: int, here: tuple[int, int]) -> list[dict[str, Any]]:
    ranked = zip(account.best[here].tolist(), account.best_score[here].tolist(), strict=True)
    return [
        {"action": codec.describe(action), "score": score}
        for action, score in ranked
        if action != taken and score == score
    ]
