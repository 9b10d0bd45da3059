"""Minibatches: which samples, and what augmentation does to them, against crops cut with numpy."""

import numpy as np
import pytest
import torch

import esper
from esper.leyline.config import SampleOrder
from esper.runtime.tasks import Task, digits
from esper.tezzeret.batches import batch_at
from esper.tolaria.training import draw_batches
from esper.utils import rng

PADDING = 2


def engine(order: SampleOrder, **settings: object) -> esper.Engine:
    task: Task = digits()
    return esper.make(task, 3, batch_size=5, steps_per_epoch=2, sample_order=order, **settings)


def crops(image: np.ndarray) -> list[np.ndarray]:
    """Every image that cropping and mirroring can make of one [C, H, W]."""
    padded = np.pad(image, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    height, width = image.shape[1:]
    places = [(top, left) for top in range(2 * PADDING + 1) for left in range(2 * PADDING + 1)]
    found = [padded[:, top : top + height, left : left + width] for top, left in places]
    return [*found, *(crop[:, :, ::-1] for crop in found)]


@pytest.mark.parametrize("order", SampleOrder)
def test_augmented_images_are_crops_of_the_samples(order: SampleOrder) -> None:
    made = engine(order, crop_padding=PADDING, mirror=True)
    state = made.init(0)
    batches = draw_batches(made.config, state, made.data)
    inputs, targets, key = batch_at(made.structure, batches, 1)
    assert key is None, "no module of it draws"
    rows = batches.picks[1]
    assert torch.equal(rows, batches.order[..., 1, :].expand(3, 5))
    assert torch.equal(targets, made.data.train.targets[rows])
    differing = 0
    for env in range(3):
        for place in range(5):
            source = made.data.train.inputs[rows[env, place]].numpy()
            found = inputs[env, place].numpy()
            assert any(np.array_equal(found, crop) for crop in crops(source))
            differing += not np.array_equal(found, source)
    assert differing > 8


def test_augmentation_follows_key_epoch_and_step_of_each_environment() -> None:
    made = engine(SampleOrder.SHARED, crop_padding=PADDING, mirror=True)
    state = made.init(0)
    same = torch.zeros(2, 5, dtype=torch.int64)  # the same sample everywhere: only the placement differs

    def images(state: esper.State, step: int) -> torch.Tensor:
        batches = draw_batches(made.config, state, made.data)._replace(order=same)
        return batch_at(made.structure, batches, step).inputs

    first = images(state, 0)
    assert torch.equal(first, images(state, 0))
    assert not torch.equal(first, images(state, 1))
    assert not torch.equal(first, images(state.replace(epoch=state.epoch + 1), 0))
    assert not torch.equal(first[0], first[1])
    swapped = state[torch.tensor([2, 0, 1])]
    assert torch.equal(images(swapped, 0), first[[2, 0, 1]])


def test_without_augmentation_a_shared_minibatch_is_not_copied() -> None:
    made = engine(SampleOrder.SHARED)
    state = made.init(0)
    batches = draw_batches(made.config, state, made.data)
    inputs = batch_at(made.structure, batches, 0).inputs
    assert inputs.stride(0) == 0
    assert torch.equal(inputs[1], made.data.train.inputs[batches.order[0]])


def test_the_key_is_not_that_of_another_use() -> None:
    """The sample order and the crops of one environment are drawn from different streams of its key."""
    made = engine(SampleOrder.INDEPENDENT, crop_padding=PADDING)
    key = made.init(0).key
    from esper.leyline.streams import Stream

    assert len({tuple(rng.fold_in(key, int(stream))[0].tolist()) for stream in Stream}) == len(Stream)
