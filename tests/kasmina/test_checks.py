"""The shipped conformance check accepts what is sound and names what is not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from esper.kasmina.blueprint import Blueprint, preserving
from esper.kasmina.checks import BlueprintError, check_blueprint
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.layout import Param, Params, constant, fan_in_uniform
from esper.kasmina.site import Site, conv_site, token_site, vector_site
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.kasmina.token_bypasses import TOKEN_BYPASSES

SITE, POINT = conv_site(4, 5, 5), vector_site(3)
GAIN = constant("gain", (4,), 0.0)


def seed(apply: Callable[[Params, Tensor], Tensor], *params: Param, bound: float = 0.0) -> Blueprint:
    return preserving("scale", frozenset({"conv"}), lambda site: params, apply, lambda site: 0, bound)


def gain(params: Params) -> Tensor:
    return params["gain"][:, None, :, None, None]


GOOD = seed(lambda p, x: x * (1 + gain(p)), GAIN)


@pytest.mark.parametrize("blueprint", CONV_BLUEPRINTS, ids=lambda b: b.name)
@pytest.mark.parametrize("channels", [1, 4, 8, 32])
def test_every_shipped_blueprint_passes(blueprint, channels):
    check_blueprint(blueprint, conv_site(channels, 4, 4))


def dead_norm(params: Params, x: Tensor) -> Tensor:
    """As many groups as channels: on a map of one position all that is normalised is 0."""
    y = torch.nn.functional.group_norm(x.flatten(0, 1), x.shape[2]).view_as(x)
    return x + params["openness"][:, None, :, None, None] * (y * (1 + gain(params)) - x)


def test_what_is_normalised_over_single_numbers_is_refused_where_it_is_dead():
    kind = seed(dead_norm, GAIN, constant("openness", (4,), 0.0))
    check_blueprint(kind, SITE)
    with pytest.raises(BlueprintError, match="no gradient to gain away from its start"):
        check_blueprint(kind, conv_site(4, 1, 1))


@pytest.mark.parametrize("blueprint", [*CONV_BLUEPRINTS, *TOKEN_BLUEPRINTS, *TOKEN_BYPASSES], ids=lambda b: b.name)
def test_what_fits_the_smallest_sites_can_learn_there(blueprint):
    """``norm`` at 32 channels of 1x1 and at one channel of tokens, a transformer that reads tokens' one feature."""
    sites = [conv_site(c, 1, 1) for c in (1, 2, 4, 32)] + [conv_site(1, 1, 2), token_site(4, 1), vector_site(1)]
    targets = [Site("logits", (4, 5), 1, 0)] if blueprint.is_bypass else [None]
    for site in sites:
        for target in targets:
            if blueprint.suits(site, target or site, blueprint.is_bypass):
                check_blueprint(blueprint, site, target)
    assert blueprint.is_bypass or blueprint.suits(*[conv_site(32, 1, 1)] * 2, False) == (blueprint in CONV_BLUEPRINTS)


def test_a_single_network_form_lifted_by_vmap_passes():
    def single(params, x):
        return x + torch.tanh(params["mix"]) * x.flip(-1)

    check_blueprint(seed(torch.func.vmap(single), constant("mix", (1,), 0.0)), SITE)


