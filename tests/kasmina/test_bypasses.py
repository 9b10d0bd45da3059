"""Blueprints for bypasses against plain ``torch.nn`` modules: outputs, gradients, running statistics, sizes and costs.

The modules are written from the tables of ``bypass_blueprints``, ``vector_bypasses`` and ``token_bypasses``; parameters
are registered in the order in which the layouts list them.
"""

from collections.abc import Callable
from itertools import pairwise, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.flop_counter import FlopCounterMode

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.bypass_blueprints import (
    PROBE,
    conv_bypass,
    linear_probe,
    map_bypass,
)
from esper.kasmina.checks import check_blueprint
from esper.kasmina.layout import Layout, Params
from esper.kasmina.site import Site, conv_site, token_site, vector_site
from esper.kasmina.token_bypasses import TOKEN_PROBE, transformer_bypass
from esper.kasmina.vector_bypasses import mlp_bypass
from esper.utils import rng

N, B, T, V = 3, 4, 5, 6
CLASSES = Site("logits", (V,), 0)
TOKENS, EVERY_NEXT = Site("tokens", (T,), 0), Site("logits", (T, V), 1, 0)


class Mean(nn.Module):
    """Over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def conv_body(into: int, channels: int, pools: tuple[int, ...], norm: str = "batch") -> list[nn.Module]:
    """Blocks of convolution, norm, relu, and as many poolings as listed."""
    body: list[nn.Module] = []
    for count in pools:
        groups = {4: 1, 8: 1, 16: 2}[channels] if norm == "group" else 0
        layer = nn.GroupNorm(groups, channels) if groups else nn.BatchNorm2d(channels)
        body += [nn.Conv2d(into, channels, 3, padding=1, bias=False), layer, nn.ReLU(), *[nn.MaxPool2d(2)] * count]
        into, channels = channels, 2 * channels
    return body


def plain_conv(into: int, channels: int, pools: tuple[int, ...], norm: str = "batch") -> nn.Module:
    width = channels * 2 ** (len(pools) - 1)
    return nn.Sequential(*conv_body(into, channels, pools, norm), Mean(), nn.Linear(width, V))


def plain_map(into: int, channels: int, pools: tuple[int, ...], out: int) -> nn.Module:
    width = channels * 2 ** (len(pools) - 1)
    return nn.Sequential(*conv_body(into, channels, pools), nn.Conv2d(width, out, 1, bias=False))


def plain_mlp(*sizes: int) -> nn.Module:
    layers = [part for into, out in pairwise(sizes) for part in (nn.Linear(into, out), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], V))


class PlainBlock(nn.Module):
    """A pre-norm block with torch's own attention, each position masked from those after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y, hidden = self.norm1(x), torch.ones(T, T, dtype=torch.bool).triu(1)
        x = x + self.attention(y, y, y, attn_mask=hidden, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class PlainEmbedding(nn.Module):
    """Token plus position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(V, width), nn.Embedding(T, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token(tokens) + self.position(torch.arange(T))


def plain_transformer(width: int, layers: int, into: int = 0, out: int = V) -> nn.Module:
    read = [nn.LayerNorm(into, elementwise_affine=False), nn.Linear(into, width)] if into else [PlainEmbedding(width)]
    return nn.Sequential(*read, *(PlainBlock(width) for _ in range(layers)), nn.LayerNorm(width), nn.Linear(width, out))


class Table(nn.Module):
    """A row of logits for every token: a linear map of one-hot vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(V, V)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(nn.functional.one_hot(tokens, V).to(self.linear.weight.dtype))


class Case(NamedTuple):
    """A blueprint between two sites, and the same as a module."""

    blueprint: Blueprint
    source: Site
    target: Site
    module: Callable[[], nn.Module]

    def __str__(self) -> str:
        return f"{self.blueprint.name}-{'x'.join(map(str, self.source.shape))}-{self.target.kind}"


def conv_cases() -> list[Case]:
    """Square and odd maps, one position and one row, one channel and several, one and two blocks, both norms."""
    both = [(1, 8, 8, (1, 1)), (3, 7, 5, (1, 1)), (1, 3, 2, (1, 0)), (2, 1, 1, (0, 0)), (1, 1, 6, (0, 0))]
    found = []
    for (into, height, width, pools), norm in product(both, ("batch", "group")):
        site = conv_site(into, height, width)
        for blocks in (1, 2):
            seed, shape = conv_bypass(4, blocks, norm), (into, 4, pools[:blocks], norm)
            found.append(Case(seed, site, CLASSES, lambda shape=shape: plain_conv(*shape)))
    found.append(Case(conv_bypass(8, 2), conv_site(1, 9, 8), CLASSES, lambda: plain_conv(1, 8, (1, 1))))
    found.append(Case(conv_bypass(4, 3), conv_site(1, 9, 8), vector_site(V), lambda: plain_conv(1, 4, (1, 1, 1))))
    return found


def map_cases() -> list[Case]:
    def case(blocks: int, pools: int, source: Site, target: Site, each: tuple[int, ...]) -> Case:
        plain = (source.channels, 4, each, target.channels)
        return Case(map_bypass(4, blocks, pools), source, target, lambda: plain_map(*plain))

    return [
        case(1, 0, conv_site(3, 5, 7), conv_site(3, 5, 7), (0,)),
        case(1, 1, conv_site(1, 7, 5), conv_site(2, 3, 2), (1,)),
        case(1, 2, conv_site(1, 8, 9), conv_site(3, 2, 2), (2,)),
        case(2, 1, conv_site(2, 6, 6), conv_site(3, 3, 3), (1, 0)),
        case(2, 3, conv_site(2, 8, 8), conv_site(1, 1, 1), (1, 2)),
    ]


CASES = [
    *conv_cases(),
    *map_cases(),
    Case(PROBE, conv_site(2, 7, 5), CLASSES, lambda: plain_mlp(70)),
    Case(PROBE, vector_site(7), CLASSES, lambda: plain_mlp(7)),
    Case(linear_probe(pooled=True), conv_site(3, 7, 5), CLASSES, lambda: nn.Sequential(Mean(), nn.Linear(3, V))),
    Case(mlp_bypass(8), vector_site(7), CLASSES, lambda: plain_mlp(7, 8)),
    Case(mlp_bypass(5, 2), conv_site(1, 3, 5), CLASSES, lambda: plain_mlp(15, 5, 5)),
    Case(mlp_bypass(8), vector_site(V), vector_site(V), lambda: plain_mlp(V, 8)),
    Case(transformer_bypass(8, 1), TOKENS, EVERY_NEXT, lambda: plain_transformer(8, 1)),
    Case(transformer_bypass(16, 2), TOKENS, EVERY_NEXT, lambda: plain_transformer(16, 2)),
    Case(transformer_bypass(8, 2), token_site(T, 12), EVERY_NEXT, lambda: plain_transformer(8, 2, 12)),
    Case(transformer_bypass(4, 1), token_site(T, 8), token_site(T, 8), lambda: plain_transformer(4, 1, 8, 8)),
    Case(TOKEN_PROBE, TOKENS, EVERY_NEXT, Table),
    Case(TOKEN_PROBE, token_site(T, 8), EVERY_NEXT, lambda: nn.Linear(8, V)),
]
EVERY = pytest.mark.parametrize("case", CASES, ids=str)


def draw(number: int, *shape: int) -> Tensor:
    return rng.normal(rng.fold_in(rng.key(19), number), shape, torch.float64)


def features(site: Site, number: int) -> Tensor:
    shape = (N, B, *site.shape)
    if site.kind == "tokens":
        return (rng.uniform(rng.fold_in(rng.key(23), number), shape) * V).long()
    return draw(number, *shape)


def layouts(case: Case) -> tuple[Layout, Layout]:
    """Of parameters and buffers."""
    sites = case.source, case.target
    return case.blueprint.layout(*sites), case.blueprint.buffer_layout(*sites)


def rows(case: Case) -> tuple[Tensor, Tensor]:
    """Parameters and buffers [N, ...] of trained seeds: away from where they start."""
    params, held = layouts(case)
    keys = rng.split(rng.key(3), N)
    fresh = params.init(keys, torch.float64)
    return fresh + 0.2 * draw(1, *fresh.shape), held.init(keys, torch.float64) + 0.3 * draw(2, N, held.size).abs()


def statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances, in order."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    return [row for norm in norms for row in (norm.running_mean, norm.running_var)]


def loaded(case: Case, params: Tensor, held: Tensor) -> nn.Module:
    """The module of one network."""
    with torch.random.fork_rng(devices=[]):  # initial values, all overwritten
        module = case.module().double()
    assert sum(part.numel() for part in module.parameters()) == params.numel()
    vector_to_parameters(params.clone(), module.parameters())
    own = statistics(module)
    for mine, given in zip(own, held.split([part.numel() for part in own]), strict=True):
        mine.copy_(given)
    return module


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@EVERY
def test_keeps_its_contract(case: Case) -> None:
    check_blueprint(case.blueprint, case.source, case.target)


@EVERY
def test_starts_at_zero_bit_for_bit(case: Case) -> None:
    layout, held = case.blueprint.layout(case.source, case.target), case.blueprint.buffers(case.source, case.target)
    for dtype in (torch.float32, torch.float64):
        named = layout.views(layout.init(rng.split(rng.key(3), N), dtype))
        buffers = {row.name: torch.full((N, *row.shape), row.scale, dtype=dtype) for row in held}
        x = features(case.source, 1)
        x = x.to(dtype) if x.is_floating_point() else x
        for y in (case.blueprint.train(named, buffers, x, None)[0], case.blueprint.infer(named, buffers, x)):
            assert y.dtype == dtype and y.shape == (N, B, *case.target.shape) and not y.any()
    assert case.blueprint.identity_bound == 0


@EVERY
def test_training_and_inference_are_those_of_a_plain_module(case: Case) -> None:
    """Three minibatches: outputs, gradients of parameters and input, statistics; then inference."""
    params, held = rows(case)
    layout, kept = layouts(case)
    modules = [loaded(case, *row) for row in zip(params, held, strict=True)]
    floats, buffers = case.source.kind != "tokens", kept.views(held)
    for number in range(3):
        x, weight = features(case.source, 10 + number), draw(20 + number, N, B, *case.target.shape)

        def run(flat: Tensor, x: Tensor, buffers: Params = buffers, weight: Tensor = weight) -> tuple[Tensor, Any]:
            y, new = case.blueprint.train(layout.views(flat), buffers, x, None)
            return (y * weight).sum(), (y, new)

        argnums = (0, 1) if floats else (0,)
        grads, (y, buffers) = torch.func.grad(run, argnums, has_aux=True)(params, x)
        for row, module in enumerate(modules):
            own = x[row].clone().requires_grad_(floats)
            wanted = module(own)
            leaves = [*module.parameters(), *([own] if floats else [])]
            found = torch.autograd.grad((wanted * weight[row]).sum(), leaves)
            count = len(leaves) - floats
            close(y[row], wanted.detach())
            close(grads[0][row], parameters_to_vector(found[:count]))
            if floats:
                close(grads[1][row], found[-1])
    x = features(case.source, 30)
    y = case.blueprint.infer(layout.views(params), buffers, x)
    names = [held.name for held in kept.params]
    for row, module in enumerate(modules):
        for name, wanted in zip(names, statistics(module), strict=True):
            close(buffers[name][row], wanted)
        with torch.no_grad():
            close(y[row], module.eval()(x[row]))


@EVERY
def test_size_and_cost_are_the_modules(case: Case) -> None:
    module = loaded(case, *(table[0] for table in rows(case)))
    x = features(case.source, 1)[0]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels are not counted
        module(x)
    cost = 0 if case.module is Table else counter.get_total_flops()  # a look-up, where the module multiplies
    assert cost == 2 * B * case.blueprint.flops(case.source, case.target)
