"""Traces: what happened in every decision of an episode, small enough to keep.

Evaluation, report and inspection draw from traces alone. Enumerations are int8 or int16, numbers float32: about 200
bytes per decision of an environment with three slots.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esper.leyline.actions import NONE, Codec, Op
from esper.leyline.events import Transition
from esper.leyline.stages import Stage
from esper.leyline.state import State, validated
from esper.nissa.accounts import AccountTrace, stack_accounts

ALTERNATIVES = 4
"""How many of a decision's likeliest actions a trace keeps."""


class DiagnosticsTrace(NamedTuple):
    """What a learned policy computed at its decisions. Probabilities count legal actions only; entropy is in nats."""

    value: Tensor  # float32 [T, E]; predicted discounted return-to-go
    probability: Tensor  # float32 [T, E]; of the action taken
    entropy: Tensor  # float32 [T, E]; of the distribution it was drawn from
    likeliest: Tensor  # int32 [T, E, N]; actions, the likeliest first
    likelihood: Tensor  # float32 [T, E, N]; their probabilities


class Trace(NamedTuple):
    """T decisions of E environments with S slots, on the CPU.

    "After" is after the decision's epoch, clock and governor: what the next decision is made on.
    """

    action: Tensor  # int32 [T, E]; as asked for
    op: Tensor  # int8 [T, E]; Op carried out, WAIT where refused
    slot: Tensor  # int16 [T, E]; its arguments, NONE without one
    kind: Tensor  # int16 [T, E]; blueprint
    blend: Tensor  # int8 [T, E]
    refusal: Tensor  # int8 [T, E]; Refusal
    failed: Tensor  # int16 [T, E]; Check bits of the gate that refused
    verdict: Tensor  # int8 [T, E]; Verdict
    rolled_back: Tensor  # bool [T, E]
    during: Tensor  # int8 [T, E, S]; stage in which the slot went through the epoch, so after the decision
    stage: Tensor  # int8 [T, E, S]; after
    blueprint: Tensor  # int16 [T, E, S]; after, NONE where empty
    alpha: Tensor  # float32 [T, E, S]; after
    effect: Tensor  # float32 [T, E, S]; pp; contribution, or prospect in TRAINING; NaN where not measured
    effect_error: Tensor  # float32 [T, E, S]; pp; its standard error
    accuracy: Tensor  # float32 [T, E]; pp; validation, after; NaN as long as there was none
    loss: Tensor  # float32 [T, E]; nats; validation, after; likewise
    reward: Tensor  # float32 [T, E]
    terms: Tensor  # float32 [T, E, R]; what the reward is made of
    term_names: tuple[str, ...]  # R names
    diagnostics: DiagnosticsTrace | None  # of a policy that has any
    account: AccountTrace | None = None  # of a policy that gives one

    @property
    def length(self) -> int:
        """Decisions T."""
        return self.action.shape[0]


def record(codec: Codec, state: State, event: Transition, terms: dict[str, Tensor], total: Tensor) -> dict[str, Tensor]:
    """One decision's part of a trace.

    Args:
      codec: actions.
      state: after the step.
      event: what the step reported.
      terms: name -> [E]; what the reward is made of.
      total: [E]; the reward.

    Returns:
      the fields of ``Trace`` without T, except names and diagnostics; on the state's device.
    """
    result, slots, (accuracy, loss) = event.result, state.slots, validated(state.signals)
    idle, action = result.op == int(Op.WAIT), result.action.clamp(0, codec.size - 1)

    def argument(column: Tensor) -> Tensor:
        return torch.where(idle, NONE, column[action])

    training = (slots.stage == int(Stage.TRAINING)) & (slots.evaluations > 0)
    effect = torch.where(slots.measured, slots.contribution, torch.where(training, slots.prospect, torch.nan))
    error = torch.where(slots.measured, slots.contribution_error, slots.prospect_error)
    return {
        "action": result.action.int(),
        "op": result.op.to(torch.int8),
        "slot": argument(codec.slot).short(),
        "kind": argument(codec.blueprint).short(),
        "blend": argument(codec.blend).to(torch.int8),
        "refusal": result.refusal.to(torch.int8),
        "failed": result.failed.short(),
        "verdict": event.judgement.verdict.to(torch.int8),
        "rolled_back": event.judgement.rolled_back,
        "during": event.life.before.to(torch.int8),
        "stage": slots.stage.to(torch.int8),
        "blueprint": slots.blueprint.short(),
        "alpha": slots.alpha.float(),
        "effect": effect.float(),
        "effect_error": torch.where(effect.isnan(), torch.nan, error).float(),
        "accuracy": accuracy.float(),
        "loss": loss.float(),
        "reward": total.float(),
        "terms": torch.stack(list(terms.values()), dim=1).float(),
    }


def record_diagnostics(action: Tensor, value: Tensor, log_probs: Tensor) -> dict[str, Tensor]:
    """One decision's part of ``DiagnosticsTrace``.

    Args:
      action: int64 [E].
      value: [E].
      log_probs: [E, A]; -inf where illegal.
    """
    top = log_probs.topk(min(ALTERNATIVES, log_probs.shape[1]), dim=1)
    chances = log_probs.exp()
    surprise = torch.where(chances > 0, -chances * log_probs, 0.0)
    return {
        "value": value.float(),
        "probability": chances.gather(1, action.unsqueeze(1)).squeeze(1).float(),
        "entropy": surprise.sum(1).float(),
        "likeliest": top.indices.int(),
        "likelihood": top.values.exp().float(),
    }


def stack(
    frames: list[dict[str, Tensor]],
    term_names: tuple[str, ...],
    diagnostics: list[dict[str, Tensor]],
    accounts: Sequence[dict[str, Tensor]] = (),
) -> Trace:
    """Put decisions together, on the CPU.

    Args:
      frames: T of ``record``.
      term_names: R names.
      diagnostics: T of ``record_diagnostics``, or none at all.
      accounts: T of ``esper.nissa.accounts.record_account``; of a policy that gave fewer, none are kept.
    """
    whole = {name: torch.stack([frame[name] for frame in frames]).cpu() for name in frames[0]}
    account = stack_accounts(accounts) if len(accounts) == len(frames) else None
    if not diagnostics:
        return Trace(**whole, term_names=term_names, diagnostics=None, account=account)
    fields = {name: torch.stack([row[name] for row in diagnostics]).cpu() for name in diagnostics[0]}
    return Trace(**whole, term_names=term_names, diagnostics=DiagnosticsTrace(**fields), account=account)
