"""The governor: watches every environment's epoch, rolls back what went wrong, and keeps the snapshot.

Rules and constants are esper-lite's. An environment is judged by its own history alone; nothing it does touches
another.
"""

import torch
from torch import Tensor

from esper.kasmina.lifecycle import cull_live
from esper.kasmina.structure import Structure
from esper.leyline.codes import Verdict
from esper.leyline.config import Config
from esper.leyline.events import Epoch, Evaluation, Judgement
from esper.leyline.hypers import HyperParams
from esper.leyline.stages import ACTIVE, Stage, is_in
from esper.leyline.state import Governor, ParamState, Snapshot, State
from esper.utils.masks import holds_nowhere


def initial_governor(config: Config, num_envs: int, device: torch.device) -> Governor:
    """A governor that has seen nothing."""
    count = torch.zeros(num_envs, dtype=torch.int64, device=device)
    losses = torch.zeros(num_envs, config.loss_window, dtype=config.precision.dtype, device=device)
    fields = {name: count.clone() for name in ("filled", "spikes", "rollbacks")}
    return Governor(losses=losses, **fields, batch_size=[num_envs])


def judge(hypers: HyperParams, governor: Governor, loss: Tensor, finite: Tensor, guess_loss: float) -> Tensor:
    """Judge one epoch.

    Args:
      hypers: limits.
      governor: [E]; its window of normal losses.
      loss: [E]; validation loss, nats.
      finite: bool [E]; losses, gradients and parameters finite.
      guess_loss: loss of random guessing, nats.

    Returns:
      int64 [E], ``Verdict``. In this order: not finite; fallen back to random guessing (the window's mean was below
      ``guess_fraction`` of it, the loss is within ``guess_tolerance`` of it); a spike (above the absolute limit *and*
      above mean + sigmas *and* above a multiple of the mean), a rollback only when it is the last of several in a
      row. The last two need ``min_history`` losses in the window.
    """
    window = governor.losses.shape[1]
    present = torch.arange(window, device=loss.device) >= window - governor.filled.unsqueeze(1)
    filled = governor.filled.clamp(min=1)
    mean = torch.where(present, governor.losses, 0.0).sum(1) / filled
    deviation = torch.where(present, governor.losses - mean.unsqueeze(1), 0.0)
    sigma = (deviation.square().sum(1) / filled).sqrt()
    ready = governor.filled >= hypers.min_history
    spike = ready & (loss > hypers.loss_limit) & (loss > mean + hypers.loss_sigmas * sigma)
    spike = spike & (loss > hypers.loss_multiple * mean)
    fallen = ready & (mean < hypers.guess_fraction * guess_loss)
    fallen = fallen & ((loss - guess_loss).abs() < hypers.guess_tolerance * guess_loss)
    lasting = spike & (governor.spikes + 1 >= hypers.spikes_in_a_row)
    verdict = torch.where(spike, int(Verdict.WATCHED), int(Verdict.CALM))
    verdict = torch.where(lasting, int(Verdict.SPIKE), verdict)
    verdict = torch.where(fallen, int(Verdict.RANDOM_GUESS), verdict)
    return torch.where(finite, verdict, int(Verdict.NONFINITE))


def govern(
    structure: Structure, hypers: HyperParams, state: State, any_held: bool, epoch: Epoch, evaluation: Evaluation
) -> tuple[State, Judgement]:
    """Judge the epoch, roll back, and store what is good.

    Args:
      structure: layouts and objective.
      hypers: limits, snapshot interval.
      state: [E]; after training and the clock, ``state.epoch`` already counting this epoch.
      any_held: whether any slot held a seed in this step; without, seeds' parameters are not touched.
      epoch, evaluation: what was seen.

    Returns:
      state and judgement. Laws: a rolled-back environment has the snapshot's host, buffers, moments and fossilized
      seeds, and no live seed; every other environment keeps its bits (but for the governor's own memory).
    """
    guess_loss = structure.objective.guess_loss(structure.host.num_outputs)
    verdict = judge(hypers, state.governor, evaluation.loss, epoch.finite & evaluation.finite, guess_loss)
    bad = verdict > int(Verdict.WATCHED)
    state = state.replace(governor=_remember(state.governor, evaluation.loss, verdict))
    slots, culled = cull_live(state.slots, bad)
    state = roll_back_host(state.replace(slots=slots), bad)
    calm = verdict == int(Verdict.CALM)
    if any_held:
        state = roll_back_seeds(structure, state, bad)
    return take_snapshot(hypers, state, calm, any_held), Judgement(verdict, bad, culled)


