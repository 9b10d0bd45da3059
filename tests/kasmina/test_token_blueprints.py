"""Blueprints for token and vector sites: sizes, cost, and that every seed starts harmless, causal and able to learn."""

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from esper.kasmina.blueprint import Blueprint, preserving
from esper.kasmina.checks import BlueprintError, check_blueprint
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.layout import constant
from esper.kasmina.site import Site, conv_site, token_site, vector_site
from esper.kasmina.token_blueprints import ATTENTION, TOKEN_BLUEPRINTS
from esper.utils import rng

N, B, T = 3, 4, 5
EVERY = pytest.mark.parametrize("blueprint", TOKEN_BLUEPRINTS, ids=lambda blueprint: blueprint.name)
WIDTH = pytest.mark.parametrize("width", [1, 2, 6, 8, 32])

SIZES: dict[str, Callable[[int], int]] = {
    "norm": lambda d: 2 * d + 1,
    "lora": lambda d: 16 * d,
    "lora_large": lambda d: 64 * d,
    "attention": lambda d: 4 * d**2 + 4 * d,
    "mlp_small": lambda d: 4 * d**2 + 3 * d,
    "mlp": lambda d: 8 * d**2 + 5 * d,
}
AT_384 = {"norm": 769, "lora": 6_144, "lora_large": 24_576, "attention": 591_360, "mlp_small": 590_976}
AT_384 |= {"mlp": 1_181_568}


