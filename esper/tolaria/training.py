"""Training: which samples an epoch sees, and what training them did."""

import torch
from torch import Tensor

from esper.leyline.config import Config, SampleOrder
from esper.leyline.events import Epoch
from esper.leyline.hypers import HyperParams
from esper.leyline.learners import learners_of, with_learners
from esper.leyline.state import State
from esper.leyline.streams import Stream
from esper.tezzeret.backend import Backend, Plan
from esper.tezzeret.batches import Batches
from esper.tezzeret.shuffle import shuffled
from esper.tolaria.data import Dataset
from esper.tolaria.mapped import MappedInputs
from esper.tolaria.variations import vary
from esper.utils import rng


def sample_indices(config: Config, state: State, num_samples: int) -> Tensor:
    """The epoch's sample order: permutations of the training set, cut into minibatches.

    Args:
      config: order, minibatches k, batch size B.
      state: keys, rounds and epochs.
      num_samples: training samples N.

    Returns:
      int64 [k, B] if shared (drawn from the run's key and its rounds), else [E, k, B] (from each environment's key
      and epoch). No sample repeats before all N were used.
    """
    steps, batch = config.steps_per_epoch, config.batch_size
    wanted = steps * batch
    shared = config.sample_order is SampleOrder.SHARED
    key = state.order_key[0] if shared else state.key
    time = state.rounds[0] if shared else state.epoch
    orders = [
        shuffled(rng.fold_in(key, int(Stream.ORDER), time, index), num_samples, min(wanted - begun, num_samples))
        for index, begun in enumerate(range(0, wanted, num_samples))
    ]
    return torch.cat(orders, dim=-1).unflatten(-1, (steps, batch))


def draw_batches(config: Config, state: State, data: Dataset) -> Batches:
    """The minibatches of the epoch that a state is about to begin."""
    order = sample_indices(config, state, data.train.size)
    inputs, targets = data.train
    if isinstance(inputs, Tensor):
        return vary(data, state.context, Batches(inputs, targets, order, state.key, state.epoch), config.horizon)
    batches = Batches(inputs[:0], targets, order, state.key, state.epoch)
    return fetched(inputs, vary(data, state.context, batches, config.horizon))


def fetched(inputs: MappedInputs, batches: Batches) -> Batches:
    """The same minibatches, whose samples have been read from their file, each once; in the order of the file."""
    places, order = batches.order.unique(return_inverse=True)
    return batches._replace(inputs=inputs[places], targets=batches.targets[places], order=order)


def train_epoch(
    config: Config, backend: Backend, hypers: HyperParams, state: State, plan: Plan, data: Dataset
) -> tuple[State, Epoch]:
    """Train every host and every active seed for k minibatches.

    Args:
      config: ``steps_per_epoch`` is k.
      backend: how the networks are run.
      hypers: learning rates and the like.
      state: [E].
      plan: the backend's, made from ``state.slots``.
      data: the task.

    Returns:
      the state with trained parameters, moments, counts and buffers, and what was seen. Laws: environments do not
      influence each other; dormant parts of the arena keep their bits; for each environment the result equals
      torch.nn + autograd + torch.optim on its own network.
    """
    batches = draw_batches(config, state, data)
    learners, epoch = backend.epoch(hypers, plan, learners_of(state), state.slots.alpha, batches)
    return with_learners(state, learners), epoch