def _remember(governor: Governor, loss: Tensor, verdict: Tensor) -> Governor:
    calm, bad = verdict == int(Verdict.CALM), verdict > int(Verdict.WATCHED)
    pushed = torch.cat((governor.losses[:, 1:], loss.unsqueeze(1)), dim=1)
    window = governor.losses.shape[1]
    return governor.replace(
        losses=torch.where(calm.unsqueeze(1), pushed, governor.losses),
        filled=torch.where(calm, (governor.filled + 1).clamp(max=window), governor.filled),
        spikes=torch.where(verdict == int(Verdict.WATCHED), governor.spikes + 1, 0),
        rollbacks=governor.rollbacks + bad,
    )


def _select(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    return torch.where(mask.reshape(mask.shape + (1,) * (chosen.dim() - mask.dim())), chosen, other)


def _select_params(mask: Tensor, chosen: ParamState, other: ParamState) -> ParamState:
    return ParamState(
        params=_select(mask, chosen.params, other.params),
        moments=_select(mask, chosen.moments, other.moments),
        steps=_select(mask, chosen.steps, other.steps),
        batch_size=other.batch_size,
    )


def roll_back_host(state: State, bad: Tensor) -> State:
    """Restore host and buffers of the environments in ``bad`` [E] from the snapshot."""
    if holds_nowhere(bad):
        return state
    return state.replace(
        host=_select_params(bad, state.snapshot.host, state.host),
        buffers=_select(bad, state.snapshot.buffers, state.buffers),
    )


def roll_back_seeds(structure: Structure, state: State, bad: Tensor) -> State:
    """Restore fossilized seeds of the environments in ``bad`` [E] from the snapshot; blank the rest of their arena."""
    if holds_nowhere(bad):
        return state
    fossil = (state.slots.stage == int(Stage.FOSSILIZED)) & bad.unsqueeze(1)
    lost = ~fossil & bad.unsqueeze(1)
    columns, held = structure.slot_of_column, structure.slot_of_buffer
    keep, wipe = fossil[:, columns], lost[:, columns]
    seeds, snapshot = state.seeds, state.snapshot.seeds
    restored = ParamState(
        params=torch.where(keep, snapshot.params, torch.where(wipe, 0.0, seeds.params)),
        moments=torch.where(keep.unsqueeze(1), snapshot.moments, torch.where(wipe.unsqueeze(1), 0.0, seeds.moments)),
        steps=torch.where(fossil, snapshot.steps, torch.where(lost, 0, seeds.steps)),
        batch_size=seeds.batch_size,
    )
    buffers = torch.where(lost[:, held], 0.0, state.seed_buffers)
    buffers = torch.where(fossil[:, held], state.snapshot.seed_buffers, buffers)
    return state.replace(seeds=restored, seed_buffers=buffers)


def take_snapshot(hypers: HyperParams, state: State, calm: Tensor, any_held: bool) -> State:
    """Store calm environments in the snapshot: every ``snapshot_epochs`` epochs, and as soon as a seed reaches
    PROBATIONARY without a copy there (gate G5 asks for one). Without any seed only hosts are stored.
    """
    waiting = (state.slots.stage == int(Stage.PROBATIONARY)) & ~state.slots.in_snapshot
    due = (state.epoch % hypers.snapshot_epochs.to(torch.int64) == 0) | waiting.any(1)
    take = calm & due
    if holds_nowhere(take):
        return state
    snapshot = Snapshot(
        host=_select_params(take, state.host, state.snapshot.host),
        buffers=_select(take, state.buffers, state.snapshot.buffers),
        seeds=_select_params(take, state.seeds, state.snapshot.seeds) if any_held else state.snapshot.seeds,
        seed_buffers=_select(take, state.seed_buffers, state.snapshot.seed_buffers),
        batch_size=state.batch_size,
    )
    if not any_held:
        return state.replace(snapshot=snapshot)
    in_snapshot = state.slots.in_snapshot | (take.unsqueeze(1) & is_in(state.slots.stage, ACTIVE))
    return state.replace(snapshot=snapshot, slots=state.slots.replace(in_snapshot=in_snapshot))
