"""The obvious way through a slot: compute every blueprint for every environment and select.

Kept as the oracle of the grouped way in ``forward``, and to be read first: it says what a slot computes without any
dispatch. It costs K times the arithmetic.
"""

import torch
from torch import Tensor

from esper.kasmina import arena
from esper.kasmina.forward import blend
from esper.kasmina.network import Network, is_gated
from esper.leyline.stages import ACTIVE, ISOLATED, Stage, is_in
from esper.leyline.state import Slots


def through_slot(network: Network, slot: int, slots: Slots, params: Tensor, h: Tensor) -> Tensor:
    """Pass the features of all environments through one slot.

    Args:
      network: structure.
      slot: which slot.
      slots: [E, S].
      params: [E, Q]; the seed arena.
      h: [E, B, ...].

    Returns:
      like h.
    """

    def rows(values: Tensor, like: Tensor = h) -> Tensor:
        return values.reshape(-1, *(1,) * (like.dim() - 1))

    stage, kind = slots.stage[:, slot], slots.blueprint[:, slot]
    seen = torch.where(rows(is_in(stage, ISOLATED)), h.detach(), h)
    features = torch.zeros_like(h)
    for k, unit in enumerate(network.units.seeds[slot]):
        if unit is not None:
            output = unit(params[:, arena.blueprint_columns(network, slot, k)], seen)
            features = torch.where(rows(kind == k), output, features)
    weight = slots.alpha[:, slot].unsqueeze(1)
    if network.gates[slot].size:
        opening = network.units.gates[slot](params[:, arena.gate_columns(network, slot)], seen)
        weight = rows(slots.alpha[:, slot], opening)
        weight = torch.where(rows(is_gated(slots.blend[:, slot]), opening), weight * opening, weight)
    out = blend(h, features, weight, stage == int(Stage.TRAINING))
    return torch.where(rows(is_in(stage, ACTIVE)), out, h)


def train_logits(
    network: Network, slots: Slots, host: Tensor, buffers: Tensor, seeds: Tensor, inputs: Tensor
) -> Tensor:
    """Logits of all environments in training form.

    Args:
      network: structure.
      slots: [E, S].
      host: [E, P].
      buffers: [E, N].
      seeds: [E, Q].
      inputs: [E, B, *input_shape].

    Returns:
      [E, B, C].
    """
    h = inputs
    stages = zip(arena.split_stages(network, host), arena.split_buffers(network, buffers), strict=True)
    for index, (params, statistics) in enumerate(stages):
        h, _ = network.units.train[index](params, statistics, h)
        for slot in network.slots_after(index):
            h = through_slot(network, slot, slots, seeds, h)
    return h
