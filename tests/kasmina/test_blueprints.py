"""Convolutional blueprints: their sizes, and that every seed starts harmless and can learn with all its parts."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS, norm_groups
from esper.kasmina.layout import Layout, constant
from esper.kasmina.site import conv_site, token_site, vector_site
from esper.utils import rng

CHANNELS = (1, 2, 4, 8, 16, 32, 64)
NETWORKS, BATCH, SIDE = 3, 4, 4
EVERY = pytest.mark.parametrize("blueprint", CONV_BLUEPRINTS, ids=lambda blueprint: blueprint.name)
WIDTH = pytest.mark.parametrize("channels", CHANNELS)


def narrow(c: int) -> int:
    return max(8, c // 4)


SIZES: dict[str, Callable[[int], int]] = {
    "norm": lambda c: 2 * c + 1,
    "attention": lambda c: 2 * c * max(1, c // 4),
    "depthwise": lambda c: c**2 + 11 * c,
    "conv_small": lambda c: c**2 + 2 * c,
    "conv_light": lambda c: 9 * c**2 + 2 * c,
    "conv_heavy": lambda c: 18 * c**2 + 4 * c,
    "bottleneck": lambda c: 2 * c * narrow(c) + 9 * narrow(c) ** 2 + 4 * narrow(c),
}
FLOPS: dict[str, Callable[[int, int], int]] = {
    "norm": lambda c, positions: 0,
    "attention": lambda c, positions: 2 * c * max(1, c // 4),
    "depthwise": lambda c, positions: positions * (9 * c + c**2),
    "conv_small": lambda c, positions: positions * c**2,
    "conv_light": lambda c, positions: positions * 9 * c**2,
    "conv_heavy": lambda c, positions: positions * 18 * c**2,
    "bottleneck": lambda c, positions: positions * (2 * c * narrow(c) + 9 * narrow(c) ** 2),
}


def draw(number: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return rng.normal(rng.fold_in(rng.key(7), number), shape, dtype)


def keys(number: int = NETWORKS) -> Tensor:
    return rng.split(rng.key(3), number)


def seed(blueprint: Blueprint, channels: int, dtype: torch.dtype = torch.float64, side: int = SIDE):
    """Fresh rows of a blueprint with its layout."""
    layout = blueprint.layout(conv_site(channels, side, side))
    return layout, layout.init(keys(), dtype)


def sgd_step(blueprint: Blueprint, layout: Layout, flat: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, list[bool]]:
    """One step of regression; per named tensor, whether every network's gradient was non-zero."""
    flat = flat.detach().requires_grad_()
    loss = (blueprint.infer(layout.views(flat), {}, x) - y).square().mean((1, 2, 3, 4)).sum()
    (grad,) = torch.autograd.grad(loss, flat)
    moved = [bool((piece.flatten(1).abs().amax(1) > 0).all()) for piece in layout.views(grad).values()]
    return (flat - 0.1 * grad).detach(), moved


def test_the_registry_lists_each_name_once_in_documented_order() -> None:
    assert [blueprint.name for blueprint in CONV_BLUEPRINTS] == list(SIZES)
    sites = conv_site(8, 5, 3), conv_site(8, 3, 5), token_site(5, 8), vector_site(8)
    for blueprint, site, other in product(CONV_BLUEPRINTS, sites, sites):
        assert blueprint.fits(site, other) == (site == other and site.kind == "conv")


@EVERY
@WIDTH
def test_parameter_count_and_cost_follow_the_table(blueprint: Blueprint, channels: int) -> None:
    site = conv_site(channels, 5, 3)
    assert blueprint.layout(site).size == SIZES[blueprint.name](channels)
    assert blueprint.flops(site, site) == FLOPS[blueprint.name](channels, 15)


@EVERY
@WIDTH
def test_layout_tiles_its_row_without_gaps(blueprint: Blueprint, channels: int) -> None:
    layout = blueprint.layout(conv_site(channels, SIDE, SIDE))
    numbered = torch.arange(2 * layout.size).reshape(2, -1)
    views = layout.views(numbered)
    assert list(views) == [param.name for param in layout.params]
    assert all(views[param.name].shape == (2, *param.shape) for param in layout.params)
    assert torch.equal(torch.cat([view.flatten(1) for view in views.values()], dim=1), numbered)


@EVERY
@WIDTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_shape_and_dtype_and_starts_within_its_identity_bound(
    blueprint: Blueprint, channels: int, dtype: torch.dtype
) -> None:
    layout, flat = seed(blueprint, channels, dtype, side=7)
    assert flat.shape == (NETWORKS, layout.size) and flat.dtype == dtype
    x = draw(1, NETWORKS, BATCH, channels, 7, 7, dtype=dtype)
    y = blueprint.infer(layout.views(flat), {}, x)
    assert y.shape == x.shape and y.dtype == dtype
    assert y.isfinite().all()
    if blueprint.identity_bound == 0:
        assert torch.equal(y, x)
    else:
        assert 0 < (y - x).abs().max() <= blueprint.identity_bound * x.square().mean().sqrt()


