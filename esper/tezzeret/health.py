"""Gradient health, from the gradients at hand."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.arena import tensor_norms
from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure
from esper.leyline.events import Health
from esper.leyline.hypers import HyperParams, over

TINY = 1e-8
"""Norms below this give ratio 0."""


class SlotGradients(NamedTuple):
    """Gradients of a slot's seeds, group by group, without their gates'."""

    blueprints: tuple[int, ...]
    grads: tuple[Tensor, ...]  # [n, P_k] each
    row_of: Tensor  # int64 [E]; place of each environment's seed among all rows
    present: Tensor  # bool [E]


class MinibatchGradients(NamedTuple):
    """Gradients of one minibatch, before clipping."""

    host: Tensor  # [E, P]
    seeds: tuple[SlotGradients, ...]  # per slot


def measure_health(
    structure: Structure, hypers: HyperParams, host_grad: Tensor, seed_grads: Sequence[SlotGradients]
) -> Health:
    """Norms, seed/host ratio, vanishing and exploding tensors.

    Args:
      structure: layouts.
      hypers: thresholds of vanishing and exploding.
      host_grad: [E, P], before clipping.
      seed_grads: per slot.

    Returns:
      per environment and per slot. ratio = (seed norm / sqrt(seed size)) / (host norm / sqrt(host size)), 0 where
      either norm is below TINY. A seed is healthy if its gradient is finite and no tensor of it explodes.
    """
    layout = structure.host.layout
    norms = tensor_norms(layout, host_grad)
    host_norm = torch.linalg.vector_norm(norms, dim=1)
    vanishing = (norms < over(hypers.vanishing_norm, 1)).to(norms.dtype).mean(1)
    exploding = (norms > over(hypers.exploding_norm, 1)).to(norms.dtype).mean(1)
    zero = torch.zeros_like(host_norm)
    columns = []
    for slot, grads in zip(structure.slots, seed_grads, strict=True):
        if not grads.grads:
            columns.append((zero, zero, ~grads.present))
            continue
        norm, relative, largest = _seed_norms(slot, grads)
        ratio = relative / host_norm.clamp(min=TINY) * layout.size**0.5
        ratio = torch.where((norm < TINY) | (host_norm < TINY), 0.0, ratio)
        sound = torch.isfinite(norm) & (largest <= hypers.exploding_norm)
        columns.append((norm, ratio, sound | ~grads.present))
    if not columns:
        none = host_grad.new_zeros((host_grad.shape[0], 0))
        return Health(host_norm, vanishing, exploding, none, none, none.bool())
    seed_norm, seed_ratio, healthy = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
    return Health(host_norm, vanishing, exploding, seed_norm, seed_ratio, healthy)


def _seed_norms(slot: Slot, slot_grads: SlotGradients) -> tuple[Tensor, ...]:
    """Of every environment's seed [E]: the norm, that over the root of the seed's size, the largest of a tensor."""
    rows = []
    for blueprint, grad in zip(slot_grads.blueprints, slot_grads.grads, strict=True):
        each = tensor_norms(slot.row(blueprint), grad) if grad.shape[1] else grad.new_zeros(grad.shape[0], 1)
        norm = torch.linalg.vector_norm(each, dim=1)
        rows.append(torch.stack((norm, norm / max(grad.shape[1], 1) ** 0.5, each.amax(1))))
    placed = torch.cat(rows, dim=1).index_select(1, slot_grads.row_of)
    return torch.where(slot_grads.present, placed, 0.0).unbind(0)


def rows_finite(*tables: Tensor) -> Tensor:
    """Whether all numbers of each row are finite, bool [n].

    0 * x is 0 where x is finite and NaN elsewhere; summing it is ten times as fast as ``isfinite(x).all()``.
    """
    found = [(0 * table).flatten(1).sum(1) == 0 for table in tables]
    return torch.stack(found).all(0)
