"""Blueprints for token sites: causal, shape-preserving modules that start at the identity.

All but ``attention`` act on each position by itself and fit vector sites as well.

Compositions are esper-lite's with N added, for D channels:

| name        | composition                                   | parameters   |
|-------------|-----------------------------------------------|--------------|
| norm        | x + tanh(scale) * (LN(x) - x)                 | 2D + 1       |
| lora        | x + up(down(x)), rank 8, no bias              | 16D          |
| lora_large  | x + up(down(x)), rank 32, no bias             | 64D          |
| attention   | x + project(causal attention(qkv(N(x))))      | 4D^2 + 4D    |
| mlp_small   | x + contract(GELU(expand(N(x)))), 2D hidden   | 4D^2 + 3D    |
| mlp         | x + contract(GELU(expand(N(x)))), 4D hidden   | 8D^2 + 5D    |

LN is a layer norm, N one without weights. What ends a branch starts at zero, and so does the scale of ``norm``.
``attention`` has the first of 4, 2, 1 heads that divides D. N is there because a slot sees the residual stream, whose
scale is the host's affair (0.1 behind the embedding); unnormalised, attention over it is nearly uniform and an MLP
nearly linear. A norm over one channel is constant, so that all but ``lora`` need two.
"""

from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina.blueprint import Blueprint, preserving
from esper.kasmina.layers import causal_attention, layer_norm, linear, standardise
from esper.kasmina.layout import Param, Params, constant, fan_in_uniform, zero_affine
from esper.kasmina.site import Site
from esper.kasmina.transformer import affine, apply_affine, heads_of, norm

POSITIONWISE = frozenset({"token", "vector"})


def _can_norm(site: Site) -> bool:
    return site.channels > 1


def _norm_params(site: Site) -> tuple[Param, ...]:
    return *norm("norm", site.channels), constant("scale", (1,), 0.0)


def _norm_apply(params: Params, x: Tensor) -> Tensor:
    normed = layer_norm(x, params["norm.weight"], params["norm.bias"])
    scale = params["scale"].reshape(-1, *(1,) * (x.dim() - 1))
    return x + torch.tanh(scale) * (normed - x)


def _lora_params(rank: int, site: Site) -> tuple[Param, ...]:
    return fan_in_uniform("down", (rank, site.channels), site.channels), constant("up", (site.channels, rank), 0.0)


def _lora_apply(params: Params, x: Tensor) -> Tensor:
    return x + linear(linear(x, params["down"]), params["up"])


def _attention_params(site: Site) -> tuple[Param, ...]:
    width = site.channels
    return *affine("qkv", 3 * width, width), *zero_affine("project", width, width)


def _attention_apply(params: Params, x: Tensor) -> Tensor:
    mixed = causal_attention(apply_affine(params, "qkv", standardise(x)), heads_of(x.shape[-1]))
    return x + apply_affine(params, "project", mixed)


def _attention_flops(site: Site) -> int:
    length, width = site.shape
    return _matrices(4 * width**2, site) + 2 * length**2 * width


def _mlp_params(expansion: int, site: Site) -> tuple[Param, ...]:
    width, hidden = site.channels, expansion * site.channels
    return *affine("expand", hidden, width), *zero_affine("contract", width, hidden)


def _mlp_apply(params: Params, x: Tensor) -> Tensor:
    return x + apply_affine(params, "contract", F.gelu(apply_affine(params, "expand", standardise(x))))


def _matrices(cells: int, site: Site) -> int:
    """Cost of weights with ``cells`` entries, applied at every position."""
    return cells * prod(site.shape) // site.channels


def _lora(name: str, rank: int) -> Blueprint:
    def flops(site: Site) -> int:
        return _matrices(2 * rank * site.channels, site)

    return preserving(name, POSITIONWISE, partial(_lora_params, rank), _lora_apply, flops, 0.0)


def _mlp(name: str, expansion: int) -> Blueprint:
    def flops(site: Site) -> int:
        return _matrices(2 * expansion * site.channels**2, site)

    return preserving(name, POSITIONWISE, partial(_mlp_params, expansion), _mlp_apply, flops, 0.0, _can_norm)


NORM = preserving("norm", POSITIONWISE, _norm_params, _norm_apply, lambda site: 0, 0.0, _can_norm)
LORA, LORA_LARGE = _lora("lora", 8), _lora("lora_large", 32)
ATTENTION = preserving(
    "attention", frozenset({"token"}), _attention_params, _attention_apply, _attention_flops, 0.0, _can_norm
)
MLP_SMALL, MLP = _mlp("mlp_small", 2), _mlp("mlp", 4)

TOKEN_BLUEPRINTS = (NORM, LORA, LORA_LARGE, ATTENTION, MLP_SMALL, MLP)
"""All blueprints for token sites; the position is the blueprint's number."""
