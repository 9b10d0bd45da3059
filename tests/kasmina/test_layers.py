"""The layers of many networks against torch's own, network by network, in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina import layers
from esper.utils import rng

N, B = 3, 5
TIGHT = {"rtol": 0, "atol": 1e-12}


def draw(number: int, *shape: int) -> Tensor:
    return rng.normal(rng.fold_in(rng.key(11), number), shape, torch.float64)


def rows(function, *stacks: Tensor) -> Tensor:
    return torch.stack([function(*row) for row in zip(*stacks, strict=True)])


CONVOLUTIONS = [  # channels, out, per group, kernel, height, width
    (4, 6, 4, 3, 7, 5),
    (4, 6, 4, 1, 4, 4),
    (2, 3, 2, 5, 6, 6),
    (4, 4, 1, 3, 5, 6),  # depthwise
    (4, 8, 1, 3, 5, 6),  # depthwise, two outputs per channel
    (6, 4, 3, 3, 4, 4),  # two groups
    (1, 1, 1, 3, 1, 1),
]


def convolution(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    channels, out, per_group, k, height, width = shape
    return draw(1, N, B, channels, height, width), draw(2, N, out, per_group, k, k), channels // per_group


@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_conv2d(shape: tuple[int, ...]) -> None:
    x, weight, groups = convolution(shape)
    expected = rows(lambda x, w: F.conv2d(x, w, padding=w.shape[-1] // 2, groups=groups), x, weight)
    got = layers.conv2d(x, weight)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, **TIGHT)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_gradients_of_conv2d(shape: tuple[int, ...], wanted: tuple[bool, bool]) -> None:
    x, weight, groups = convolution(shape)
    x.requires_grad_(wanted[0])
    weight.requires_grad_(wanted[1])
    leaves = [leaf for leaf, want in zip((x, weight), wanted, strict=True) if want]
    expected = rows(lambda x, w: F.conv2d(x, w, padding=w.shape[-1] // 2, groups=groups), x, weight)
    got, cotangent = layers.conv2d(x, weight), draw(3, *expected.shape)
    for ours, theirs in zip(
        torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, **TIGHT)


@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 3, 4), (2, 2, 1, 3, 3, 3), (2, 1, 2, 1, 2, 2)])
def test_conv2d_passes_gradcheck(shape: tuple[int, ...]) -> None:
    x, weight, _ = convolution(shape)
    inputs = x[:2, :2].clone().requires_grad_(), weight[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(layers.conv2d, inputs)


def test_conv2d_of_any_memory_layout() -> None:
    x, weight, _ = convolution(CONVOLUTIONS[0])
    batch_major = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not batch_major.is_contiguous()
    assert torch.equal(layers.conv2d(batch_major, weight), layers.conv2d(x, weight))


def test_chained_convolutions() -> None:
    x, first = draw(1, N, B, 3, 5, 5).requires_grad_(), draw(2, N, 4, 3, 3, 3).requires_grad_()
    second = draw(3, N, 2, 4, 3, 3).requires_grad_()
    got = layers.conv2d(torch.relu(layers.conv2d(x, first)), second)
    chain = lambda x, v, w: F.conv2d(torch.relu(F.conv2d(x, v, padding=1)), w, padding=1)  # noqa: E731
    expected = rows(chain, x, first, second)
    assert torch.allclose(got, expected, **TIGHT)
    leaves, cotangent = (x, first, second), draw(4, *expected.shape)
    for ours, theirs in zip(
        torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        assert torch.allclose(ours, theirs, **TIGHT)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (4, 1), (4, 4), (6, 2), (32, 2)])
@pytest.mark.parametrize("spatial", [(5, 3), (1, 1), (7,), ()])
def test_group_norm(channels: int, groups: int, spatial: tuple[int, ...]) -> None:
    x, weight, bias = draw(1, N, B, channels, *spatial), draw(2, N, channels), draw(3, N, channels)
    if channels // groups * torch.Size(spatial).numel() == 1:
        expected = bias.reshape(N, 1, channels, *(1,) * len(spatial)).expand_as(x)  # torch refuses a single value
    else:
        expected = rows(lambda x, w, b: F.group_norm(x, groups, w, b), x, weight, bias)
    assert torch.allclose(layers.group_norm(x, weight, bias, groups), expected, **TIGHT)


@pytest.mark.parametrize(("batch", "side"), [(5, 4), (2, 1), (1, 3)])
def test_batch_norm_and_its_statistics(batch: int, side: int) -> None:
    x, weight, bias = 3 * draw(1, N, batch, 4, side, side) + 2, draw(2, N, 4), draw(3, N, 4)
    got, mean, variance = layers.batch_norm(x, weight, bias)
    running_mean, running_variance = torch.zeros(N, 4).double(), torch.zeros(N, 4).double()
    expected = rows(
        lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b, training=True, momentum=1.0),
        *(x, running_mean, running_variance, weight, bias),
    )
    assert torch.allclose(got, expected, **TIGHT)
    assert torch.allclose(mean, running_mean, **TIGHT)  # at momentum 1 torch stores the batch's own
    assert torch.allclose(variance, running_variance, **TIGHT)


def test_batch_norm_of_a_single_value_is_finite() -> None:
    got, mean, variance = layers.batch_norm(draw(1, N, 1, 2, 1, 1), draw(2, N, 2), draw(3, N, 2))
    assert torch.allclose(got.flatten(1), draw(3, N, 2), **TIGHT)
    assert mean.isfinite().all() and (variance == 0).all()


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_gradients_of_the_norms(norm: str) -> None:
    leaves = [draw(1, N, B, 4, 3, 2), draw(2, N, 4), draw(3, N, 4)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    if norm == "group":
        got = layers.group_norm(*leaves, groups=2)
        expected = rows(lambda x, w, b: F.group_norm(x, 2, w, b), *leaves)
    else:
        got = layers.batch_norm(*leaves)[0]
        expected = rows(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), *leaves)
    cotangent = draw(4, *got.shape)
    for ours, theirs in zip(
        torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent), strict=True
    ):
        assert torch.allclose(ours, theirs, **TIGHT)


@pytest.mark.parametrize("between", [(), (2,), (2, 3)])
def test_linear(between: tuple[int, ...]) -> None:
    x, weight, bias = draw(1, N, B, *between, 4), draw(2, N, 6, 4), draw(3, N, 6)
    assert torch.allclose(layers.linear(x, weight, bias), rows(F.linear, x, weight, bias), **TIGHT)
    assert torch.allclose(layers.linear(x, weight), rows(F.linear, x, weight), **TIGHT)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (4, 7), (5, 4), (2, 2), (3, 3), (2, 3)])
def test_max_pool2_on_odd_and_even_sizes(height: int, width: int) -> None:
    x = draw(1, N, B, 2, height, width).requires_grad_()
    got, expected = layers.max_pool2(x), rows(lambda x: F.max_pool2d(x, 2), x)
    assert torch.equal(got, expected)
    cotangent = draw(2, *got.shape)
    ours, theirs = (torch.autograd.grad(out, x, cotangent)[0] for out in (got, expected))
    assert torch.equal(ours, theirs)


def test_max_pool2_shares_the_gradient_of_a_tie() -> None:
    x = torch.zeros(1, 1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(layers.max_pool2(x).sum(), x)
    assert grad.flatten().tolist() == [0.25] * 4


def test_per_channel_broadcasts_along_the_channels() -> None:
    vector = draw(1, N, 4)
    for spatial in ((), (2,), (2, 3)):
        features = torch.zeros(N, B, 4, *spatial, dtype=torch.float64)
        expected = vector.reshape(N, 1, 4, *(1,) * len(spatial)).expand_as(features)
        assert torch.equal(layers.per_channel(vector, features) + features, expected)
