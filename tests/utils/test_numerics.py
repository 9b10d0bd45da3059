"""Roots and shares: the plain form's value and derivatives where it is smooth, zeros where it would be NaN. Reductions:
a row's bits are its own."""

import math

import pytest
import torch
from torch.func import grad, jvp, vmap

from esper.utils import rng
from esper.utils.numerics import by_row, root, share

F64 = torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_root(dtype):
    least = torch.finfo(dtype).tiny
    x = torch.tensor([least, 1e-20, 0.3, 1.0, 7.0, 1e30, math.inf, math.nan, -1.0], dtype=dtype)
    assert torch.equal(root(x).nan_to_num(-1), x.sqrt().nan_to_num(-1))
    assert root(torch.tensor([0.0, -0.0, least / 2], dtype=dtype)).tolist() == [0, 0, 0]
    noughts = torch.tensor([0.0, least / 2], dtype=dtype)
    for order in (grad(root), grad(grad(root)), grad(grad(grad(root)))):
        assert vmap(order)(noughts).tolist() == [0, 0]
    assert jvp(root, (noughts,), (torch.ones_like(noughts),))[1].tolist() == [0, 0]


def test_derivatives_where_smooth():
    x = torch.tensor([0.3, 1.0, 7.0], dtype=F64)
    torch.testing.assert_close(vmap(grad(root))(x), 0.5 * x**-0.5)
    torch.testing.assert_close(vmap(grad(grad(root)))(x), -0.25 * x**-1.5)
    part, whole = torch.tensor([0.0, 1.0, 2.0], dtype=F64), torch.tensor([1.0, 3.0, 5.0], dtype=F64)
    found = vmap(grad(share, argnums=(0, 1)))(part, whole)
    torch.testing.assert_close(found, (1 / whole, -part / whole**2))


def test_share():
    part = torch.tensor([0.0, 1.0, 3.0, 3.0, math.inf, math.inf, 0.0, math.nan, 1.0], dtype=F64)
    whole = torch.tensor([2.0, 4.0, 3.0, 0.0, 1.0, math.inf, 0.0, 1.0, math.nan], dtype=F64)
    assert share(part, whole)[:7].tolist() == [0.0, 0.25, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert bool(share(part, whole)[7:].isnan().all())
    where_full = part[2:7], whole[2:7]
    slopes = grad(share, argnums=(0, 1))
    for derivative in (slopes, grad(lambda part, whole: sum(slopes(part, whole)), argnums=(0, 1))):
        assert torch.stack(vmap(derivative)(*where_full)).eq(0).all()


def test_a_rows_mean_does_not_depend_on_how_many_rows_there_are():
    """Also where the row is long enough to be split among threads, were it alone."""
    x = rng.uniform(rng.key(1), (3, 40_000), -1.0, 1.0)
    torch.set_num_threads(2)
    try:
        together = by_row(lambda rows: rows.mean(1), x)
        alone = [by_row(lambda rows: rows.mean(1), x[row : row + 1]) for row in range(3)]
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.cat(alone), together)
    torch.testing.assert_close(together.double(), x.double().mean(1), rtol=1e-4, atol=1e-7)
