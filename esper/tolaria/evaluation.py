"""Validation: loss, accuracy, accuracy per class, and what every slot contributes."""

from math import factorial, log
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.inference import lane_logits
from esper.kasmina.lanes import Lanes, fork_lanes
from esper.kasmina.network import Network
from esper.kasmina.plan import Census
from esper.leyline.events import Evaluation
from esper.leyline.hypers import HyperParams
from esper.leyline.state import State
from esper.tolaria.data import Dataset
from esper.tolaria.training import sample_losses


class Scores(NamedTuple):
    """What the validation set says, sample by sample; of a sequence, the mean over its positions."""

    losses: Tensor  # [E, V]; nats
    correct: Tensor  # [L, V] in [0, 1]
    class_hits: Tensor  # [E, C]; correct predictions by true class


def lane_scores(network: Network, hypers: HyperParams, state: State, lanes: Lanes, data: Dataset) -> Scores:
    """Loss of every environment and correctness of every lane on the whole validation set.

    Args:
      network: structure.
      hypers: ``alpha_target`` of prospect lanes.
      state: [E].
      lanes: the tree, L lanes.
      data: the task, V validation samples.
    """
    num_envs, dtype = network.config.num_envs, state.host.params.dtype
    target = hypers.alpha_target.expand(num_envs)
    losses, correct = [], []
    class_hits = state.host.params.new_zeros(num_envs, data.num_classes)
    with torch.no_grad():
        forward = lane_logits(network, state, lanes, target)
        size = network.config.eval_batch_size
        for inputs, targets in zip(data.val_inputs.split(size), data.val_targets.split(size), strict=True):
            logits = forward(inputs.expand(num_envs, *inputs.shape))
            own = sample_losses(logits[:num_envs], targets.expand(num_envs, *targets.shape))
            losses.append(own.flatten(2).mean(2) if own.dim() > 2 else own)
            hits = (logits.argmax(-1) == targets).to(dtype)
            correct.append(hits.flatten(2).mean(2) if hits.dim() > 2 else hits)
            class_hits = class_hits.index_add(1, targets.flatten(), hits[:num_envs].flatten(1))
    return Scores(torch.cat(losses, dim=1), torch.cat(correct, dim=1), class_hits)


def evaluate(network: Network, hypers: HyperParams, state: State, census: Census, data: Dataset) -> Evaluation:
    """Validate every environment and measure every active slot.

    Args:
      network: structure.
      hypers: ``alpha_target``.
      state: [E]; read only.
      census: lifecycle fields of ``state.slots`` on the host (the plan's).
      data: the task.

    Returns:
      per environment and slot. The contribution of a merged slot is the accuracy as it is minus the accuracy with
      that slot's alpha at 0; the prospect of a slot in TRAINING is the accuracy with its alpha at the target minus
      the accuracy as it is; same samples, standard error of the paired difference.
    """
    num_envs = network.config.num_envs
    lanes = fork_lanes(network, census, False, state.key.device)
    losses, correct, class_hits = lane_scores(network, hypers, state, lanes, data)
    own = correct[:num_envs]
    effect = own.new_zeros((num_envs, network.config.num_slots))
    error, measured = torch.zeros_like(effect), torch.zeros_like(effect, dtype=torch.bool)
    if lanes.env.size > num_envs:
        env = torch.as_tensor(lanes.env[num_envs:], device=own.device)
        slot = torch.as_tensor(lanes.forked_slot[num_envs:], device=own.device)
        sign = torch.as_tensor(1.0 - 2.0 * lanes.is_prospect[num_envs:], dtype=own.dtype, device=own.device)
        difference = (own.index_select(0, env) - correct[num_envs:]) * sign.unsqueeze(1)
        spread = difference.var(1, correction=0) / difference.shape[1]
        effect = effect.index_put((env, slot), 100 * difference.mean(1))
        error = error.index_put((env, slot), 100 * spread.sqrt())
        measured = measured.index_put((env, slot), torch.ones_like(env, dtype=torch.bool))
    loss = losses.mean(1)
    return Evaluation(
        loss=loss,
        accuracy=100 * own.mean(1),
        class_accuracy=_class_accuracy(class_hits, data),
        finite=torch.isfinite(loss),
        effect=effect,
        effect_error=error,
        measured=measured,
    )


def _class_accuracy(hits: Tensor, data: Dataset) -> Tensor:
    """Accuracy per class [E, C] in pp; 0 for a class without validation samples."""
    labels = data.val_targets.flatten()
    members = hits.new_zeros(data.num_classes).index_add(0, labels, hits.new_ones(labels.shape))
    return 100 * hits / members.clamp(min=1)


def perplexity(loss: Tensor) -> Tensor:
    """Number of equally likely tokens among which a guess has the same loss; nats -> 1."""
    return torch.exp(loss)


def bits(loss: Tensor) -> Tensor:
    """Nats -> bits; of a loss per character, the bits per character."""
    return loss / log(2)


def shapley_values(network: Network, hypers: HyperParams, state: State, census: Census, data: Dataset) -> Tensor:
    """Exact Shapley values of the merged slots, from the accuracy of all 2^S coalitions.

    Args:
      network: structure, S <= 4.
      hypers: unused numbers are ignored.
      state: [E]; read only.
      census: lifecycle fields of ``state.slots`` on the host.
      data: the task.

    Returns:
      [E, S] in pp; 0 for slots without a merged seed. Law (efficiency): a row sums to the accuracy as it is minus
      the accuracy with every slot off. Source: Shapley 1953.

    Raises:
      ValueError: more than 4 slots.
    """
    num_envs, num_slots = network.config.num_envs, network.config.num_slots
    if num_slots > MAX_SHAPLEY_SLOTS:
        raise ValueError(f"shapley_values: {num_slots} slots; expected at most {MAX_SHAPLEY_SLOTS}")
    lanes = fork_lanes(network, census, True, state.key.device)
    correct = lane_scores(network, hypers, state, lanes, data).correct
    env, off = (torch.as_tensor(column, device=correct.device) for column in (lanes.env, lanes.off))
    value = correct.new_zeros((num_envs, 2**num_slots)).index_put((env, off), 100 * correct.mean(1))
    merged = torch.as_tensor(lanes.merged, device=correct.device)
    bits = merged.to(torch.int64) @ (2 ** torch.arange(num_slots, device=correct.device))
    codes = torch.arange(2**num_slots, device=correct.device)
    value = value.gather(1, codes & bits.unsqueeze(1))
    columns = [_shapley_of(value, slot, num_slots) for slot in range(num_slots)]
    return torch.stack(columns, dim=1) if columns else correct.new_zeros((num_envs, 0))


MAX_SHAPLEY_SLOTS = 4
"""Slots up to which all coalitions are evaluated."""


def _shapley_of(value: Tensor, slot: int, num_slots: int) -> Tensor:
    """Weighted mean of a slot's marginal value over coalitions; ``value[:, off]`` by mask of slots switched off."""
    total = torch.zeros_like(value[:, 0])
    for off in range(2**num_slots):
        if off & 1 << slot:
            others = num_slots - off.bit_count()
            weight = factorial(others) * factorial(num_slots - others - 1) / factorial(num_slots)
            total = total + weight * (value[:, off ^ 1 << slot] - value[:, off])
    return total
