"""Minibatches: an epoch's samples by their places in the dataset, and one minibatch of them as tensors."""

from typing import NamedTuple

from torch import Tensor

from esper.kasmina.augment import crop_and_flip
from esper.kasmina.structure import Structure
from esper.leyline.streams import Stream
from esper.utils import rng


class Batch(NamedTuple):
    """What every environment learns from in one SGD step."""

    inputs: Tensor  # [E, B, *input_shape]; may be expanded along E
    targets: Tensor  # int64 [E, B, ...]
    key: Tensor | None = None  # int64 [E, 2]; for modules that draw

    def parts(self, count: int) -> "list[Batch]":
        """Equal parts of the samples, in order. Modules that draw do so in each part by a key of its own."""
        if count == 1:
            return [self]
        cuts = zip(self.inputs.chunk(count, 1), self.targets.chunk(count, 1), strict=True)
        keys = [None if self.key is None else rng.fold_in(self.key, number) for number in range(count)]
        return [Batch(*cut, key) for cut, key in zip(cuts, keys, strict=True)]


class Batches(NamedTuple):
    """The minibatches of an epoch.

    Attributes:
      inputs: [N, *input_shape]; the training set.
      targets: [N, ...].
      order: int64 [k, B], shared by all environments, or [E, k, B]; places in the training set.
      key: int64 [E, 2]; the environments' keys.
      epoch: int64 [E].
      labels: int64 [E, k, B, ...] of the samples in their order, where environments are told others than ``targets``.
    """

    inputs: Tensor
    targets: Tensor
    order: Tensor
    key: Tensor
    epoch: Tensor
    labels: Tensor | None = None

    @property
    def length(self) -> int:
        """Minibatches k."""
        return self.order.shape[-2]

    @property
    def picks(self) -> Tensor:
        """int64 [k, E, B]; a shared order is expanded, not copied."""
        order = self.order if self.order.dim() == 3 else self.order.expand(self.key.shape[0], *self.order.shape)
        return order.movedim(1, 0)

    @property
    def all_targets(self) -> Tensor:
        """Targets of all minibatches, int64 [k, E, B, ...]; shared ones are expanded, not copied."""
        if self.labels is not None:
            return self.labels.movedim(1, 0)
        targets = self.targets[self.order]
        if self.order.dim() == 3:
            return targets.movedim(1, 0)
        return targets.unsqueeze(1).expand(-1, self.key.shape[0], *targets.shape[1:])

    def targets_at(self, step: int) -> Tensor:
        """Targets of one minibatch, int64 [E, B, ...]; shared ones are expanded, not copied."""
        if self.labels is not None:
            return self.labels[:, step]
        targets = self.targets[self.order[..., step, :]]
        return targets if self.order.dim() == 3 else targets.expand(self.key.shape[0], *targets.shape)


def batch_at(structure: Structure, batches: Batches, step: int) -> Batch:
    """One minibatch; shared samples are expanded, not copied.

    Augmented samples are each environment's own: they depend on its key, the epoch, the step and the place in the
    minibatch. They are cropped and mirrored before the task's own augmentation gets them.
    """
    config, count = structure.config, batches.key.shape[0]
    picks = batches.order[..., step, :]
    inputs = batches.inputs[picks]
    if batches.order.dim() == 2:
        inputs = inputs.expand(count, *inputs.shape)
    if config.crop_padding or config.mirror:
        key = rng.fold_in(batches.key, int(Stream.AUGMENT), batches.epoch, step)
        inputs = crop_and_flip(key, inputs, config.crop_padding, flip=config.mirror)
    if structure.augment is not None:
        key = rng.fold_in(batches.key, int(Stream.OWN_AUGMENT), batches.epoch, step)
        inputs = structure.augment(key, inputs)
    drawn = rng.fold_in(batches.key, int(Stream.MODULES), batches.epoch, step) if structure.draws else None
    return Batch(inputs, batches.targets_at(step), drawn)
