"""The memory of a compiled engine on a CPU, per environment, in closed form from the structure.

``state_bytes`` is exact. A network that is one chain of programs has a formula of its own (``chain_memory``). What a
repeat of any other needs beside it is the most of what is alive at once, in feature maps; the numbers in ``MAPS`` count
those of the code as it is (``kasmina.forward.blend`` holds most of them), so they are the one place to mend when that
changes. Not counted: what does not grow with E (program, datasets), and the allocator's slack.

Training a minibatch of B samples, bytes w per number. A layer's map is what its matrix or kernel gives; a seed's inner
maps are those of its layers but for one the size of the site:

    kept    = layer * (host's maps before here) + sum over the active seeds before here of (slot * site + layer * inner)
    peak    = max over the places of  B w (kept + what happens there)
    places  : behind the last stage, layer * logits;  at a stage, layer * its map;  at a seed, backward * site

Validating min(V, eval_batch_size) samples, L lanes at a stage and n rows through a slot's seeds:

    peak    = max over stages of  w samples L (input + map + output), and once more the logits for their losses,
              over slots of       w samples (lanes * L * site + n * max(rows * site, 3 site + inner * (inner maps)))
"""

from typing import NamedTuple

import numpy as np

from esper.bench import chain_memory
from esper.bench.work import lane_counts, map_sizes, matrix_cells
from esper.engine import Engine
from esper.kasmina.layout import Layout
from esper.kasmina.lifecycle import BLANK
from esper.kasmina.structure import Structure
from esper.kasmina.plan import Census, IntArray
from esper.kasmina.site import Site
from esper.leyline.stages import ACTIVE
from esper.tolaria.optim import MOMENTS

WORD = 8
"""Bytes of an integer."""

SIGNAL_NUMBERS, SIGNAL_COUNTS, SIGNAL_FLAGS = 11, 3, 1
"""Scalars of ``Signals`` beside the accuracies per class and the two histories."""

GOVERNOR_COUNTS = 3
"""Scalars of ``Governor`` beside its window."""

KEY_WORDS = 6
"""Words of the two keys, the rounds and the epoch."""


class Maps(NamedTuple):
    """How many maps are alive."""

    layer: float = 2.0  # of a layer in training: its result, and that as the next layer takes it
    slot: float = 4.5  # of a site in training: what the blending of a seed keeps for its backward
    backward: float = 14.0  # of a site at once while a seed and its blending run backward
    lanes: float = 2.0  # of a lane at a slot in validation: features before and behind it
    rows: float = 9.5  # of a row through a seed in validation, while it is blended in
    inner: float = 1.9  # of a seed's inner maps in validation, while they are computed


MAPS = Maps()


def state_bytes(engine: Engine) -> int:
    """Bytes of one environment's ``State``, exactly."""
    network, config = engine.network, engine.config
    width, slots = config.precision.dtype.itemsize, config.num_slots
    trained = _bank(network.host.num_params, MOMENTS[config.host_optimizer])
    trained += _bank(network.num_seed_params, MOMENTS[config.seed_optimizer])
    buffers = sum(stage.buffer_layout.size for stage in network.host.blocks)
    sizes = {float: width, int: WORD, bool: 1}
    cell = sum(sizes[type(value)] for value in BLANK.values())
    signals = width * (SIGNAL_NUMBERS + engine.data.num_classes + 2 * config.history)
    signals += WORD * SIGNAL_COUNTS + SIGNAL_FLAGS
    governor = width * config.loss_window + WORD * GOVERNOR_COUNTS
    kept = width * (trained + buffers) + WORD * (1 + slots)
    return 2 * kept + slots * cell + signals + governor + WORD * KEY_WORDS


def _bank(params: int, moments: int) -> int:
    return params * (1 + moments)


