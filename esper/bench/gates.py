"""Correctness gates: each runs a trial and compares what it computed with other means.

A gate returns None, or one line that names the place, what was found and what was expected.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper.bench import plain
from esper.bench.case import Trial
from esper.kasmina.inference import lane_logits
from esper.kasmina.lanes import fork_lanes
from esper.kasmina.plan import take_census
from esper.leyline.codes import Refusal
from esper.leyline.events import Epoch, Evaluation, Transition
from esper.leyline.stages import ACTIVE, is_in
from esper.leyline.state import State

LOSS_TOLERANCE = 1e-3
"""Relative; single precision against double after a whole epoch of SGD steps."""

LOGIT_TOLERANCE = 1e-3
"""Of the largest logit; single precision against double in one forward pass."""

FLIPS = 1e-3
"""Share of the validation samples that may change sides between single and double precision, beside one."""


def checked_envs(trial: Trial) -> tuple[int, ...]:
    """The environment with the most active seeds, and the last."""
    active = is_in(trial.state.slots.stage, ACTIVE).sum(1)
    fullest = int(active.argmax()) if active.numel() else 0
    return tuple(dict.fromkeys((fullest, trial.engine.config.num_envs - 1)))


def _differs(place: str, found: float, expected: float, tolerance: float) -> str | None:
    """One line if two numbers are further apart than the tolerance, or one is not finite."""
    if abs(found - expected) <= tolerance:
        return None
    return f"{place} is {found:.6g}; expected {expected:.6g} within {tolerance:.2g}"


def _first(found: list[str | None]) -> str | None:
    return next((line for line in found if line), None)


def epoch_gate(trial: Trial) -> str | None:
    """Training: the mean loss against autograd and torch.optim on one network."""
    _, epoch = trial.run()
    return _epoch_wrong(trial, epoch)


def _epoch_wrong(trial: Trial, epoch: Epoch) -> str | None:
    lines = []
    for env in checked_envs(trial):
        expected = plain.epoch_loss(trial.engine, trial.state, env)
        tolerance = LOSS_TOLERANCE * abs(expected)
        lines.append(_differs(f"training loss of environment {env}", float(epoch.loss[env]), expected, tolerance))
    return _first(lines)


def _flips(trial: Trial) -> float:
    """Points of accuracy that the validation samples allowed to change sides make up."""
    samples = trial.engine.data.val_targets.numel()
    return 100 * (1 + samples * FLIPS) / samples


def _evaluation_wrong(trial: Trial, evaluation: Evaluation, state: State) -> str | None:
    flips, lines = _flips(trial), [_lanes_wrong(trial, state)]
    for env in checked_envs(trial):
        expected = plain.validate(trial.engine, trial.state.slots, state, env)
        tolerance = LOSS_TOLERANCE * abs(expected.loss)
        lines += [
            _differs(f"validation loss of environment {env}", float(evaluation.loss[env]), expected.loss, tolerance),
            _differs(f"accuracy of environment {env}", float(evaluation.accuracy[env]), expected.accuracy, flips),
        ]
        for slot, effect in enumerate(expected.effect):
            place = f"contribution of environment {env}, slot {slot},"
            lines.append(_differs(place, float(evaluation.effect[env, slot]), effect, flips))
    return _first(lines)


def _lanes_wrong(trial: Trial, state: State) -> str | None:
    """Logits of every lane of the checked environments: accuracies alone are too coarse to tell a small seed."""
    engine, lines = trial.engine, list[str | None]()
    network, inputs = engine.network, engine.data.val_inputs.split(engine.config.eval_batch_size)[0]
    decided = state.replace(slots=trial.state.slots)
    lanes = fork_lanes(network, take_census(decided.slots), False, decided.key.device)
    with torch.no_grad():
        forward = lane_logits(network, decided, lanes, engine.hypers.alpha_target.expand(engine.config.num_envs))
        logits = forward(inputs.expand(engine.config.num_envs, *inputs.shape))
    for env in checked_envs(trial):
        one = plain.single(engine, decided, env)
        for lane in np.flatnonzero(lanes.env == env):
            slot = int(lanes.forked_slot[lane])
            slots = one.state.slots if slot < 0 else plain.switched(one, slot)
            expected = plain.logits_of(one, slots, one.data.val_inputs[: inputs.shape[0]])
            gap = float((logits[lane].double().cpu() - expected).abs().max())
            place = f"a logit of environment {env}, " + ("as it is," if slot < 0 else f"slot {slot} switched,")
            scale = float(expected.abs().max())
            lines.append(_differs(place, gap / scale, 0.0, LOGIT_TOLERANCE))
    return _first(lines)


def evaluation_gate(trial: Trial) -> str | None:
    """Validation: loss, accuracy, logits and every contribution against alphas set by hand."""
    return _evaluation_wrong(trial, trial.run(), trial.state)


def validation_gate(trial: Trial) -> str | None:
    """Validation without contributions: scores of the environments as they are, against one at a time."""
    scores, lines = trial.run(), []
    flips = _flips(trial)
    for env in checked_envs(trial):
        expected = plain.validate(trial.engine, trial.state.slots, trial.state, env)
        found = 100 * float(scores.correct[env].mean())
        lines.append(_differs(f"accuracy of environment {env}", found, expected.accuracy, flips))
        tolerance = LOSS_TOLERANCE * abs(expected.loss)
        loss = float(scores.losses[env].mean())
        lines.append(_differs(f"validation loss of environment {env}", loss, expected.loss, tolerance))
    return _first(lines)


def step_gate(trial: Trial) -> str | None:
    """An environment step: its training and its validation, each against one environment at a time."""
    after, event = trial.run()
    return _transition_wrong(trial, after, event)


def _transition_wrong(trial: Trial, after: State, event: Transition) -> str | None:
    if bool(event.judgement.rolled_back.any()):
        return f"the governor rolled back {int(event.judgement.rolled_back.sum())} environments; expected none"
    return _first([_epoch_wrong(trial, event.epoch), _evaluation_wrong(trial, event.evaluation, after)])


def dispatch_gate(trial: Trial) -> str | None:
    """The plan against a loop over all slots; what is gathered and scattered back keeps its bits."""
    plan, after = trial.run()
    slots = trial.state.slots
    stage, kind = slots.stage.tolist(), slots.blueprint.tolist()
    for slot, rows in enumerate(plan.slots):
        found = {(int(env), group.blueprint) for group in rows.groups for env in group.rows}
        expected = {(env, kind[env][slot]) for env in range(len(stage)) if stage[env][slot] in ACTIVE}
        if found != expected or sum(group.rows.shape[0] for group in rows.groups) != len(expected):
            return f"slot {slot}: the plan holds {len(found)} seeds; expected the {len(expected)} active ones"
        if rows.envs.tolist() != [int(env) for group in rows.groups for env in group.rows]:
            return f"slot {slot}: the plan trains rows {rows.envs.tolist()}; expected those of its groups, in order"
    for name, leaf in trial.state.items(include_nested=True, leaves_only=True):
        if not torch.equal(after.get(name), leaf):
            return f"{'.'.join(name if isinstance(name, tuple) else (name,))} changed; expected the bits it had"
    return None


def reset_gate(trial: Trial) -> str | None:
    """Fresh rows equal those of a start anew, the others keep their bits, and the run's order goes on."""
    after, fresh, seed = trial.run(), trial.extra[0], trial.extra[1]
    start = trial.engine.init(seed)
    for name, leaf in after.items(include_nested=True, leaves_only=True):
        old, new = trial.state.get(name), start.get(name)
        if name in ("order_key", "rounds"):
            new = old
        rows = fresh.reshape(-1, *(1,) * (leaf.dim() - 1))
        if not bool((leaf == torch.where(rows, new, old)).all()):
            return f"{name}: rows differ from a start anew where reset, or from before where not"
    return None


