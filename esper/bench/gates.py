"""Correctness gates: each runs a trial and compares what it computed with other means.

A gate returns None, or one line that names the place, what was found and what was expected.
"""

from typing import Any

import torch
from torch import Tensor

from esper.bench import plain
from esper.bench.case import Trial
from esper.kasmina.counterfactuals import single_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.codes import Refusal
from esper.leyline.events import Evaluation
from esper.leyline.learners import learners_of
from esper.leyline.stages import ACTIVE, Stage, is_in
from esper.leyline.state import State
from esper.tezzeret.score import Scores

LOSS_TOLERANCE = 1e-3
"""Relative; single precision against double after a whole epoch of SGD steps."""

PASS_TOLERANCE = 2e-5
"""Relative; single precision against double in one forward pass."""

FLIPS = 1e-3
"""Share of the validation's predictions that may change sides between single and double precision, beside one."""


def checked_envs(trial: Trial) -> tuple[int, ...]:
    """The environment with the most active seeds, and the last."""
    active = is_in(trial.state.slots.stage, ACTIVE).sum(1)
    return tuple(dict.fromkeys((int(active.argmax()), trial.engine.config.num_envs - 1)))


def differs(place: str, found: float, expected: float, tolerance: float) -> str | None:
    """One line if two numbers are further apart than the tolerance, or one is not finite."""
    if abs(found - expected) <= tolerance:
        return None
    return f"{place} is {found:.6g}; expected {expected:.6g} within {tolerance:.2g}"


def first(found: list[str | None]) -> str | None:
    """The first line, if there is one."""
    return next((line for line in found if line), None)


def losses_wrong(trial: Trial, losses: Tensor | list[float], where: str = "") -> str | None:
    """Mean losses [E] of an epoch against autograd and torch.optim on one network."""
    lines = []
    for env in checked_envs(trial):
        expected = plain.epoch_loss(trial.engine, trial.state, env)
        place = f"training loss of environment {env}{where}"
        lines.append(differs(place, float(losses[env]), expected, LOSS_TOLERANCE * abs(expected)))
    return first(lines)


def epoch_gate(trial: Trial) -> str | None:
    """Training."""
    _, epoch = trial.run()
    return losses_wrong(trial, epoch.loss)


def _allowed(trial: Trial) -> float:
    """Predictions, out of all of a validation, that may change sides."""
    return 1 + trial.engine.data.validation.targets.numel() * FLIPS


def _validation_wrong(trial: Trial, state: State, evaluation: Evaluation | None) -> str | None:
    """Validation against alphas set by hand, sample by sample: means alone could not tell a small seed.

    Args:
      trial: its slots are those that were evaluated.
      state: its parameters are.
      evaluation: what was said of them, if anything.
    """
    engine, table, decided = trial.engine, take_table(trial.state.slots), state.replace(slots=trial.state.slots)
    wanted, samples = single_changes(table), engine.data.validation.samples
    plan, learners = engine.backend.plan(table, decided.key.device), learners_of(decided)
    found = engine.backend.evaluate(engine.hypers, plan, learners, decided.slots.alpha, samples, wanted)
    owners = [*range(engine.config.num_envs), *wanted.env.tolist()]
    rows = [0] * engine.config.num_envs + [1 + int(slot) for slot in wanted.change.argmax(1)]
    lines = []
    for env in checked_envs(trial):
        expected = plain.validate(engine, decided, env)
        lines.append(_own_wrong(trial, found, expected, env))
        for lane in (lane for lane, owner in enumerate(owners) if owner == env):
            place = f"environment {env}" + (f", slot {rows[lane] - 1} switched" if rows[lane] else "")
            off = float((found.scores[lane].cpu() - expected.scores[rows[lane]]).abs().sum()) * _positions(trial)
            lines.append(differs(f"predictions that changed sides in {place}: their number", off, 0.0, _allowed(trial)))
        lines += _means_wrong(trial, evaluation, expected, env) if evaluation is not None else []
    return first(lines)


def _positions(trial: Trial) -> int:
    """Predictions per sample."""
    return trial.engine.data.validation.targets[0].numel()


