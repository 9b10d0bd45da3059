"""From a structure to its native network: every module captured, or the reason why one cannot be."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.kasmina import gate
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.host import Host, HostBlock, Tie
from esper.kasmina.layout import Layout
from esper.kasmina.structure import Structure
from esper.tezzeret.backend import BackendError
from esper.tezzeret.native.capture import capture
from esper.tezzeret.native.emit import Emitted, emit
from esper.tezzeret.native.graph import Graph, Shape
from esper.tezzeret.native.network import Network
from esper.tezzeret.native.observe import NotCaptured
from esper.tezzeret.native.programs import BlockProgram, NetworkProgram, Program, SlotPrograms
from esper.utils.compilations import LEDGER, compiling


class Input(NamedTuple):
    """What a module reads.

    Attributes:
      shape: per sample.
      vocabulary: how many tokens there are; 0: it is features.
    """

    shape: Shape
    vocabulary: int = 0


class Lowered(NamedTuple):
    """A module as a program.

    Attributes:
      graph: what it computes.
      emitted: as instructions.
      program: as the library has them.
    """

    graph: Graph
    emitted: Emitted
    program: Program


@functools.lru_cache(maxsize=128)
def _written(
    function: Callable[..., Any], trains: bool, x: Input, layout: Layout, buffers: Layout | None
) -> tuple[Graph, Emitted]:
    """A module's graph and instructions: engines of the same blueprints share them."""

    def without_key(*given: Any) -> Any:
        return function(*given, None)

    with compiling("programs"):
        graph = capture(without_key if trains else function, x.shape, layout, buffers, x.vocabulary)
        return graph, emit(graph, layout.size, buffers.size if buffers is not None else 0)


LEDGER.cache("programs", lambda: _written.cache_info()[:2])


def lower(
    place: str, function: Callable[..., Any], trains: bool, x: Input, layout: Layout, buffers: Layout | None = None
) -> Lowered:
    """The program of a module; arguments as ``capture``, what messages call it, and whether it takes a key, too.

    Raises:
      BackendError: it cannot be captured; one line with the module and the operation.
    """
    try:
        graph, emitted = _written(function, trains, x, layout, buffers)
    except NotCaptured as reason:
        raise BackendError(f"backend 'native': {place}: {reason}") from None
    return Lowered(graph, emitted, Program(emitted.code))


class LoweredBlock(NamedTuple):
    """A host block, or a seed, in both forms."""

    train: Lowered
    infer: Lowered


def lower_block(place: str, block: HostBlock, x: Input) -> LoweredBlock:
    """A host block."""
    if block.draws:
        raise BackendError(f"backend 'native': {place}: draws of random numbers")
    layouts = (block.reads, block.buffer_layout)
    train, infer = lower(place, block.train, True, x, *layouts), lower(place, block.infer, False, x, *layouts)
    if infer.program.joins_samples:
        raise BackendError(f"backend 'native': {place}: batch statistics in inference")
    return LoweredBlock(train, infer)


def lower_blocks(structure: Structure) -> tuple[LoweredBlock, ...]:
    """All blocks of the host."""
    blocks, x = [], _host_input(structure.host)
    for index, block in enumerate(structure.host.blocks):
        blocks.append(lower_block(f"{structure.host.name}, block {index}", block, x))
        x = Input(blocks[-1].train.emitted.shape)
    return tuple(blocks)


def _host_input(host: Host) -> Input:
    return Input(host.input_shape, host.num_outputs if host.takes_tokens else 0)


class LoweredSlot(NamedTuple):
    """Everything that fits a slot, in both forms.

    Attributes:
      train, infer: programs.
      tracked: int64 [K, R]; see ``Network``.
    """

    train: SlotPrograms
    infer: SlotPrograms
    tracked: Tensor