@EVERY
@WIDTH
def test_every_tensor_gets_a_gradient_within_two_steps(blueprint: Blueprint, channels: int) -> None:
    layout, flat = seed(blueprint, channels)
    x, y = (draw(n, NETWORKS, 8, channels, SIDE, SIDE) for n in (1, 2))
    alive = [False] * len(layout.params)
    for _ in range(3):  # the gradient at the start, and after each of two steps
        flat, moved = sgd_step(blueprint, layout, flat, x, y)
        alive = [a or b for a, b in zip(alive, moved, strict=True)]
    assert all(alive), [param.name for param, ok in zip(layout.params, alive, strict=True) if not ok]


@EVERY
def test_learns(blueprint: Blueprint) -> None:
    """Its loss falls: the gradients point where they should."""
    layout, flat = seed(blueprint, 4)
    x = draw(1, NETWORKS, 8, 4, SIDE, SIDE)
    y = 0.5 * x.roll(1, dims=2) + 0.25 * x.relu()

    def loss(params: Tensor) -> Tensor:
        return (blueprint.infer(layout.views(params), {}, x) - y).square().mean((1, 2, 3, 4))

    before = loss(flat)
    for _ in range(10):
        flat, _ = sgd_step(blueprint, layout, flat, x, y)
    assert (loss(flat) < before).all()


@EVERY
@WIDTH
def test_networks_do_not_see_each_other(blueprint: Blueprint, channels: int) -> None:
    layout, flat = seed(blueprint, channels)
    flat = flat + 0.1 * draw(5, *flat.shape)  # away from the identity
    x = draw(1, NETWORKS, BATCH, channels, SIDE, SIDE)
    together = blueprint.infer(layout.views(flat), {}, x)
    for row in range(NETWORKS):
        alone = blueprint.infer(layout.views(flat[row : row + 1]), {}, x[row : row + 1])
        assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-12)
    broken = x.clone()
    broken[1] = torch.nan
    kept = blueprint.infer(layout.views(flat), {}, broken)[[0, 2]]
    assert torch.equal(kept, together[[0, 2]])


@EVERY
def test_samples_do_not_see_each_other(blueprint: Blueprint) -> None:
    layout, flat = seed(blueprint, 8)
    flat = flat + 0.1 * draw(5, *flat.shape)
    x = draw(1, NETWORKS, BATCH, 8, SIDE, SIDE)
    together = blueprint.infer(layout.views(flat), {}, x)
    alone = blueprint.infer(layout.views(flat), {}, x[:, 2:3])
    assert torch.allclose(alone[:, 0], together[:, 2], rtol=0, atol=1e-12)


@EVERY
def test_a_row_is_drawn_from_its_own_key(blueprint: Blueprint) -> None:
    layout, flat = seed(blueprint, 8, torch.float32)
    assert torch.equal(layout.init(keys()[1:2], torch.float32)[0], flat[1])
    if any(param.init != "constant" for param in layout.params):
        assert not torch.equal(flat[0], flat[1])
    for param, view in zip(layout.params, layout.views(flat).values(), strict=True):
        if param.init == "constant":
            assert (view == torch.tensor(param.scale)).all()
        else:
            assert view.abs().max() <= param.scale


def test_initial_weights_are_uniform_within_the_fan_in_bound() -> None:
    conv_light = next(b for b in CONV_BLUEPRINTS if b.name == "conv_light")
    layout, flat = seed(conv_light, 32)
    weight, bound = layout.views(flat)["conv"], (32 * 9) ** -0.5
    assert weight.abs().max() <= bound
    assert abs(weight.mean()) < 0.01 * bound
    assert weight.var() / (bound**2 / 3) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (6, 2), (8, 8), (16, 1), (24, 1), (32, 2), (48, 2), (64, 4), (512, 32)]
)
def test_groups_of_the_norms(channels: int, groups: int) -> None:
    assert norm_groups(channels) == groups


def test_a_layout_may_be_empty_or_hold_scalars() -> None:
    assert Layout(()).size == 0
    assert Layout(()).init(keys(), torch.float32).shape == (NETWORKS, 0)
    scalar = Layout((constant("one", (), 2.0),))
    assert scalar.size == 1
    assert scalar.views(scalar.init(keys(), torch.float32))["one"].tolist() == [[2.0]] * NETWORKS


@pytest.mark.parametrize("channels", [3, 12, 48, 96])
@pytest.mark.parametrize("blueprint", CONV_BLUEPRINTS, ids=lambda b: b.name)
def test_fits_channels_that_are_no_power_of_two(blueprint: Blueprint, channels: int) -> None:
    layout, flat = seed(blueprint, channels)
    x = draw(1, NETWORKS, BATCH, channels, SIDE, SIDE)
    assert blueprint.infer(layout.views(flat), {}, x).shape == x.shape


@pytest.mark.parametrize(
    ("name", "channels"),
    [("attention", 8), ("conv_light", 8), ("conv_light", 16), ("bottleneck", 32), ("bottleneck", 64)],
)
def test_a_seed_on_maps_of_one_position_can_change(name: str, channels: int) -> None:
    blueprint = next(b for b in CONV_BLUEPRINTS if b.name == name)
    layout, flat = seed(blueprint, channels, side=1)
    x, y = (draw(n, NETWORKS, 8, channels, 1, 1) for n in (1, 2))
    first = blueprint.infer(layout.views(flat), {}, x)
    for _ in range(3):
        flat, _ = sgd_step(blueprint, layout, flat, x, y)
    assert not torch.equal(blueprint.infer(layout.views(flat), {}, x), first)
