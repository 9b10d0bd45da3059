"""Validation: loss, accuracy, accuracy per class, and what every slot contributes. And the test, at the end of all."""

from collections.abc import Iterator
from math import factorial, log

import torch
from torch import Tensor

from esper.kasmina.counterfactuals import EffectPlaces, coalitions, list_effects, no_changes, single_changes
from esper.kasmina.slot_table import SlotTable, take_table
from esper.leyline.events import Evaluation, Performance
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import learners_of
from esper.leyline.stages import MERGED
from esper.leyline.state import State
from esper.tezzeret.backend import Backend, Plan
from esper.tolaria.data import Dataset, Part
from esper.utils.numerics import by_row
from esper.utils.upload import upload

STREAMED = 512
"""Samples that are read from a file at a time where all of them are."""


def evaluate(
    backend: Backend,
    hypers: HyperParams,
    state: State,
    table: SlotTable,
    plan: Plan,
    data: Dataset,
    places: EffectPlaces | None = None,
) -> Evaluation:
    """Validate every environment and measure every active slot.

    Args:
      backend: how the networks are run.
      hypers: ``alpha_target``.
      state: [E]; read only.
      table: of ``state.slots``.
      plan: the backend's, made from the table.
      data: the task.
      places: ``list_effects`` of the table, on the device already; None: they are listed and sent up here.

    Returns:
      per environment and slot. The contribution of a merged slot is the accuracy as it is minus the accuracy with
      that slot's alpha at 0; the prospect of a slot in TRAINING is the accuracy with its alpha at the target minus
      the accuracy as it is; same samples, standard error of the paired difference.
    """
    wanted, samples, num_envs = single_changes(table), data.validation.samples, state.key.shape[0]
    found = backend.evaluate(hypers, plan, learners_of(state), state.slots.alpha, samples, wanted)
    own = found.scores[:num_envs]
    effect = own.new_zeros(table.stage.shape)
    error, measured = torch.zeros_like(effect), torch.zeros_like(effect, dtype=torch.bool)
    if wanted.env.size:
        *place, grows = upload(list_effects(table), own.device) if places is None else places
        signs = torch.where(grows, 1.0, -1.0).to(own.dtype).unsqueeze(1)
        difference = (found.scores[num_envs:] - own.index_select(0, place[0])) * signs
        spread = by_row(_variance, difference) / difference.shape[1]
        effect = effect.index_put(place, 100 * by_row(_mean, difference))
        error = error.index_put(place, 100 * spread.sqrt())
        measured = measured.index_put(place, torch.ones_like(place[0], dtype=torch.bool))
    loss = by_row(_mean, found.losses)
    return Evaluation(
        loss=loss,
        accuracy=100 * by_row(_mean, own),
        class_accuracy=_class_accuracy(found.class_hits, data),
        finite=torch.isfinite(loss),
        effect=effect,
        effect_error=error,
        measured=measured,
    )


def measure(backend: Backend, hypers: HyperParams, state: State, part: Part) -> Performance:
    """Loss and accuracy of every network as it stands, on any samples: the test part's, where a report is made.

    Args:
      backend: how the networks are run.
      hypers: as in ``evaluate``.
      state: [E]; read only.
      part: samples.

    Returns:
      per environment. Law: on the samples that ``evaluate`` sees, its loss and accuracy, as long as slots are those
      that were validated; a step measures before its clock, which moves the alpha of seeds that blend.
    """
    table = take_table(state.slots)
    plan = backend.plan(table, state.key.device)
    wanted, learners, whole = no_changes(table.stage.shape[1]), learners_of(state), list[Performance]()
    for samples in _in_turn(part):
        found = backend.evaluate(hypers, plan, learners, state.slots.alpha, samples, wanted)
        share = len(samples[1]) / part.size
        whole.append(Performance(share * by_row(_mean, found.losses), 100 * share * by_row(_mean, found.scores)))
    return Performance(*(torch.stack(parts).sum(0) for parts in zip(*whole, strict=True)))


def _in_turn(part: Part) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples in memory, or some at a time of those that stay in a file."""
    if isinstance(part.inputs, Tensor):
        return iter([part.samples])
    return zip(part.inputs.split(STREAMED), part.targets.split(STREAMED), strict=True)


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(1)


def _variance(rows: Tensor) -> Tensor:
    return rows.var(1, correction=0)


def _class_accuracy(hits: Tensor, data: Dataset) -> Tensor:
    """Accuracy per class [E, C] in pp; 0 for a class without validation samples."""
    labels = data.validation.targets.flatten()
    members = hits.new_zeros(data.num_classes).index_add(0, labels, hits.new_ones(labels.shape))
    return 100 * hits / members.clamp(min=1)


def perplexity(loss: Tensor) -> Tensor:
    """Number of equally likely tokens among which a guess has the same loss; nats -> 1."""
    return torch.exp(loss)


def bits(loss: Tensor) -> Tensor:
    """Nats -> bits; of a loss per character, the bits per character."""
    return loss / log(2)


def shapley_values(
    backend: Backend, hypers: HyperParams, state: State, table: SlotTable, plan: Plan, data: Dataset
) -> Tensor:
    """Exact Shapley values of the merged slots, from the accuracy of all 2^S coalitions.

    Args:
      backend, hypers, state, table, plan, data: as in ``evaluate``; S <= 4.

    Returns:
      [E, S] in pp; 0 for slots without a merged seed. Law (efficiency): a row sums to the accuracy as it is minus
      the accuracy with every slot off. Source: Shapley 1953.

    Raises:
      ValueError: more than 4 slots.
    """
    num_envs, num_slots = table.stage.shape
    if num_slots > MAX_SHAPLEY_SLOTS:
        raise ValueError(f"shapley_values: {num_slots} slots; expected at most {MAX_SHAPLEY_SLOTS}")
    wanted, off = coalitions(table)
    samples = data.validation.samples
    scores = backend.evaluate(hypers, plan, learners_of(state), state.slots.alpha, samples, wanted).scores
    accuracy = 100 * scores.mean(1)
    value = torch.cat((accuracy[:num_envs].unsqueeze(1), scores.new_zeros(num_envs, 2**num_slots - 1)), dim=1)
    *place, merged = upload((wanted.env, off, table.within(MERGED)), scores.device)
    value = value.index_put(place, accuracy[num_envs:])
    held = merged.to(torch.int64) @ (2 ** torch.arange(num_slots, device=scores.device))
    value = value.gather(1, torch.arange(2**num_slots, device=scores.device) & held.unsqueeze(1))
    columns = [_shapley_of(value, slot, num_slots) for slot in range(num_slots)]
    return torch.stack(columns, dim=1) if columns else scores.new_zeros((num_envs, 0))


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
