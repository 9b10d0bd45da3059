"""Datasets that take turns on a device, against a list of who was used when."""

import pytest
import torch

from esper.tolaria.data import Part
from esper.tolaria.residence import Residence
from esper.tolaria.synthetic import synthetic
from esper.utils import rng

SIZES = (40, 16, 24, 56, 8)


def datasets():
    return [synthetic((1, 4, 4), num_classes=2, num_train=size, num_val=8, seed=size) for size in SIZES]


def bytes_of(dataset) -> int:
    return sum(part.inputs.nbytes for part in dataset.parts.values())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_the_least_recently_used_goes_and_bits_stay(share):
    given = datasets()
    sizes = [bytes_of(each) for each in given]
    most = int(share * sum(sizes))
    residence = Residence(most)
    lodged, recent = [residence.lodge(each) for each in given], list[int]()
    for number in (rng.uniform(rng.key(1), (200,)) * len(given)).long().tolist():
        residence.bring(lodged[number])
        recent = [*(each for each in recent if each != number), number]
        while len(recent) > 1 and sum(sizes[each] for each in recent) > most:
            recent.pop(0)
        assert residence.held == sum(sizes[each] for each in recent)
        for place, (own, first) in enumerate(zip(lodged, given, strict=True)):
            for name, part in own.parts.items():
                assert part.inputs.shape[1:] == first.parts[name].inputs.shape[1:]
                if place in recent:
                    assert torch.equal(part.inputs, first.parts[name].inputs)
                else:
                    assert part.inputs.untyped_storage().nbytes() == 0
                    with pytest.raises(IndexError):
                        Part(*part).take(torch.tensor([0]))
    assert (residence.evictions > 0) == (share < 1)


def test_what_was_given_is_left_alone():
    (given, *_), residence = datasets(), Residence(0)
    before = given.train.inputs.clone()
    lodged = residence.lodge(given)
    assert torch.equal(given.train.inputs, before) and len(lodged.train.inputs) == 0
    with pytest.raises(KeyError):
        residence.bring(given)