def lower_slot(structure: Structure, number: int) -> LoweredSlot:
    """Everything that fits a slot."""
    slot = structure.slots[number]
    if slot.target == 0:
        raise BackendError(f"backend 'native': slot {number}: acts at the input")
    kinds = [_lower_seed(structure, number, kind) if layout else None for kind, layout in enumerate(slot.layouts)]
    opening = (
        lower(f"slot {number}, gate", gate.opening(slot.reads), False, Input(slot.reads.shape), slot.gate)
        if slot.gate.size
        else None
    )
    tracked = torch.full((len(kinds), slot.buffer_width), -1)
    for kind, lowered in enumerate(kinds):
        if lowered and lowered.train.emitted.tracked:
            tracked[kind, : slot.buffer_row(kind).size] = torch.tensor(lowered.train.emitted.tracked)

    def programs(each: Sequence[Lowered | None]) -> SlotPrograms:
        own = tuple(lowered.program if lowered else None for lowered in each)
        return SlotPrograms(own, opening.program if opening else None, slot.source if slot.is_bypass else -1)

    train, infer = zip(*(kind or (None, None) for kind in kinds), strict=True)
    return LoweredSlot(programs(train), programs(infer), tracked)


def _lower_seed(structure: Structure, number: int, kind: int) -> LoweredBlock:
    """A seed in both forms."""
    slot, blueprint = structure.slots[number], structure.blueprints[kind]
    x = Input(slot.reads.shape) if slot.source else _host_input(structure.host)
    place = f"slot {number}, blueprint {blueprint.name!r}"
    return lower_blueprint(place, blueprint, x, (slot.row(kind), slot.buffer_row(kind)), slot.acts.shape)


def lower_blueprint(
    place: str, blueprint: Blueprint, x: Input, rows: tuple[Layout, Layout], acts: Shape
) -> LoweredBlock:
    """A blueprint between two sites, in both forms.

    Args:
      place: what messages call it.
      blueprint: the kind of seed.
      x: what it reads.
      rows: of its parameters, and of its buffers.
      acts: shape of what it gives, per sample.

    Raises:
      BackendError: it cannot be captured; one line with the operation.
    """
    if blueprint.draws:
        raise BackendError(f"backend 'native': {place}: draws of random numbers")
    infer, train = lower(place, blueprint.infer, False, x, *rows), lower(place, blueprint.train, True, x, *rows)
    if infer.program.joins_samples:
        raise BackendError(f"backend 'native': {place}: batch statistics in inference")
    if not infer.emitted.shape == train.emitted.shape == acts:
        raise BackendError(f"backend 'native': {place}: gives {train.emitted.shape}; expected {acts}")
    if len(train.emitted.tracked) != rows[1].size:
        raise BackendError(f"backend 'native': {place}: buffers that are no running averages")
    return LoweredBlock(train, infer)


def lower_structure(structure: Structure) -> Network:
    """The whole network.

    Raises:
      BackendError: the first module that cannot be captured.
    """
    blocks = lower_blocks(structure)
    known: dict[Any, LoweredSlot] = {}
    slots = []
    for number, slot in enumerate(structure.slots):
        alike = (slot.reads, slot.acts, slot.source if slot.is_bypass else -1)
        if alike not in known:
            known[alike] = lower_slot(structure, number)
        slots.append(known[alike])
    train = _network_program(structure, [block.train for block in blocks], [slot.train for slot in slots])
    infer = _network_program(structure, [block.infer for block in blocks], [slot.infer for slot in slots])
    tracked = [
        link.aux + place
        for link, block in zip(train.blocks, blocks, strict=True)
        for place in block.train.emitted.tracked
    ]
    return Network(
        structure, train, infer, torch.tensor([tracked], dtype=torch.int64), tuple(slot.tracked for slot in slots)
    )


def _network_program(structure: Structure, blocks: Sequence[Lowered], slots: Sequence[SlotPrograms]) -> NetworkProgram:
    links, params, buffers, aux = [], 0, 0, 0
    for block, host_block in zip(blocks, structure.host.blocks, strict=True):
        ties = tuple(_tied(structure.host, tie) for tie in host_block.ties)
        links.append(BlockProgram(block.program, params, buffers, aux, ties))
        params, buffers = params + host_block.layout.size, buffers + host_block.buffer_layout.size
        aux += block.program.num_aux
    route = tuple(-1 - place.number if place.is_slot else place.number for place in structure.route)
    return NetworkProgram(tuple(links), tuple(slots), route, aux)


def _tied(host: Host, tie: Tie) -> tuple[int, int]:
    """Where an earlier block's tensor begins in a network's row, and how many numbers it has."""
    before, columns = sum(block.layout.size for block in host.blocks[: tie.block]), host.blocks[tie.block].layout
    return before + columns.columns(tie.param.name).start, tie.param.size
