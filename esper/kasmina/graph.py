"""The graph of a structure, as policies read it."""

import math

import torch

from esper.kasmina.slot import Slot
from esper.kasmina.structure import Structure
from esper.leyline.config import ConfigError
from esper.tamiyo.host_graph import LOG_UNIT, SEED_FEATURES, SITE_KINDS, HostGraph


def graph_of(structure: Structure) -> HostGraph:
    """Points, slots and seeds of a structure, on its device; see ``HostGraph``.

    Raises:
      ConfigError: a blueprint says no number of multiply-adds.
    """
    device = structure.sizes.device
    slots = [(slot.source, slot.target) for slot in structure.slots]
    kinds = range(len(structure.blueprints))
    seeds = [[_seed(structure, slot, kind) for kind in kinds] for slot in structure.slots]
    return HostGraph(
        torch.tensor(_points(structure), dtype=torch.float32, device=device),
        torch.tensor(slots, dtype=torch.int64, device=device).reshape(-1, 2),
        torch.tensor(seeds, dtype=torch.float32, device=device).reshape(len(slots), len(kinds), len(SEED_FEATURES)),
    )


def _points(structure: Structure) -> list[list[float]]:
    host = structure.host
    last, params, flops = len(host.blocks), max(host.num_params, 1), sum(block.flops for block in host.blocks)
    sites = dict(host.points)
    rows = []
    for number in range(last + 1):
        name = "input" if number == 0 else "logits" if number == last else f"block{number - 1}"
        kind = sites[name].kind if name in sites else None
        before = [host.blocks[number - 1].flops / flops, host.blocks[number - 1].layout.size / params]
        rows.append([number / last, *(before if number else [0.0, 0.0]), *(float(kind == each) for each in SITE_KINDS)])
    return rows


def _seed(structure: Structure, slot: Slot, kind: int) -> list[float]:
    blueprint, layout = structure.blueprints[kind], slot.layouts[kind]
    if layout is None:
        return [0.0] * len(SEED_FEATURES)
    host, flops = structure.host, blueprint.flops(slot.reads, slot.acts)
    if type(flops) is not int or flops < 0:
        raise ConfigError(f"blueprint {blueprint.name!r}: flops {flops!r}: expected an integer >= 0")
    ratios = (layout.size / max(host.num_params, 1), flops / sum(block.flops for block in host.blocks))
    logs = [LOG_UNIT * math.log1p(x) for x in (*ratios, len(layout.params))]
    return [*logs, float(blueprint.is_bypass), float(blueprint.identity_bound > 0)]
