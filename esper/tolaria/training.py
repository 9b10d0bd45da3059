"""Training: one epoch of minibatch SGD for every host and every active seed.

The parameters that train are gathered once per epoch into compact rows, trained there, and scattered back once; what
is dormant is never touched. Environments share no parameters, so the gradient of the *sum* of their losses is the
stack of their own gradients: one batched backward.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina import arena
from esper.kasmina.forward import SeedParams, train_forward
from esper.kasmina.network import Network
from esper.kasmina.plan import Plan
from esper.kasmina.whole import train
from esper.kernels.chain import Picked
from esper.leyline.config import Config, SampleOrder
from esper.leyline.events import Epoch
from esper.leyline.hypers import HyperParams
from esper.leyline.state import Bank, State
from esper.leyline.streams import Stream
from esper.tolaria import optim
from esper.tolaria.augment import crop_and_flip
from esper.tolaria.data import Dataset
from esper.tolaria.health import measure_health
from esper.tolaria.optim import Learner
from esper.utils import rng


class Work(NamedTuple):
    """What an epoch trains, in compact rows."""

    host: Learner
    buffers: tuple[Tensor, ...]  # per stage [E, N_i]
    seeds: tuple[Learner, ...]  # per slot [n, W]
    gates: tuple[Learner, ...]  # per slot [g, G]


class Gradients(NamedTuple):
    """Gradients of one minibatch, before clipping, in the shapes of ``Work``."""

    host: Tensor  # [E, P]
    seeds: tuple[Tensor, ...]
    gates: tuple[Tensor, ...]


def gather(network: Network, state: State, plan: Plan) -> Work:
    """Collect the rows that train."""
    seeds, gates = [], []
    for slot, rows in enumerate(plan.slots):
        seeds.append(_read(state.seeds, slot, rows.envs, arena.seed_columns(network, slot, rows)))
        gates.append(_read(state.seeds, slot, rows.gate_rows, arena.gate_columns(network, slot)))
    host = Learner(state.host.params, state.host.moments, state.host.steps)
    return Work(host, arena.split_buffers(network, state.buffers), tuple(seeds), tuple(gates))


def _read(bank: Bank, slot: int, rows: Tensor, columns: slice) -> Learner:
    return Learner(
        bank.params[:, columns].index_select(0, rows),
        bank.moments[:, :, columns].index_select(0, rows),
        bank.steps[:, slot].index_select(0, rows),
    )


def scatter(network: Network, state: State, plan: Plan, work: Work) -> State:
    """Write the trained rows back; the arena is copied only if something in it trained."""
    host = Bank(params=work.host.params, moments=work.host.moments, steps=work.host.steps, batch_size=state.batch_size)
    state = state.replace(host=host, buffers=torch.cat(work.buffers, dim=1))
    if not plan.any_active:
        return state
    params, moments, updates = (leaf.clone() for leaf in (state.seeds.params, state.seeds.moments, state.seeds.steps))
    for slot, rows in enumerate(plan.slots):
        if rows.groups:
            columns = arena.seed_columns(network, slot, rows)
            params[rows.envs, columns] = work.seeds[slot].params
            moments[rows.envs, :, columns] = work.seeds[slot].moments
            updates[rows.envs, slot] = work.seeds[slot].steps
        if rows.gate_rows.shape[0]:
            columns = arena.gate_columns(network, slot)
            params[rows.gate_rows, columns] = work.gates[slot].params
            moments[rows.gate_rows, :, columns] = work.gates[slot].moments
    return state.replace(seeds=Bank(params=params, moments=moments, steps=updates, batch_size=state.batch_size))


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
    passes = -(-steps * batch // num_samples)
    shared = config.sample_order is SampleOrder.SHARED
    key = state.order_key[0] if shared else state.key
    time = state.rounds[0] if shared else state.epoch
    orders = [rng.permutation(rng.fold_in(key, int(Stream.ORDER), time, index), num_samples) for index in range(passes)]
    order = torch.cat(orders, dim=-1)[..., : steps * batch]
    return order.unflatten(-1, (steps, batch))


def minibatch(config: Config, state: State, data: Dataset, indices: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Inputs [E, B, *shape] and targets [E, B, ...] of one SGD step; shared minibatches are expanded, not copied.

    Cropped and mirrored images are each environment's own: they depend on its key, the epoch, the step and the place
    in the minibatch.
    """
    rows = indices[..., step, :]
    inputs, targets = data.train_inputs[rows], data.train_targets[rows]
    if config.sample_order is SampleOrder.SHARED:
        inputs = inputs.expand(config.num_envs, *inputs.shape)
        targets = targets.expand(config.num_envs, *targets.shape)
    if config.crop_padding or config.mirror:
        key = rng.fold_in(state.key, int(Stream.AUGMENT), state.epoch, step)
        inputs = crop_and_flip(key, inputs, config.crop_padding, flip=config.mirror)
    return inputs, targets


