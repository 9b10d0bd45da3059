"""What leaves a device arrives as it was."""

import torch

from esper.utils.download import Download


def test_tensors_of_any_shape_and_type_arrive():
    sent = {
        "scalar": torch.tensor(0.1),
        "none": torch.zeros(0, 3),
        "whole": torch.arange(6).reshape(2, 3),
        "flags": torch.tensor([True, False]),
        "double": torch.tensor([1 / 3, float("inf"), -0.0], dtype=torch.float64),
    }
    found = Download(sent)
    assert found.is_here
    read = found.read()
    assert list(read) == list(sent)
    for name, tensor in sent.items():
        assert read[name].dtype == torch.float64 and torch.equal(read[name], tensor.double())
    assert torch.signbit(read["double"][2]) and found.read().keys() == read.keys()


def test_nothing_is_nothing():
    assert Download({}).read() == {}


def test_what_is_written_afterwards_does_not_arrive():
    held = torch.ones(3)
    found = Download({"held": held})
    held.zero_()
    assert found.read()["held"].tolist() == [1, 1, 1]
