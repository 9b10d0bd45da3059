"""What is kept of an epoch's gradients, of some environments, and what is said of it: numbers by name."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from esper.kasmina.layout import Layout
from esper.kasmina.structure import Structure
from esper.leyline.stages import ACTIVE
from esper.nissa.gradient_measures import (
    GradientMeasures,
    host_health,
    measure_gradients,
    seed_health,
)
from esper.nissa.profiles import Profile
from esper.tezzeret.health import MinibatchGradients, SlotGradients
from esper.utils.documents import figure

SAID = ("norm", "mean", "std", "vanishing", "exploding")
"""What is said of gradients besides percentiles and health."""


class SeedPlaces(NamedTuple):
    """Where the seeds of one blueprint stand in a slot, n environments."""

    blueprint: int
    rows: Tensor  # int64 [n]; row among the blueprint's; any where there is none
    present: Tensor  # bool [n]


class KeptGradients(NamedTuple):
    """Of n environments and k minibatches."""

    places: tuple[tuple[SeedPlaces, ...], ...]  # per slot and blueprint
    hosts: tuple[Tensor, ...]  # k of [n, P]
    seeds: tuple[tuple[tuple[Tensor, ...], ...], ...]  # per minibatch, slot and blueprint [n, P_k]


def keep_gradients(count: int, kept: KeptGradients | None, grads: MinibatchGradients) -> KeptGradients:
    """A fold over minibatches; see ``WatchedBatches``.

    Args:
      count: of the first environments n.
      kept: of the minibatches before; None: this is the first.
      grads: of this one.
    """
    kept = kept or KeptGradients(tuple(_places(slot, count) for slot in grads.seeds), (), ())
    seeds = tuple(
        tuple(rows.index_select(0, place.rows) for rows, place in zip(slot.grads, places, strict=True))
        for slot, places in zip(grads.seeds, kept.places, strict=True)
    )
    return kept._replace(hosts=(*kept.hosts, grads.host[:count].clone()), seeds=(*kept.seeds, seeds))


def _places(slot: SlotGradients, count: int) -> tuple[SeedPlaces, ...]:
    found, begun = [], 0
    row_of, present = slot.row_of[:count], slot.present[:count]
    for blueprint, rows in zip(slot.blueprints, slot.grads, strict=True):
        place, begun = row_of - begun, begun + rows.shape[0]
        inside = present & (place >= 0) & (place < rows.shape[0])
        found.append(SeedPlaces(blueprint, place.clamp(0, rows.shape[0] - 1), inside))
    return tuple(found)


class GradientNames:
    """What a structure's gradients are called, and which of them belong together.

    Attributes:
      structure: layouts.
    """

    def __init__(self, structure: Structure, device: torch.device) -> None:
        self.structure, self._device = structure, device
        self._owners = dict[tuple[int, int], Tensor]()

    @cached_property
    def host(self) -> tuple[Tensor, int]:
        """By column of the host the number of its tensor, and how many tensors there are."""
        layout = self.structure.host.layout
        return owners_of(layout).to(self._device), len(layout.params)

    @cached_property
    def blocks(self) -> Tensor:
        """By column of the host the number of its block, among blocks that have numbers of their own."""
        sizes = [block.layout.size for block in self.structure.host.blocks if block.layout.size]
        return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(self._device)

    @property
    def block_numbers(self) -> list[int]:
        """Numbers of the blocks that have numbers of their own."""
        return [place for place, block in enumerate(self.structure.host.blocks) if block.layout.size]

    def seed(self, slot: int, blueprint: int) -> tuple[Tensor, int]:
        """As ``host``, of a slot's seed."""
        layout, key = self.structure.slots[slot].row(blueprint), (slot, blueprint)
        if key not in self._owners:
            self._owners[key] = owners_of(layout).to(self._device)
        return self._owners[key], len(layout.params)


def owners_of(layout: Layout) -> Tensor:
    """By column the number of its tensor, int64 [size]."""
    sizes = torch.tensor([param.size for param in layout.params], dtype=torch.int64)
    return torch.arange(len(sizes)).repeat_interleave(sizes)


def totals(prefix: str, columns: dict[str, Tensor], present: Tensor) -> dict[str, Tensor]:
    """Sum and count [2] of the finite values that are present, by name.

    Args:
      prefix: before the names.
      columns: of ``present``'s shape each.
      present: bool.
    """
    values = torch.stack([column.flatten() for column in columns.values()])
    counted = present.flatten() & values.isfinite()
    pairs = torch.stack((torch.where(counted, values, 0.0).sum(1), counted.sum(1).to(values.dtype)), 1)
    return {prefix + name: pair for name, pair in zip(columns, pairs.unbind(0), strict=True)}


def said_of_hosts(
    names: GradientNames, profile: Profile, kept: KeptGradients
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What hosts' gradients are like.

    Returns:
      by name sum and count [2] over environments; and of every environment [n] what anomalies are judged by.
    """
    grads = torch.stack(kept.hosts)
    found = measure_gradients(grads, *names.host, profile.percentiles)
    health, all_of_them = host_health(found), torch.ones_like(found.norm, dtype=torch.bool)
    shown = {f"p{figure(each)}": found.percentiles[:, place] for place, each in enumerate(profile.percentiles)}
    said = totals("host_gradient_", _columns(found) | {"health": health} | shown, all_of_them)
    if profile.layers:
        numbers = names.block_numbers
        blocks = measure_gradients(grads, names.blocks, len(numbers))
        columns = {"norm": blocks.tensor_norm, "vanishing": blocks.tensor_vanishing}
        columns |= {"exploding": blocks.tensor_exploding}
        for place, number in enumerate(numbers):
            block = {name: rows[:, place] for name, rows in columns.items()}
            said |= totals(f"block_{number}_gradient_", block, all_of_them)
    return said, {"vanishing": found.vanishing, "exploding": found.exploding, "health": health}


def said_of_seeds(names: GradientNames, kept: KeptGradients, stages: Tensor) -> dict[str, Tensor]:
    """What seeds' gradients are like, slot by slot and stage by stage: sum and count [2] over environments, by name.

    Args:
      names: of the structure.
      kept: of the epoch.
      stages: int64 [n, S]; in which the slots were during the epoch.
    """
    said, found = dict[str, Tensor](), list[tuple[Tensor, dict[str, Tensor]]]()
    slots = zip(names.structure.slot_names, kept.places, strict=True)
    for slot, (name, places) in enumerate(slots):
        parts = []
        for number, place in enumerate(places):
            rows = torch.stack([seeds[slot][number] for seeds in kept.seeds])
            measured = measure_gradients(rows, *names.seed(slot, place.blueprint))
            parts.append((place.present, _columns(measured) | {"health": seed_health(measured)}))
        if parts:
            present, values = _merged(parts)
            said |= totals(f"slot_{name}_gradient_", values, present)
            found.append((torch.where(present, stages[:, slot], 0), values))
    if found:
        held = torch.stack([stage for stage, _ in found])
        whole = {word: torch.stack([values[word] for _, values in found]) for word in found[0][1]}
        for stage in ACTIVE:
            said |= totals(f"stage_{stage.name.lower()}_gradient_", whole, held == int(stage))
    return said


def _merged(parts: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Of every environment the blueprint's numbers that it holds."""
    present, values = parts[0]
    for held, found in parts[1:]:
        present = present | held
        values = {word: torch.where(held, found[word], column) for word, column in values.items()}
    return present, values


def _columns(found: GradientMeasures) -> dict[str, Tensor]:
    return {word: getattr(found, word) for word in SAID}