def next_batch(
    network: Network, state: State, data: Dataset, indices: Tensor, step: int
) -> tuple[Tensor | Picked, Tensor]:
    """``minibatch``; where a chain reads samples as they are, only their places in the dataset."""
    config = network.config
    if network.units.whole is None or config.crop_padding or config.mirror:
        return minibatch(config, state, data, indices, step)
    rows = indices[..., step, :].expand(config.num_envs, -1)
    return Picked(data.train_inputs, rows), data.train_targets[rows]


def sample_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every prediction: logits [n, B, ..., C], targets [n, B, ...] -> nats [n, B, ...].

    With few classes, a softmax across samples fills vector registers; one along the classes does not.
    """
    return F.cross_entropy(logits.movedim(-1, 1), targets, reduction="none")


def compute_gradients(
    network: Network, plan: Plan, work: Work, alphas: Sequence[Tensor], batch: tuple[Tensor | Picked, Tensor]
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Gradients]:
    """Forward and backward of one minibatch.

    Args:
      network: structure.
      plan: rows per slot.
      work: parameters.
      alphas: per slot [n].
      batch: inputs [E, B, ...] (for a chain also picked) and targets [E, B, ...].

    Returns:
      loss [E] (mean over the minibatch), accuracy [E] (pp), new buffers per stage, gradients.
    """
    whole = network.units.whole
    if whole is not None:
        params = [SeedParams(seed.params, gate.params) for seed, gate in zip(work.seeds, work.gates, strict=True)]
        lesson, buffers = train(whole, plan, (work.host.params, work.buffers), params, alphas, batch)
        gradients = Gradients(lesson.host, lesson.seeds, lesson.gates)
        return lesson.losses.mean(1), 100 * lesson.hits.mean(1), buffers, gradients
    inputs, targets = batch
    assert isinstance(inputs, Tensor), "places in a dataset are for chains"
    host, seeds, gates = _leaf(work.host), tuple(map(_leaf, work.seeds)), tuple(map(_leaf, work.gates))
    leaves = [leaf for leaf in (host, *seeds, *gates) if leaf.requires_grad]
    with torch.enable_grad():
        params = [SeedParams(rows, gate) for rows, gate in zip(seeds, gates, strict=True)]
        stages = arena.split_stages(network, host)
        logits, buffers = train_forward(network, plan.slots, (stages, work.buffers), params, alphas, inputs)
        loss = sample_losses(logits, targets).flatten(1).mean(1)
        grads = iter(torch.autograd.grad(loss.sum(), leaves, materialize_grads=True))
    host_grad, *others = [next(grads) if leaf.requires_grad else leaf for leaf in (host, *seeds, *gates)]
    correct = (logits.argmax(-1) == targets).flatten(1)
    accuracy = 100 * correct.to(loss.dtype).mean(1)
    gradients = Gradients(host_grad, tuple(others[: len(seeds)]), tuple(others[len(seeds) :]))
    return loss.detach(), accuracy, buffers, gradients


def _leaf(learner: Learner) -> Tensor:
    """Its parameters as a leaf of the graph; without rows there is nothing to differentiate."""
    return learner.params.detach().requires_grad_(learner.params.numel() > 0)


def train_step(network: Network, hypers: HyperParams, plan: Plan, work: Work, factor: Tensor, grads: Gradients) -> Work:
    """Clip and apply one minibatch's gradients; ``factor`` [E] scales the learning rates.

    A seed and its gate are clipped each by its own norm.
    """
    config, fused = network.config, network.units.whole is not None
    host_rates, seed_rates = optim.host_rates(hypers, factor), optim.seed_rates(hypers, factor)
    host = optim.learn(config.host_optimizer, work.host, grads.host, host_rates, None, fused)

    def learn(envs: Tensor, learner: Learner, grad: Tensor) -> Learner:
        if not envs.shape[0]:
            return learner
        return optim.learn(config.seed_optimizer, learner, grad, seed_rates, envs, fused)

    seeds = map(learn, [rows.envs for rows in plan.slots], work.seeds, grads.seeds)
    gates = map(learn, [rows.gate_rows for rows in plan.slots], work.gates, grads.gates)
    return Work(host, work.buffers, tuple(seeds), tuple(gates))


def train_epoch(network: Network, hypers: HyperParams, state: State, plan: Plan, data: Dataset) -> tuple[State, Epoch]:
    """Train every host and every active seed for k minibatches.

    Args:
      network: structure; ``config.steps_per_epoch`` is k.
      hypers: learning rates and the like.
      state: [E].
      plan: made from ``state.slots``.
      data: the task.

    Returns:
      the state with trained parameters, moments, counts and buffers, and what was seen. Laws: environments do not
      influence each other; dormant parts of the arena keep their bits; for each environment the result equals
      torch.nn + autograd + torch.optim on its own network.
    """
    config = network.config
    work = gather(network, state, plan)
    alphas = [state.slots.alpha[:, slot][rows.lanes] for slot, rows in enumerate(plan.slots)]
    indices = sample_indices(config, state, data.train_targets.shape[0])
    loss_sum = accuracy_sum = torch.zeros_like(state.signals.val_loss)
    steps = config.steps_per_epoch
    for step in range(steps):
        batch = next_batch(network, state, data, indices, step)
        loss, accuracy, buffers, grads = compute_gradients(network, plan, work, alphas, batch)
        factor = optim.schedule(hypers, state.epoch, step, steps, config.horizon)
        work = train_step(network, hypers, plan, work._replace(buffers=buffers), factor, grads)
        loss_sum, accuracy_sum = loss_sum + loss, accuracy_sum + accuracy
    health = measure_health(network, hypers, plan, grads.host, grads.seeds)
    finite = torch.isfinite(loss_sum) & torch.isfinite(health.host_norm) & _finite(plan, work)
    return scatter(network, state, plan, work), Epoch(loss_sum / steps, accuracy_sum / steps, finite, health)


def _finite(plan: Plan, work: Work) -> Tensor:
    """Whether all trained parameters and moments of an environment are finite, bool [E]."""
    finite = _row_finite(work.host)
    for rows, seed, gate in zip(plan.slots, work.seeds, work.gates, strict=True):
        for envs, learner in ((rows.envs, seed), (rows.gate_rows, gate)):
            if envs.shape[0]:
                finite = finite.index_copy(0, envs, finite.index_select(0, envs) & _row_finite(learner))
    return finite


def _row_finite(learner: Learner) -> Tensor:
    """0 * x is 0 where x is finite and NaN elsewhere; summing it is ten times as fast as ``isfinite(x).all()``."""
    return ((0 * learner.params).sum(1) == 0) & ((0 * learner.moments).sum((1, 2)) == 0)
