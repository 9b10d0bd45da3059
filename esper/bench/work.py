"""How much work a repeat does, in closed form from the structure and the census.

Operations are counted as 2 per multiply-add of matrix products and convolutions; what is element by element is free.
A training step costs three forward passes, less the gradient with respect to the host's input, which nobody needs.
Bytes are the least that must move if nothing stays in a cache between two uses and every chain of element-wise
operations is one pass.
"""

from typing import NamedTuple

import numpy as np

from esper.engine import Engine
from esper.kasmina.layout import Layout
from esper.kasmina.structure import Structure
from esper.kasmina.plan import Census, IntArray
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.tolaria.optim import MOMENTS

PASSES_PER_MAP = 5
"""Times a feature map crosses memory in training: written and read forward, read once more backward, and its gradient
written and read."""

PASSES_PER_PARAM = 6
"""Times a parameter's size does: read forward and backward, gradient written and read, parameter read and written."""


class Work(NamedTuple):
    """Amounts of one repeat, over all environments; 0 where there is none of it."""

    env_steps: float = 0.0  # decisions with their epoch
    sgd_steps: float = 0.0  # minibatches, counted per host
    samples: float = 0.0  # through a host, in training or validation; counterfactual lanes do not count
    flops: float = 0.0
    bytes: float = 0.0

    def plus(self, other: "Work") -> "Work":
        """Both, one after the other."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


NO_WORK = Work()


def matrix_cells(layout: Layout) -> int:
    """Entries of the matrices and kernels of a row; biases and norms do not count."""
    return sum(param.size for param in layout.params if len(param.shape) > 1)


def seed_flops(network: Network) -> IntArray:
    """Multiply-adds per sample of every blueprint at every slot, int64 [S, K]; 0 where it does not fit."""
    rows = [
        [blueprint.flops(site) if layout else 0 for blueprint, layout in zip(network.blueprints, row, strict=True)]
        for site, row in zip(network.sites, network.layouts, strict=True)
    ]
    return np.array(rows, dtype=np.int64).reshape(len(network.sites), len(network.blueprints))


def gate_flops(network: Network) -> IntArray:
    """Multiply-adds per sample of every slot's gate, int64 [S]; one weight per position where there is time."""
    times = [1 if site.time_axis is None else site.shape[site.time_axis] for site in network.sites]
    return np.array([matrix_cells(g) * t for g, t in zip(network.gates, times, strict=True)], dtype=np.int64)


def map_sizes(network: Network) -> tuple[list[int], IntArray]:
    """Numbers per sample that every host stage, and every slot's seed, hands on."""
    host = network.host
    logits = host.num_outputs * (host.input_shape[0] if host.takes_tokens else 1)
    sizes = [logits if s.site is None else int(np.prod(s.site.shape)) for s in host.blocks]
    return sizes, np.array([np.prod(site.shape) for site in network.sites], dtype=np.int64)


def _seed_sizes(network: Network, census: Census) -> IntArray:
    """Parameters of the seed in each slot, int64 [E, S]."""
    rows = np.arange(len(network.sites))
    return network.sizes.cpu().numpy()[rows, np.maximum(census.blueprint, 0)]


def _held_flops(network: Network, census: Census) -> IntArray:
    """Multiply-adds per sample of the seed in each slot, int64 [E, S]."""
    return seed_flops(network)[np.arange(len(network.sites)), np.maximum(census.blueprint, 0)]


def train_work(engine: Engine, census: Census) -> Work:
    """One epoch of training of every environment."""
    network, config, host = engine.network, engine.config, engine.network.host
    active, merged = census.within(ACTIVE), census.within(MERGED)
    gated = merged & census.gated
    samples = config.steps_per_epoch * config.batch_size
    forward = config.num_envs * sum(stage.flops for stage in host.blocks)
    forward += int((active * _held_flops(network, census)).sum() + (gated * gate_flops(network)).sum())
    flops = 2 * samples * (3 * forward - config.num_envs * host.blocks[0].flops)

    host_maps, seed_maps = map_sizes(network)
    maps = config.num_envs * sum(host_maps) + int((active * seed_maps).sum())
    passes = [PASSES_PER_PARAM + 2 * MOMENTS[which] for which in (config.host_optimizer, config.seed_optimizer)]
    params = config.num_envs * host.num_params * passes[0]
    params += int((active * _seed_sizes(network, census)).sum()) * passes[1]
    moved = samples * PASSES_PER_MAP * maps + config.steps_per_epoch * params
    trained = config.num_envs * config.steps_per_epoch
    return Work(
        sgd_steps=trained,
        samples=trained * config.batch_size,
        flops=flops,
        bytes=moved * config.precision.dtype.itemsize,
    )


def lane_counts(network: Network, census: Census, forks: bool) -> tuple[list[int], IntArray, IntArray]:
    """Lanes at every host stage; rows that pass through the seed of each slot, [E, S]; and those that are gated."""
    merged, training = census.within(MERGED), census.within((Stage.TRAINING,))
    alive = np.ones(census.stage.shape[0], dtype=np.int64)
    through, at_stage = np.zeros_like(census.stage), []
    for index in range(len(network.host.blocks)):
        at_stage.append(int(alive.sum()))
        for slot in network.slots_after(index):
            through[:, slot] = merged[:, slot] * alive + (training[:, slot] if forks else 0)
            alive = alive + (merged[:, slot] | training[:, slot] if forks else 0)
    return at_stage, through, through * census.gated


def evaluation_work(engine: Engine, census: Census, forks: bool = True) -> Work:
    """One validation of every environment.

    Args:
      engine: structure and data.
      census: [E, S].
      forks: with a lane per active slot that measures it, or the environments as they are alone.
    """
    network, config = engine.network, engine.config
    samples = engine.data.val_targets.shape[0]
    lanes, through, gated = lane_counts(network, census, forks)
    macs = sum(count * stage.flops for count, stage in zip(lanes, network.host.blocks, strict=True))
    macs += int((through * _held_flops(network, census)).sum() + (gated * gate_flops(network)).sum())
    host_maps, seed_maps = map_sizes(network)
    maps = sum(count * size for count, size in zip(lanes, host_maps, strict=True)) + int((through * seed_maps).sum())
    rows = sum(count * stage.reads.size for count, stage in zip(lanes, network.host.blocks, strict=True))
    rows += int((through * _seed_sizes(network, census)).sum())
    batches = -(-samples // config.eval_batch_size)
    return Work(
        samples=config.num_envs * samples,
        flops=2 * samples * macs,
        bytes=(2 * samples * maps + batches * rows) * config.precision.dtype.itemsize,
    )


def step_work(engine: Engine, census: Census) -> Work:
    """One environment step of every environment."""
    both = train_work(engine, census).plus(evaluation_work(engine, census))
    return both._replace(env_steps=engine.config.num_envs)
