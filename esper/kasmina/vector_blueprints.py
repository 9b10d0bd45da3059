"""Blueprints for vector sites: shape-preserving modules that start at the identity.

Compositions for D channels:

| name              | composition                                               | parameters          |
|-------------------|-----------------------------------------------------------|---------------------|
| norm              | x + tanh(scale) * (LN(x) - x)                             | 2D + 1              |
| lora              | x + up(down(x)), rank 8, no bias                          | 16D                 |
| linear_bottleneck | x + up(relu(down(N(x)))), b wide                          | 2Db + b + D         |
| gated_mlp         | x + contract(silu(gate(N(x))) * expand(N(x))), h hidden   | 3Dh + 2h + D        |

with b = max(8, D // 4) and h = max(8, 4 D / 3), so that a gated MLP costs about what one of 2D hidden units does
(Shazeer, "GLU variants improve transformer", 2020). ``norm`` and ``lora`` are those for tokens
(``esper.kasmina.token_blueprints``); N is a layer norm without weights. What ends a branch starts at zero. A norm over
one channel is constant, so that all but ``lora`` need two.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.kasmina.blueprint import preserving
from esper.kasmina.layers import standardise
from esper.kasmina.layout import Param, Params, zero_affine
from esper.kasmina.site import Site
from esper.kasmina.token_blueprints import LORA, NORM
from esper.kasmina.transformer import affine, apply_affine

VECTOR = frozenset({"vector"})


def _can_norm(site: Site) -> bool:
    return site.channels > 1


def _narrow(site: Site) -> int:
    return max(8, site.channels // 4)


def _hidden(site: Site) -> int:
    return max(8, 4 * site.channels // 3)


def _bottleneck_params(site: Site) -> tuple[Param, ...]:
    width, narrow = site.channels, _narrow(site)
    return *affine("down", narrow, width), *zero_affine("up", width, narrow)


def _bottleneck_apply(params: Params, x: Tensor) -> Tensor:
    return x + apply_affine(params, "up", torch.relu(apply_affine(params, "down", standardise(x))))


def _gated_params(site: Site) -> tuple[Param, ...]:
    width, hidden = site.channels, _hidden(site)
    return *affine("gate", hidden, width), *affine("expand", hidden, width), *zero_affine("contract", width, hidden)


def _gated_apply(params: Params, x: Tensor) -> Tensor:
    normed = standardise(x)
    opened = F.silu(apply_affine(params, "gate", normed)) * apply_affine(params, "expand", normed)
    return x + apply_affine(params, "contract", opened)


LINEAR_BOTTLENECK = preserving(
    "linear_bottleneck",
    VECTOR,
    _bottleneck_params,
    _bottleneck_apply,
    lambda site: 2 * site.channels * _narrow(site),
    0.0,
    _can_norm,
)
GATED_MLP = preserving(
    "gated_mlp",
    VECTOR,
    _gated_params,
    _gated_apply,
    lambda site: 3 * site.channels * _hidden(site),
    0.0,
    _can_norm,
)

VECTOR_BLUEPRINTS = (NORM, LORA, LINEAR_BOTTLENECK, GATED_MLP)
"""All blueprints for vector sites that keep their shape."""