def walk_gate(trial: Trial) -> str | None:
    """Random legal actions: none is refused, and all losses are finite."""
    event = trial.run()
    refused = int((event.deed.refusal != int(Refusal.NONE)).sum())
    if refused:
        return f"{refused} of {event.deed.refusal.shape[0]} legal actions were refused; expected none"
    return None if bool(torch.isfinite(event.epoch.loss).all()) else "a training loss is not finite"


def rollout_gate(trial: Trial) -> str | None:
    """Whole episodes: legal actions only, none refused, truncated at the horizon and nowhere else."""
    return batch_wrong(trial, trial.run())


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


def learner_wrong(loss: dict[str, Tensor], advantage: Tensor, errors: Tensor) -> str | None:
    """The loss of a policy on its own actions: all probability ratios are 1, so it follows from its definition.

    Args:
      loss: of stock PPO.
      advantage: what it was given, [E, T, 1].
      errors: value minus target, [E, T, 1].
    """
    objective, critic = -float(advantage.double().mean()), 0.5 * float(errors.double().square().mean())
    return _first(
        [
            _differs("policy loss", float(loss["loss_objective"]), objective, 1e-3 * max(1.0, abs(objective))),
            _differs("value loss", float(loss["loss_critic"]), critic, 1e-3 * max(1.0, abs(critic))),
        ]
    )


def start_gate(trial: Trial) -> str | None:
    """A fresh process: its step's losses against those of one network."""
    losses, lines = trial.run(), []
    for env in checked_envs(trial):
        expected = plain.epoch_loss(trial.engine, trial.state, env)
        place = f"training loss of environment {env} in the fresh process"
        lines.append(_differs(place, losses[env], expected, LOSS_TOLERANCE * abs(expected)))
    return _first(lines)
