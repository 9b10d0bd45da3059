"""The shipped conformance check accepts what is sound and names what is not."""

import pytest
import torch

from esper.kasmina.blueprint import Blueprint
from esper.kasmina.checks import BlueprintError, check_blueprint
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.layout import constant, fan_in_uniform
from esper.kasmina.site import Site, conv_site

SITE = conv_site(4, 5, 5)
GOOD = Blueprint(
    "scale",
    frozenset({"conv"}),
    lambda site: (constant("gain", (site.channels,), 0.0),),
    lambda params, x: x * (1 + params["gain"][:, None, :, None, None]),
    lambda site: 0,
    0.0,
)


@pytest.mark.parametrize("blueprint", CONV_BLUEPRINTS, ids=lambda b: b.name)
@pytest.mark.parametrize("channels", [1, 4, 8, 32])
def test_every_shipped_blueprint_passes(blueprint, channels):
    check_blueprint(blueprint, conv_site(channels, 4, 4))


def test_a_single_network_form_lifted_by_vmap_passes():
    def single(params, x):
        return x + torch.tanh(params["mix"]) * x.flip(-1)

    check_blueprint(
        GOOD._replace(apply=torch.func.vmap(single), params=lambda site: (constant("mix", (1,), 0.0),)), SITE
    )


BROKEN = {
    "output shape": GOOD._replace(apply=lambda p, x: (x * p["gain"][:, None, :, None, None])[..., :-1]),
    "output dtype": GOOD._replace(apply=lambda p, x: (x * (1 + p["gain"][:, None, :, None, None])).half()),
    "non-finite output": GOOD._replace(apply=lambda p, x: x / p["gain"][:, None, :, None, None]),
    r"\|apply\(x\) - x\|": GOOD._replace(apply=lambda p, x: x * (2 + p["gain"][:, None, :, None, None])),
    "zero gradient": GOOD._replace(apply=lambda p, x: x + p["gain"][:, None, :, None, None].relu()),
    "no gradient to its parameters": GOOD._replace(apply=lambda p, x: x * 1),
    "rows that differ": GOOD._replace(
        apply=lambda p, x: x + 0.1 * (x.mean(0) + p["gain"][:, None, :, None, None]), identity_bound=9.0
    ),
    "kinds": GOOD._replace(kinds=frozenset({"token"})),
    "distinct names": GOOD._replace(params=lambda site: (constant("gain", (4,), 0.0), constant("gain", (4,), 0.0))),
    "no parameters": GOOD._replace(params=lambda site: ()),
    "flops": GOOD._replace(flops=lambda site: -1),
    "needs float64": GOOD._replace(
        apply=lambda p, x: x.float() * (1 + p["gain"].float()[:, None, :, None, None]), name="needs float64"
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_broken_contract_is_named(fault):
    with pytest.raises(BlueprintError, match=fault) as error:
        check_blueprint(BROKEN[fault], SITE)
    assert "\n" not in str(error.value) and "expected" in str(error.value)


def test_a_site_of_another_kind_works():
    """Nothing in the check is about convolutions."""
    vector = Site("vector", (6,), 0)
    affine = Blueprint(
        "affine",
        frozenset({"vector"}),
        lambda site: (fan_in_uniform("weight", (6, 6), 6), constant("tail", (6,), 0.0)),
        lambda p, x: x + torch.bmm(x, p["weight"]) * p["tail"].unsqueeze(1),
        lambda site: 36,
        0.0,
    )
    check_blueprint(affine, vector)
