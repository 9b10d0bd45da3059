"""The C++ pooling against torch's max_pool2d in float64, and against torch.maximum where entries tie or are NaN."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from esper.kernels import pooling
from esper.utils import rng

pytestmark = pytest.mark.skipif(pooling._library() is None, reason="no C++ compiler")

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(2, 13), st.integers(2, 35))


def own(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    out = pooling.max_pool2(leaf)
    assert out.grad_fn is not None and "max_pool2" in out.grad_fn.name()
    return out.detach(), torch.autograd.grad(out, leaf, grad)[0]


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_equals_torch(shape: tuple[int, ...]) -> None:
    x = rng.normal(rng.key(5), shape)
    grad = rng.normal(rng.key(6), (*shape[:3], shape[3] // 2, shape[4] // 2))
    leaf = x.double().requires_grad_()
    wanted = F.max_pool2d(leaf.flatten(0, 1), 2).unflatten(0, shape[:2])
    out, grad_x = own(x, grad)
    assert torch.equal(out.double(), wanted)
    assert torch.equal(grad_x.double(), torch.autograd.grad(wanted, leaf, grad.double())[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf")]), min_size=16, max_size=16))
def test_ties_and_nan_as_torch_maximum(values: list[float]) -> None:
    x = torch.tensor(values).reshape(1, 1, 1, 4, 4)
    leaf = x.double().requires_grad_()
    grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 1, 2, 2)
    columns = torch.maximum(leaf[..., 0::2, :], leaf[..., 1::2, :])
    wanted = torch.maximum(columns[..., 0::2], columns[..., 1::2])
    out, grad_x = own(x, grad)
    torch.testing.assert_close(out.double(), wanted.detach(), rtol=0, atol=0, equal_nan=True)
    expected = torch.autograd.grad(wanted, leaf, grad.double())[0]
    torch.testing.assert_close(grad_x.double(), expected, rtol=0, atol=0, equal_nan=True)


def test_any_layout() -> None:
    x = rng.normal(rng.key(7), (3, 5, 4, 6, 6))
    grad = rng.normal(rng.key(8), (3, 5, 4, 3, 3))
    moved = tuple(part.movedim(2, 4).contiguous().movedim(4, 2) for part in (x, grad))
    for found, wanted in zip(own(*moved), own(x, grad), strict=True):
        assert torch.equal(found, wanted)