def layer_maps(layout: Layout, flops: int, site: Site | None = None) -> int:
    """Numbers per sample that the matrices and kernels of a row give.

    Positions follow from the multiply-adds: each entry is used once per position, of which a site has so many at most.
    """
    cells = matrix_cells(layout)
    positions = flops // cells if cells else 0
    positions = positions if site is None else min(positions, int(np.prod(site.shape)) // site.channels)
    return positions * sum(param.shape[0] for param in layout.params if len(param.shape) > 1)


def _inner_maps(network: Network) -> IntArray:
    """Numbers per sample inside every blueprint at every slot, [S, K]."""
    rows = [
        [
            max(layer_maps(layout, blueprint.flops(site), site) - int(np.prod(site.shape)), 0) if layout else 0
            for blueprint, layout in zip(network.blueprints, row, strict=True)
        ]
        for site, row in zip(network.sites, network.layouts, strict=True)
    ]
    return np.array(rows, dtype=np.int64).reshape(len(network.sites), len(network.blueprints))


def _per_env(network: Network, census: Census, table: IntArray) -> IntArray:
    """Entries of a table [S, K] for the seed in each slot, [E, S]."""
    return table[np.arange(len(network.sites)), np.maximum(census.blueprint, 0)]


def training_bytes(engine: Engine, census: Census) -> float:
    """Bytes of one environment's minibatch and of the rows that train, mean over the environments."""
    network, config = engine.network, engine.config
    if network.units.whole is not None:
        return max(chain_memory.order_bytes(engine), chain_memory.update_bytes(engine, census))
    active, site = census.within(ACTIVE), map_sizes(network)[1]
    inner = (active * _per_env(network, census, _inner_maps(network))).mean(0)
    share = active.mean(0)
    kept, most = 0.0, 0.0
    for index, stage in enumerate(network.host.blocks):
        maps = layer_maps(stage.reads, stage.flops)
        kept += MAPS.layer * maps
        most = max(most, kept + MAPS.layer * maps)
        for slot in network.slots_after(index):
            kept += MAPS.slot * share[slot] * site[slot] + MAPS.layer * inner[slot]
            most = max(most, kept + MAPS.backward * share[slot] * site[slot])
    rows = _bank(1, MOMENTS[config.seed_optimizer]) * (share * chain_memory.row_widths(network, census)).sum()
    return float(config.precision.dtype.itemsize * (config.batch_size * most + rows))


def evaluation_bytes(engine: Engine, census: Census, forks: bool = True) -> float:
    """Bytes of one environment's validation batch, all its lanes together, mean over the environments."""
    network, config = engine.network, engine.config
    if network.units.whole is not None:
        return chain_memory.validation_bytes(engine, census, forks)
    lanes, through, _ = lane_counts(network, census, forks)
    outputs, site = map_sizes(network)
    inner = _per_env(network, census, _inner_maps(network))
    behind = [*lanes[1:], lanes[-1]]
    most, inputs, last = 0.0, int(np.prod(network.host.input_shape)), len(network.host.blocks) - 1
    for index, stage in enumerate(network.host.blocks):
        maps = layer_maps(stage.reads, stage.flops)
        own = config.num_envs if index == last else 0
        most = max(most, lanes[index] * (inputs + maps + outputs[index]) + own * outputs[index])
        inputs = outputs[index]
        for slot in network.slots_after(index):
            each = np.maximum(MAPS.rows * site[slot], 3 * site[slot] + MAPS.inner * inner[:, slot])
            most = max(most, MAPS.lanes * behind[index] * site[slot] + float((through[:, slot] * each).sum()))
    samples = min(engine.data.val_targets.shape[0], config.eval_batch_size)
    held = (through * chain_memory.row_widths(network, census)).sum()
    held += sum(count * stage.reads.size for count, stage in zip(lanes, network.host.blocks, strict=True))
    return float(config.precision.dtype.itemsize * (samples * most + held) / config.num_envs)


def train_memory(engine: Engine, census: Census) -> float:
    """Bytes of one environment while it trains: its state and its minibatch."""
    return state_bytes(engine) + training_bytes(engine, census)


def validation_memory(engine: Engine, census: Census) -> float:
    """Bytes of one environment while it is validated as it is."""
    return state_bytes(engine) + evaluation_bytes(engine, census, forks=False)


def counterfactual_memory(engine: Engine, census: Census) -> float:
    """Bytes of one environment while it is validated with its contributions."""
    return state_bytes(engine) + evaluation_bytes(engine, census)


def step_memory(engine: Engine, census: Census) -> float:
    """Bytes of one environment in an environment step: its state, what changes of it, and the larger of both peaks."""
    network, config = engine.network, engine.config
    changed = _bank(network.host.num_params, MOMENTS[config.host_optimizer])
    if census.within(ACTIVE).any():
        changed += _bank(network.num_seed_params, MOMENTS[config.seed_optimizer])
    after = changed * config.precision.dtype.itemsize + evaluation_bytes(engine, census)
    return state_bytes(engine) + max(training_bytes(engine, census), after)