BROKEN = {
    "output shape": seed(lambda p, x: (x * gain(p))[..., :-1], GAIN),
    "output dtype": seed(lambda p, x: (x * (1 + gain(p))).half(), GAIN),
    "non-finite output": seed(lambda p, x: x / gain(p), GAIN),
    r"\|y - x\|": seed(lambda p, x: x * (2 + gain(p)), GAIN),
    "zero gradient": seed(lambda p, x: x + gain(p).relu(), GAIN),
    "zero gradient to its parameters": seed(lambda p, x: x * 1, GAIN),
    "rows that differ": seed(lambda p, x: x + 0.1 * (x.mean(0) + gain(p)), GAIN, bound=9.0),
    "does not fit 'conv' to 'conv'": GOOD._replace(fits=lambda source, target: source.kind == "token"),
    "distinct names": seed(lambda p, x: x, GAIN, GAIN),
    "no parameters": seed(lambda p, x: x),
    "flops": GOOD._replace(flops=lambda source, target: -1),
    "blueprint 'scale': raised KeyError: 'gian'; ": seed(lambda p, x: x * p["gian"], GAIN),
    "blueprint 'scale': raised RuntimeError: .*size of tensor": seed(lambda p, x: x * (1 + p["gain"]), GAIN),
    "blueprint 'scale': raised AttributeError: 'tuple'": seed(lambda p, x: (x * (1 + gain(p)), {}), GAIN),
    "blueprint 'scale': raised ZeroDivisionError": GOOD._replace(flops=lambda source, target: 1 // 0),
    "blueprint 'scale': raised TypeError: .* takes 0 positional": GOOD._replace(params=lambda: (GAIN,)),
    "blueprint 'scale': raised TypeError: 'int' object is not callable": GOOD._replace(fits=1),
    "blueprint 3: raised AttributeError": 3,
    "output dtype torch.float32": seed(lambda p, x: x.float() * (1 + gain(p).float()), GAIN),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_broken_contract_is_named(fault):
    with pytest.raises(BlueprintError, match=fault) as error:
        check_blueprint(BROKEN[fault], SITE)
    assert "\n" not in str(error.value) and "expected" in str(error.value)


def test_a_site_of_another_kind_works():
    """Nothing in the check is about convolutions."""
    params = fan_in_uniform("weight", (6, 6), 6), constant("tail", (6,), 0.0)
    affine = preserving(
        "affine",
        frozenset({"vector"}),
        lambda site: params,
        lambda p, x: x + torch.bmm(x, p["weight"]) * p["tail"].unsqueeze(1),
        lambda site: 36,
        0.0,
    )
    check_blueprint(affine, Site("vector", (6,), 0))


def bypass(train: Callable[..., tuple[Tensor, Params]], scale: float = 0.0, init: str = "constant") -> Blueprint:
    """From maps to a vector, with one buffer."""
    return Blueprint(
        name="head",
        fits=lambda source, target: source.kind == "conv" and target.kind == "vector",
        params=lambda source, target: (constant("weight", (target.channels, source.channels), scale),),
        train=train,
        infer=lambda p, b, x: train(p, b, x, None)[0],
        flops=lambda source, target: source.channels * target.channels,
        identity_bound=0.0,
        buffers=lambda source, target: (Param("count", (2,), init, 1.0),),  # type: ignore[arg-type]
        is_bypass=True,
    )


def head(p: Params, b: Params, x: Tensor, key: Tensor | None) -> tuple[Tensor, Params]:
    return x.mean((-2, -1)) @ p["weight"].mT, {"count": b["count"] + 1}


BROKEN_BYPASSES = {
    r"\|y\| = ": bypass(head, scale=1.0),
    "output shape": bypass(lambda p, b, x, key: (x, b)),
    r"buffers \{\} after training": bypass(lambda p, b, x, key: (head(p, b, x, key)[0], {})),
    r"buffers \['count'\] drawn at random": bypass(head, init="normal"),
    "does not fit 'conv' to 'vector'": bypass(head)._replace(fits=lambda source, target: False),
    "does not fit": bypass(head)._replace(is_bypass=False),
}


def test_a_bypass_with_buffers_passes():
    check_blueprint(bypass(head), SITE, POINT)


@pytest.mark.parametrize("fault", BROKEN_BYPASSES)
def test_each_broken_contract_of_a_bypass_is_named(fault):
    with pytest.raises(BlueprintError, match=fault) as error:
        check_blueprint(BROKEN_BYPASSES[fault], SITE, POINT)
    assert "\n" not in str(error.value) and "expected" in str(error.value)