def _own_wrong(trial: Trial, found: Scores, expected: plain.Validation, env: int) -> str | None:
    """Losses of one environment, sample by sample."""
    gap = float((found.losses[env].cpu().double() - expected.losses).abs().mean() / expected.losses.mean())
    return differs(f"relative error of a validation loss of environment {env}", gap, 0.0, PASS_TOLERANCE)


def _means_wrong(trial: Trial, evaluation: Evaluation, expected: plain.Validation, env: int) -> list[str | None]:
    flips = 100 * _allowed(trial) / trial.engine.data.validation.targets.numel()
    loss, rates = float(expected.losses.mean()), 100 * expected.scores.mean(1)
    places = [f"{what} of environment {env}" for what in ("validation loss", "accuracy")]
    lines = [differs(places[0], float(evaluation.loss[env]), loss, LOSS_TOLERANCE * abs(loss))]
    lines.append(differs(places[1], float(evaluation.accuracy[env]), float(rates[0]), flips))
    for slot, stage in enumerate(trial.state.slots.stage[env].tolist()):
        effect = float(rates[0] - rates[1 + slot]) * (-1 if stage == int(Stage.TRAINING) else 1)
        place = f"contribution of environment {env}, slot {slot},"
        lines.append(differs(place, float(evaluation.effect[env, slot]), effect, 2 * flips))
    return lines


def evaluation_gate(trial: Trial) -> str | None:
    """Validation with contributions."""
    return _validation_wrong(trial, trial.state, trial.run())


def scores_gate(trial: Trial) -> str | None:
    """Validation without contributions: losses and scores of the environments as they are."""
    scores, lines = trial.run(), list[str | None]()
    for env in checked_envs(trial):
        expected = plain.validate(trial.engine, trial.state, env)
        lines.append(_own_wrong(trial, scores, expected, env))
        off = float((scores.scores[env].cpu() - expected.scores[0]).abs().sum()) * _positions(trial)
        lines.append(differs(f"predictions of environment {env} that changed sides", off, 0.0, _allowed(trial)))
    return first(lines)


def step_gate(trial: Trial) -> str | None:
    """An environment step: its training and its validation, each against one environment at a time."""
    after, event = trial.run()
    if bool(event.judgement.rolled_back.any()):
        return f"the governor rolled back {int(event.judgement.rolled_back.sum())} environments; expected none"
    return losses_wrong(trial, event.epoch.loss) or _validation_wrong(trial, after, event.evaluation)


def walk_gate(trial: Trial) -> str | None:
    """Random legal actions: none is refused, and all losses are finite."""
    event = trial.run()
    refused = int((event.result.refusal != int(Refusal.NONE)).sum())
    if refused:
        return f"{refused} of {event.result.refusal.shape[0]} legal actions were refused; expected none"
    return None if bool(torch.isfinite(event.epoch.loss).all()) else "a training loss is not finite"


def batch_wrong(trial: Trial, batch: Any) -> str | None:
    """What is wrong with a batch of episodes [E, T], if anything."""
    config, after = trial.engine.config, batch["next"]
    if tuple(batch.shape) != (config.num_envs, config.horizon):
        return f"batch {list(batch.shape)}; expected [{config.num_envs}, {config.horizon}]"
    legal = batch["action_mask"].gather(-1, batch["action"].unsqueeze(-1))
    if not bool(legal.all()):
        return f"{int((~legal).sum())} illegal actions; expected none"
    if bool(after["refused"].any()):
        return f"{int(after['refused'].sum())} legal actions were refused; expected none"
    last = torch.arange(config.horizon, device=batch.device) == config.horizon - 1
    if not bool((after["truncated"].squeeze(-1) == last).all()) or bool(after["terminated"].any()):
        return f"episodes do not end at decision {config.horizon} and there alone"
    if not bool(torch.isfinite(after["reward"]).all()):
        return "a reward is not finite"
    return None if float(batch["observation"].abs().max()) <= 1 else "an observation lies outside [-1, 1]"
