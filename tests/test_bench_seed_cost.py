"""bench.seed_cost: bytes counted by hand."""

import pytest
import torch


@pytest.mark.parametrize(
    ("run", "tensors"),
    [
        (lambda x: x + 1, 2),
        (lambda x: x * x, 3),
        (lambda x: x.add_(x), 3),
        (lambda x: x.reshape(5, 20)[1:].T, 0),
        (lambda x: torch.cat((x, x)), 4),
        (lambda x: torch.relu(x).sum(), 3.01),
    ],
    ids=["number", "product", "in place", "views", "copies", "two operations"],
)
def test_bytes_of_what_is_read_and_written(bench_module, run, tensors):
    x = torch.ones(100)
    assert bench_module("seed_cost").bytes_moved(lambda: run(x)) == round(400 * tensors)


def test_a_gradient_moves_bytes_too(bench_module):
    def run():
        torch.func.grad(lambda x: (x * x).sum())(torch.ones(100))

    assert bench_module("seed_cost").bytes_moved(run) > 400 * (3 + 1)