def draw(number: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return rng.normal(rng.fold_in(rng.key(17), number), shape, dtype)


def fresh(blueprint: Blueprint, site: Site, dtype: torch.dtype = torch.float64) -> Tensor:
    return blueprint.layout(site).init(rng.split(rng.key(3), N), dtype)


def apply(blueprint: Blueprint, site: Site, flat: Tensor, x: Tensor) -> Tensor:
    return blueprint.infer(blueprint.layout(site).views(flat), {}, x)


def test_the_registry_lists_each_name_once_in_documented_order() -> None:
    assert [blueprint.name for blueprint in TOKEN_BLUEPRINTS] == list(SIZES)


@EVERY
def test_what_a_slot_offers_follows_from_its_site(blueprint: Blueprint) -> None:
    sites = token_site(T, 8), vector_site(8), conv_site(8, 2, 2), Site("tokens", (T,), 0)
    assert [blueprint.fits(site, site) for site in sites] == [True, blueprint is not ATTENTION, False, False]
    assert not any(blueprint.fits(*pair) for pair in permutations((*sites, token_site(T, 4), vector_site(4)), 2))
    assert blueprint.fits(token_site(T, 1), token_site(T, 1)) == blueprint.name.startswith("lora")
    assert not any(conv.fits(site, site) for conv in CONV_BLUEPRINTS for site in sites if site.kind != "conv")


@EVERY
@WIDTH
def test_parameter_count_follows_the_table(blueprint: Blueprint, width: int) -> None:
    assert blueprint.layout(token_site(T, width)).size == SIZES[blueprint.name](width)
    assert blueprint.layout(token_site(256, 384)).size == AT_384[blueprint.name]


@EVERY
@WIDTH
@pytest.mark.parametrize("kind", ["token", "vector"])
def test_cost_is_what_torch_counts(blueprint: Blueprint, width: int, kind: str) -> None:
    site = token_site(T, width) if kind == "token" else vector_site(width)
    if not blueprint.fits(site, site):
        return
    flat, x = fresh(blueprint, site)[:1], draw(1, 1, B, *site.shape)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels are not counted
        apply(blueprint, site, flat, x)
    assert counter.get_total_flops() == 2 * B * blueprint.flops(site, site)
    assert blueprint.flops(site, site) > 0 or blueprint.name == "norm"


@EVERY
@WIDTH
def test_keeps_its_contract(blueprint: Blueprint, width: int) -> None:
    for site in (token_site(T, width), token_site(1, width), vector_site(width)):
        if blueprint.fits(site, site):
            check_blueprint(blueprint, site)


@EVERY
@WIDTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_as_the_identity_bit_for_bit(blueprint: Blueprint, width: int, dtype: torch.dtype) -> None:
    site = token_site(T, width)
    x = draw(1, N, B, T, width, dtype=dtype)
    assert torch.equal(apply(blueprint, site, fresh(blueprint, site, dtype), x), x)


@EVERY
def test_every_tensor_gets_a_gradient_within_two_steps(blueprint: Blueprint) -> None:
    site = token_site(T, 8)
    layout, flat = blueprint.layout(site), fresh(blueprint, site)
    x, y = draw(1, N, B, T, 8), draw(2, N, B, T, 8)
    alive = {param.name: False for param in layout.params}
    for _ in range(3):
        flat = flat.detach().requires_grad_()
        loss = (apply(blueprint, site, flat, x) - y).square().mean((1, 2, 3)).sum()
        (grad,) = torch.autograd.grad(loss, flat)
        for name, piece in layout.views(grad).items():
            alive[name] |= bool((piece.flatten(1).abs().amax(1) > 0).all())
        flat = flat - 0.1 * grad
    assert all(alive.values()), alive


@EVERY
def test_learns(blueprint: Blueprint) -> None:
    """Its loss falls, on something that every blueprint can do a little of."""
    site = token_site(T, 8)
    flat, x = fresh(blueprint, site), draw(1, N, B, T, 8)
    y = 0.5 * x.roll(1, dims=3) + 0.5 * x.cumsum(2) / 3

    def loss(params: Tensor) -> Tensor:
        return (apply(blueprint, site, params, x) - y).square().mean((1, 2, 3))

    before = loss(flat)
    for _ in range(10):
        leaf = flat.detach().requires_grad_()
        flat = leaf.detach() - 0.1 * torch.autograd.grad(loss(leaf).sum(), leaf)[0]
    assert (loss(flat) < before).all()


@EVERY
def test_no_position_sees_a_later_one_and_only_attention_sees_earlier_ones(blueprint: Blueprint) -> None:
    """Entry [t, s] of the Jacobian over positions, by autograd."""
    site = token_site(T, 8)
    flat = fresh(blueprint, site)[:1] + 0.3 * draw(3, 1, blueprint.layout(site).size)
    x = draw(1, 1, 1, T, 8)
    jacobian = torch.autograd.functional.jacobian(lambda z: apply(blueprint, site, flat, z), x)
    sees = jacobian.reshape(T, 8, T, 8).abs().amax((1, 3)) > 1e-12
    expected = torch.ones(T, T, dtype=torch.bool).tril() if blueprint is ATTENTION else torch.eye(T, dtype=torch.bool)
    assert torch.equal(sees, expected)


@EVERY
def test_networks_do_not_see_each_other(blueprint: Blueprint) -> None:
    site = token_site(T, 8)
    flat = fresh(blueprint, site) + 0.3 * draw(3, N, blueprint.layout(site).size)
    x = draw(1, N, B, T, 8)
    together = apply(blueprint, site, flat, x)
    broken = x.clone()
    broken[1] = torch.nan
    assert torch.equal(apply(blueprint, site, flat, broken)[[0, 2]], together[[0, 2]])


@pytest.mark.parametrize("name", ["attention", "mlp_small", "mlp"])
def test_the_branch_does_not_depend_on_the_scale_of_the_stream(name: str) -> None:
    """That is what its norm is for."""
    blueprint = next(b for b in TOKEN_BLUEPRINTS if b.name == name)
    site = token_site(T, 8)
    flat = fresh(blueprint, site) + 0.3 * draw(3, N, blueprint.layout(site).size)
    x = 10 * draw(1, N, B, T, 8)
    small, large = (apply(blueprint, site, flat, z) - z for z in (x, 100 * x))
    assert torch.allclose(small, large, rtol=0, atol=1e-4) and small.abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("from later positions", lambda p, x: x + p["gain"].reshape(-1, 1, 1, 1) * x.flip(2)),
        ("from the mean", lambda p, x: x + p["gain"].reshape(-1, 1, 1, 1) * x.mean(2, keepdim=True)),
    ],
)
def test_the_check_finds_what_a_branch_that_starts_at_zero_hides(name: str, broken: Callable) -> None:
    leaky = preserving(
        name, frozenset({"token"}), lambda site: (constant("gain", (1,), 0.0),), broken, lambda site: 0, 0.0
    )
    with pytest.raises(BlueprintError, match=r"positions that change by .* with later ones"):
        check_blueprint(leaky, token_site(T, 8))
