"""The memory of an engine whose network is one chain of programs, per environment, beside its state.

Features live in each thread's cache and do not grow with E. What does, with N training samples, V validation samples
at once, C classes, L lanes per environment, bytes w per number, P host parameters, and R numbers in the rows of the
seeds that train (the arena's part of each active slot):

    drawing the order of samples    8 N WORDS            if each environment has an order of its own
    training                        8 N + w (P + R) (UPDATE + 2 M)                             likewise
    validation                      w V (C (L + LOGITS) + SCORES L)

M optimizer moments. The numbers in capitals count what is alive at once in the code as it is.
"""

import numpy as np

from esper.bench.work import lane_counts
from esper.engine import Engine
from esper.kasmina.structure import Structure
from esper.kasmina.plan import Census, IntArray
from esper.leyline.config import SampleOrder
from esper.leyline.stages import ACTIVE
from esper.tolaria.optim import MOMENTS

WORDS = 7.0
"""8-byte numbers per sample while an order is drawn: Threefry's words, and a sort with its values and places."""

UPDATE = 6.0
"""Numbers per parameter while it is updated: itself and its successor, gradient, clipped, decayed, velocity."""

LOGITS = 2.0
"""Logits of the environments as they are, once more by class, and their softmax."""

SCORES = 3.0
"""Numbers per sample of a lane: whether it is right, and the difference from its environment."""


def row_widths(network: Network, census: Census) -> IntArray:
    """Numbers in a compact row of every slot, [S]: those of the widest blueprint that is active there."""
    sizes = network.sizes.cpu().numpy()[np.arange(len(network.sites)), np.maximum(census.blueprint, 0)]
    return np.where(census.within(ACTIVE), sizes, 0).max(0, initial=0)


def _order(engine: Engine) -> int:
    """Bytes of an environment's own order of samples; 0 if all share one."""
    shared = engine.config.sample_order is SampleOrder.SHARED
    return 0 if shared else 8 * engine.data.train_targets.shape[0]


def order_bytes(engine: Engine) -> float:
    """While the order of an epoch is drawn."""
    return WORDS * _order(engine)


def update_bytes(engine: Engine, census: Census) -> float:
    """While the rows that train are updated; mean over the environments."""
    network, config = engine.network, engine.config
    rows = (census.within(ACTIVE).mean(0) * row_widths(network, census)).sum()
    numbers = network.host.num_params * (UPDATE + 2 * MOMENTS[config.host_optimizer])
    numbers += rows * (UPDATE + 2 * MOMENTS[config.seed_optimizer])
    return float(_order(engine) + config.precision.dtype.itemsize * numbers)


def validation_bytes(engine: Engine, census: Census, forks: bool) -> float:
    """While the lanes are scored; mean over the environments."""
    config, data = engine.config, engine.data
    lanes = lane_counts(engine.network, census, forks)[0][-1] / config.num_envs
    samples = min(data.val_targets.shape[0], config.eval_batch_size)
    numbers = samples * data.num_classes * (lanes + LOGITS) + data.val_targets.shape[0] * SCORES * lanes
    return float(config.precision.dtype.itemsize * np.asarray(numbers))
