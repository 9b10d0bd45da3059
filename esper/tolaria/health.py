"""Gradient health, from the gradients at hand."""

import torch
from torch import Tensor

from esper.kasmina.arena import tensor_norms
from esper.kasmina.forward import split_groups
from esper.kasmina.layout import Layout
from esper.kasmina.network import Network
from esper.kasmina.plan import Plan, SlotPlan
from esper.leyline.events import Health
from esper.leyline.hypers import HyperParams, over

TINY = 1e-8
"""Norms below this give ratio 0 (December 2025 system)."""


def measure_health(
    network: Network,
    hypers: HyperParams,
    plan: Plan,
    host_grad: Tensor,
    seed_grads: tuple[Tensor, ...],
) -> Health:
    """Norms, seed/host ratio, vanishing and exploding tensors.

    Args:
      network: layouts.
      hypers: thresholds of vanishing and exploding.
      plan: rows of the seeds' gradients.
      host_grad: [E, P], before clipping.
      seed_grads: per slot [n, W]; the gate's gradient is not counted.

    Returns:
      per environment and per slot. ratio = (seed norm / sqrt(seed size)) / (host norm / sqrt(host size)), 0 where
      either norm is below TINY. A seed is healthy if its gradient is finite and no tensor of it explodes.
    """
    host_layout = Layout(tuple(param for stage in network.host.stages for param in stage.params))
    norms = tensor_norms(host_layout, host_grad)
    host_norm = torch.linalg.vector_norm(norms, dim=1)
    vanishing = (norms < over(hypers.vanishing_norm, 1)).to(norms.dtype).mean(1)
    exploding = (norms > over(hypers.exploding_norm, 1)).to(norms.dtype).mean(1)

    shape = (host_grad.shape[0], network.config.num_slots)
    seed_norm, seed_ratio = host_grad.new_zeros(shape), host_grad.new_zeros(shape)
    healthy = torch.ones(shape, dtype=torch.bool, device=host_grad.device)
    explodes = over(hypers.exploding_norm, 1).expand(shape[0], 1)
    for slot, rows in enumerate(plan.slots):
        if not rows.groups:
            continue
        norm, relative, largest = _seed_norms(network, slot, rows, seed_grads[slot])
        base = host_norm.index_select(0, rows.envs)
        ratio = relative / base.clamp(min=TINY) * host_layout.size**0.5
        seed_norm[rows.envs, slot] = norm
        seed_ratio[rows.envs, slot] = torch.where((norm < TINY) | (base < TINY), 0.0, ratio)
        sound = torch.isfinite(norm) & (largest <= explodes.index_select(0, rows.envs).squeeze(1))
        healthy[rows.envs, slot] = sound
    return Health(host_norm, vanishing, exploding, seed_norm, seed_ratio, healthy)


def _seed_norms(network: Network, slot: int, rows: SlotPlan, grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every seed in a slot's plan: the norm, that over the root of the seed's size, the largest of a tensor; [n]."""
    columns = []
    for group, grad in zip(rows.groups, split_groups(network, slot, rows, grads), strict=True):
        layout = network.layouts[slot][group.blueprint]
        each = tensor_norms(layout, grad) if layout and layout.size else grad.new_zeros(grad.shape[0], 1)
        norm = torch.linalg.vector_norm(each, dim=1)
        columns.append(torch.stack((norm, norm / max(grad.shape[1], 1) ** 0.5, each.amax(1))))
    norm, relative, largest = torch.cat(columns, dim=1)
    return norm, relative, largest
