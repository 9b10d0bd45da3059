"""What environments that differ are given of one dataset: fewer samples, wrong labels, noisy inputs.

All of it is a fixed fact of an environment, drawn from its key: the same samples, the same wrong labels in every epoch.
Only the training part is touched; decisions and reports are made on clean samples.
"""

import torch
from torch import Tensor

from esper.leyline.contexts import EnvContext, Variation
from esper.leyline.hypers import HyperParams
from esper.leyline.state import lock
from esper.leyline.streams import Stream
from esper.tezzeret.batches import Batches
from esper.tolaria.data import Dataset, Part, dataset_error
from esper.utils import rng

NOISE_KEY = 0x4015E
"""Seed of the noise of inputs; it may be any number, and must never change."""

WITHIN_BATCHES = ("data_share", "label_noise", "input_noise", "shift")
"""Numbers of a context that act on minibatches."""


def own_hypers(hypers: HyperParams, context: EnvContext, variation: Variation) -> HyperParams:
    """The hyperparameters with what every environment drew for itself.

    Args:
      hypers: leaves [] or [E].
      context: of the environments, [E].
      variation: what the task lets differ; the numbers themselves where it is none of them.
    """
    if "host_lr" not in variation:
        return hypers
    return lock(hypers.replace(host_lr=hypers.host_lr * context.host_lr))


def with_levels(dataset: Dataset) -> Dataset:
    """The dataset with a copy of its training part for every level of input noise, if it has such.

    Of a level x, features carry normal noise of standard deviation x, and tokens are with probability x any of the
    vocabulary. It is the same noise at all levels, more or less of it, and the same for all environments.

    Raises:
      DatasetError: it has, and the training inputs stay in a file.
    """
    levels, train = dataset.variation.noise_levels, dataset.train
    if not levels:
        return dataset
    if not isinstance(train.inputs, Tensor):
        expected = "samples in memory, for copies of them with noise"
        raise dataset_error(dataset.name, "train.inputs", "samples that stay in a file", expected)
    key, shape = rng.key(NOISE_KEY).to(train.inputs.device), tuple(train.inputs.shape)
    if dataset.has_tokens:
        u, other = rng.uniform(rng.fold_in(key, 0), shape), rng.bits(rng.fold_in(key, 1), shape) % dataset.num_classes
        copies = [torch.where(u < level, other, train.inputs) for level in levels]
    else:
        noise = rng.normal(key, shape, torch.float32).to(train.inputs.dtype)
        copies = [train.inputs + level * noise for level in levels]
    targets = train.targets.repeat(len(levels), *(1,) * (train.targets.dim() - 1))
    return dataset._replace(at_levels=Part(torch.cat(copies), targets))


def old_classes(targets: Tensor, num_classes: int) -> Tensor:
    """Which samples are of the first half of the classes, bool as ``targets``: what is taught before a shift."""
    return targets < num_classes // 2


def taught(shift: Tensor, epoch: Tensor, horizon: int, old: Tensor) -> Tensor:
    """Which samples may be taught in an epoch.

    Args:
      shift: [E]; fraction of the episode in which the old classes are taught and nothing else, before the new ones are
        and nothing else; 0 = all of them, always.
      epoch: int64 [E].
      horizon: epochs of an episode.
      old: bool [N]; samples of the old classes.

    Returns:
      bool [E, N].
    """
    early = (epoch < (shift * horizon).round()).unsqueeze(1)
    return (early == old) | (shift == 0).unsqueeze(1)


def stand_ins(share: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """Which sample each environment has in the place of every sample of the training set.

    Args:
      share: [E]; fraction of the samples that there are.
      key: int64 [E, 2]; the environments' keys.
      allowed: bool [E, N]; the samples that may be taught.

    Returns:
      int64 [E, N]. Law: a row holds round(share n) different ones of its n samples allowed, at least one, each as often
      as any other, or once more. So an epoch has as many steps as ever, and no sample comes much oftener than others.
    """
    number = allowed.shape[1]
    kept = (share * allowed.sum(1)).round().long().clamp(min=1).unsqueeze(1)
    order = rng.permutation(rng.fold_in(key, int(Stream.SUBSET)), number)
    barred = (~allowed).gather(1, order).long()
    order = order.gather(1, torch.argsort(barred, dim=1, stable=True))
    return order.gather(1, torch.arange(number, device=order.device) % kept)


def told_labels(targets: Tensor, places: Tensor, noise: Tensor, key: Tensor, num_classes: int) -> Tensor:
    """Labels as environments are told them.

    Args:
      targets: int64 [E, k, B, ...]; the right ones.
      places: int64 [E, k, B] or [k, B]; of the samples in the training set.
      noise: [E]; fraction of wrong labels.
      key: int64 [E, 2]; the environments' keys.
      num_classes: C.

    Returns:
      as ``targets``. A label is wrong with the probability ``noise``, and then any other with equal probability. Law:
      it depends on the environment's key and the sample's place (and position) alone.
    """
    positions = targets.shape[3:].numel()
    index = places.expand(targets.shape[:3]).unsqueeze(3) * positions + torch.arange(positions, device=places.device)
    first, second = rng.fold_in(rng.fold_in(key, int(Stream.LABELS)).reshape(-1, 1, 1, 1, 2), index).unbind(-1)
    wrong = first.to(torch.float64) * 2.0**-32 < noise.reshape(-1, 1, 1, 1)
    other = 1 + second % (num_classes - 1)
    return (targets + torch.where(wrong, other, 0).reshape(targets.shape)) % num_classes


def vary(data: Dataset, context: EnvContext, batches: Batches, horizon: int) -> Batches:
    """The minibatches as environments that differ see them; the same ones where nothing of it varies.

    Args:
      data: the task.
      context: [E].
      batches: as they would be without variation.
      horizon: epochs of an episode.
    """
    varied = [name for name in WITHIN_BATCHES if name in data.variation]
    if not varied:
        return batches
    order, count = batches.order, context.batch_size[0]
    if "data_share" in varied or "shift" in varied:
        allowed = torch.ones(count, data.train.size, dtype=torch.bool, device=order.device)
        if "shift" in varied:
            old = old_classes(data.train.targets, data.num_classes)
            allowed = taught(context.shift, batches.epoch, horizon, old)
        places = stand_ins(context.data_share, batches.key, allowed)
        order = places.gather(1, order.expand(count, *order.shape[-2:]).flatten(1)).unflatten(1, order.shape[-2:])
    if "label_noise" in varied:
        right = batches.targets[order].expand(count, *order.shape[-2:], *batches.targets.shape[1:])
        labels = told_labels(right, order, context.label_noise, batches.key, data.num_classes)
        batches = batches._replace(labels=labels)
    if data.at_levels is not None:
        levels = context.input_noise.new_tensor(data.variation.noise_levels)
        level = (context.input_noise.unsqueeze(1) == levels).long().argmax(1)
        order = order + (level * data.train.size).reshape(-1, 1, 1)
        batches = batches._replace(inputs=data.at_levels.held, targets=data.at_levels.targets)
    return batches._replace(order=order)
