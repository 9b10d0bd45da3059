"""Signals: the history of an environment that decisions look at. Validation drives everything."""

import torch
from torch import Tensor

from esper.leyline.actions import NONE
from esper.leyline.codes import Refusal
from esper.leyline.config import Config
from esper.leyline.events import ActionResult, Epoch, Evaluation
from esper.leyline.hypers import HyperParams
from esper.leyline.state import Signals
from esper.utils.masks import holds_nowhere


def initial_signals(config: Config, num_envs: int, num_classes: int, device: torch.device) -> Signals:
    """Signals before the first epoch: nothing seen."""
    zero = torch.zeros(num_envs, dtype=config.precision.dtype, device=device)
    count = torch.zeros_like(zero, dtype=torch.int64)
    scalars = (
        *("train_loss", "train_accuracy", "val_loss", "val_accuracy", "loss_delta", "accuracy_delta"),
        *("best_accuracy", "gradient_norm", "vanishing", "exploding"),
    )
    kept = (
        {}
        if not config.decision_history
        else {"decisions": count.new_full((num_envs, config.decision_history, 3), NONE)}
    )
    return Signals(
        **kept,
        **{name: zero.clone() for name in scalars},
        **{name: count.clone() for name in ("plateau", "stable_run", "epochs_seen")},
        best_loss=zero + torch.inf,
        stable=torch.zeros_like(zero, dtype=torch.bool),
        class_accuracy=zero.new_zeros(num_envs, num_classes),
        loss_history=zero.new_zeros(num_envs, config.history),
        accuracy_history=zero.new_zeros(num_envs, config.history),
        batch_size=[num_envs],
    )


def _push(history: Tensor, value: Tensor) -> Tensor:
    return torch.cat((history[:, 1:], value.unsqueeze(1)), dim=1)


def update_signals(
    hypers: HyperParams, signals: Signals, epoch: Epoch, evaluation: Evaluation, keep: Tensor
) -> Signals:
    """Take in one epoch.

    Args:
      hypers: plateau and stability thresholds.
      signals: [E].
      epoch, evaluation: what was seen.
      keep: bool [E]; environments whose epoch does not count (rolled back, or not finite).

    Returns:
      signals; rows in ``keep`` are unchanged. The plateau counts epochs whose accuracy gain stayed below
      ``plateau_gain``. The host counts as stable in an epoch whose relative loss gain r has
      -stable_loss < r < stable_gain (strictly, and never in the first epoch); ``stable`` latches after
      ``stable_epochs`` such epochs in a row.
    """
    seen = signals.epochs_seen > 0
    loss_delta = torch.where(seen, signals.val_loss - evaluation.loss, 0.0)
    accuracy_delta = torch.where(seen, evaluation.accuracy - signals.val_accuracy, 0.0)
    relative = loss_delta / signals.val_loss.clamp(min=1e-8)
    calm = seen & (relative < hypers.stable_gain) & (relative > -hypers.stable_loss)
    stable_run = torch.where(calm, signals.stable_run + 1, 0)
    flat = seen & (accuracy_delta < hypers.plateau_gain)
    new = {
        "train_loss": epoch.loss,
        "train_accuracy": epoch.accuracy,
        "val_loss": evaluation.loss,
        "val_accuracy": evaluation.accuracy,
        "class_accuracy": evaluation.class_accuracy,
        "loss_delta": loss_delta,
        "accuracy_delta": accuracy_delta,
        "best_accuracy": torch.maximum(signals.best_accuracy, evaluation.accuracy),
        "best_loss": torch.minimum(signals.best_loss, evaluation.loss),
        "plateau": torch.where(flat, signals.plateau + 1, 0),
        "stable_run": stable_run,
        "stable": signals.stable | (stable_run >= hypers.stable_epochs),
        "epochs_seen": signals.epochs_seen + 1,
        "loss_history": _push(signals.loss_history, evaluation.loss),
        "accuracy_history": _push(signals.accuracy_history, evaluation.accuracy),
        "gradient_norm": epoch.health.host_norm,
        "vanishing": epoch.health.vanishing,
        "exploding": epoch.health.exploding,
    }
    if holds_nowhere(keep):
        return signals.replace(**new)
    rows = {
        name: torch.where(keep.reshape(-1, *(1,) * (value.dim() - 1)), signals[name], value)
        for name, value in new.items()
    }
    return signals.replace(**rows)


def remember_decision(config: Config, signals: Signals, result: ActionResult) -> Signals:
    """Take in what became of a decision; nothing where no decisions are remembered.

    Args:
      config: how many are.
      signals: [E].
      result: of the decisions.

    Returns:
      signals. An environment that is rolled back remembers what was decided all the same: that led there.
    """
    if not config.decision_history:
        return signals
    new = torch.stack((result.op, result.slot, (result.refusal != int(Refusal.NONE)).long()), 1)
    return signals.replace(decisions=_push(signals.decisions, new))
