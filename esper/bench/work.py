"""How much work a repeat does, in closed form from the structure and the slot table.

Operations are counted as 2 per multiply-add of matrix products and convolutions; what is element by element is free.
A training step costs three forward passes, less the gradient with respect to inputs before which nothing learns.
"""

from typing import NamedTuple

import numpy as np

from esper.engine import Engine
from esper.kasmina.layout import Layout
from esper.kasmina.slot_table import IntArray, SlotTable
from esper.kasmina.structure import Slot, Structure
from esper.leyline.stages import ACTIVE, MERGED, Stage


class Work(NamedTuple):
    """Amounts of one repeat, over all environments; 0 where there is none of it."""

    env_steps: float = 0.0  # decisions with their epoch
    sgd_steps: float = 0.0  # minibatches, counted per host
    samples: float = 0.0  # through a host, in training or validation; counterfactuals do not count
    flops: float = 0.0


NO_WORK = Work()


def matrix_cells(layout: Layout) -> int:
    """Entries of the matrices and kernels of a row; biases and norms do not count."""
    return sum(param.size for param in layout.params if len(param.shape) > 1)


def seed_flops(structure: Structure, slot: Slot) -> IntArray:
    """Multiply-adds per sample of every blueprint in a slot, int64 [K]; 0 where it does not fit."""
    pairs = zip(structure.blueprints, slot.layouts, strict=True)
    return np.array([b.flops(slot.reads, slot.acts) if layout else 0 for b, layout in pairs], dtype=np.int64)


def gate_flops(slot: Slot) -> int:
    """Multiply-adds per sample of a slot's gate; one weight per position where there is time."""
    axis = slot.reads.time_axis
    return matrix_cells(slot.gate) * (1 if axis is None else slot.reads.shape[axis])


def _held(structure: Structure, table: SlotTable, number: int) -> IntArray:
    """Multiply-adds per sample of the seed that every environment holds in a slot, int64 [E]."""
    return seed_flops(structure, structure.slots[number])[np.maximum(table.blueprint[:, number], 0)]


def train_work(engine: Engine, table: SlotTable) -> Work:
    """One epoch of training of every environment."""
    structure, config = engine.structure, engine.config
    macs, blocks = 0, structure.host.blocks
    for index, block in enumerate(blocks):
        macs += config.num_envs * block.flops * (3 if structure.learns_before(index) else 2)
    for number, slot in enumerate(structure.slots):
        active, gated = table.within(ACTIVE)[:, number], (table.within(MERGED) & table.gated)[:, number]
        passes = 3 if structure.learns_before(slot.source) else 2
        macs += passes * int((active * _held(structure, table, number)).sum() + gated.sum() * gate_flops(slot))
    trained = config.num_envs * config.steps_per_epoch
    flops = 2 * config.steps_per_epoch * config.batch_size * macs
    return Work(sgd_steps=trained, samples=trained * config.batch_size, flops=flops)


def evaluation_work(engine: Engine, table: SlotTable, forks: bool = True) -> Work:
    """One validation of every environment.

    Args:
      engine: structure and data.
      table: [E, S].
      forks: with a network per active slot that measures it, each from where it first differs; or the environments as
        they are alone.
    """
    structure, samples = engine.structure, engine.data.val_targets.shape[0]
    merged, training = table.within(MERGED), table.within((Stage.TRAINING,))
    alive, macs = np.ones(table.stage.shape[0], dtype=np.int64), 0
    for is_slot, number in structure.route:
        if not is_slot:
            macs += int(alive.sum()) * structure.host.blocks[number].flops
            continue
        through = merged[:, number] * alive + (training[:, number] if forks else 0)
        each = _held(structure, table, number) + table.gated[:, number] * gate_flops(structure.slots[number])
        macs += int((through * each).sum())
        alive = alive + (merged[:, number] | training[:, number] if forks else 0)
    return Work(samples=engine.config.num_envs * samples, flops=2 * samples * macs)


def step_work(engine: Engine, table: SlotTable) -> Work:
    """One environment step of every environment."""
    both = zip(train_work(engine, table), evaluation_work(engine, table), strict=True)
    return Work(*(a + b for a, b in both))._replace(env_steps=engine.config.num_envs)
