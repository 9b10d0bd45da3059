"""Blueprints for vectors, against the same modules in plain ``torch.nn.functional``."""

import pytest
import torch
from torch.nn import functional as F

from esper.kasmina.checks import check_blueprint
from esper.kasmina.site import token_site, vector_site
from esper.kasmina.vector_blueprints import GATED_MLP, LINEAR_BOTTLENECK, VECTOR_BLUEPRINTS
from esper.utils import rng

F64 = torch.float64
SIZES = {"norm": lambda d: 2 * d + 1, "lora": lambda d: 16 * d}
SIZES |= {"linear_bottleneck": lambda d: 2 * d * max(8, d // 4) + max(8, d // 4) + d}
SIZES |= {"gated_mlp": lambda d: 3 * d * max(8, 4 * d // 3) + 2 * max(8, 4 * d // 3) + d}


@pytest.mark.parametrize("width", [2, 6, 48])
@pytest.mark.parametrize("blueprint", VECTOR_BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_they_keep_the_contract_and_have_the_stated_sizes(blueprint, width):
    site = vector_site(width)
    check_blueprint(blueprint, site)
    assert blueprint.layout(site).size == SIZES[blueprint.name](width)
    assert not LINEAR_BOTTLENECK.fits(token_site(3, width), token_site(3, width))


def plain_bottleneck(p, x):
    hidden = torch.relu(F.linear(F.layer_norm(x, x.shape[-1:]), p["down.weight"], p["down.bias"]))
    return x + F.linear(hidden, p["up.weight"], p["up.bias"])


def plain_gated(p, x):
    normed = F.layer_norm(x, x.shape[-1:])
    opened = F.silu(F.linear(normed, p["gate.weight"], p["gate.bias"]))
    hidden = opened * F.linear(normed, p["expand.weight"], p["expand.bias"])
    return x + F.linear(hidden, p["contract.weight"], p["contract.bias"])


@pytest.mark.parametrize(("blueprint", "plain"), [(LINEAR_BOTTLENECK, plain_bottleneck), (GATED_MLP, plain_gated)])
def test_each_network_computes_what_the_plain_module_does(blueprint, plain):
    layout = blueprint.layout(vector_site(7))
    params = layout.views(rng.normal(rng.key(1), (3, layout.size), F64))
    x = rng.normal(rng.key(2), (3, 5, 7), F64)
    found = blueprint.infer(params, {}, x)
    for row in range(3):
        wanted = plain({name: value[row] for name, value in params.items()}, x[row])
        torch.testing.assert_close(found[row], wanted, rtol=0, atol=1e-12)
