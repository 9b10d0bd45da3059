"""Where bypasses are offered, what they are called, how large they are; and what factories refuse."""

from itertools import product

import pytest
import torch

from esper.kasmina.bypass_blueprints import (
    CONV_BYPASSES,
    MAP_BYPASSES,
    PROBE,
    conv_bypass,
    groups_of,
    linear_probe,
    map_bypass,
)
from esper.kasmina.checks import BlueprintError, check_blueprint
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.site import Site, conv_site, token_site, vector_site
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.kasmina.token_bypasses import TOKEN_BYPASSES, TOKEN_PROBE, transformer_bypass
from esper.kasmina.vector_bypasses import VECTOR_BYPASSES, mlp_bypass
from esper.leyline.config import ConfigError
from esper.utils import rng

IMAGE, WIDE, CLASSES = conv_site(1, 8, 8), conv_site(8, 4, 4), Site("logits", (10,), 0)
TEXT, HIDDEN, NEXT = Site("tokens", (16,), 0), token_site(16, 32), Site("logits", (16, 96), 1, 0)
VECTOR = vector_site(64)
SITES = {"image": IMAGE, "maps": WIDE, "vector": VECTOR, "classes": CLASSES, "text": TEXT, "tokens": HIDDEN}
SITES |= {"next": NEXT, "shorter": token_site(8, 32), "other": Site("graph", (5, 4), 1)}
TO_CLASSES = {("image", "classes"), ("maps", "classes"), ("image", "vector"), ("maps", "vector")}
FROM_VECTORS = TO_CLASSES | {("vector", "classes"), ("vector", "vector")}
SEQUENCES = {("text", "next"), ("tokens", "next"), ("tokens", "tokens"), ("shorter", "shorter")}
OFFERS = {
    **dict.fromkeys(CONV_BYPASSES, TO_CLASSES),
    linear_probe(pooled=True): TO_CLASSES,
    MAP_BYPASSES[0]: {("image", "image"), ("maps", "maps")},
    MAP_BYPASSES[1]: {("image", "maps")},
    MAP_BYPASSES[2]: set(),
    **dict.fromkeys(VECTOR_BYPASSES, FROM_VECTORS),
    **dict.fromkeys((*TOKEN_BYPASSES, TOKEN_PROBE), SEQUENCES),
}


@pytest.mark.parametrize("blueprint", OFFERS, ids=lambda blueprint: blueprint.name)
def test_a_bypass_is_offered_between_two_points_that_suit_it_and_at_no_one_point(blueprint):
    for source, target in product(SITES, SITES):
        suits = blueprint.suits(SITES[source], SITES[target], True)
        assert suits == ((source, target) in OFFERS[blueprint]), (source, target)
        assert not blueprint.suits(SITES[source], SITES[target], False)


@pytest.mark.parametrize("blueprint", (*CONV_BLUEPRINTS, *TOKEN_BLUEPRINTS), ids=lambda blueprint: blueprint.name)
def test_what_keeps_a_site_is_offered_at_no_two_points_even_of_one_shape(blueprint):
    """Added to the target it would double it: it starts as what it reads, not at 0."""
    for site in SITES.values():
        assert not blueprint.suits(site, site, True)
    site = WIDE if blueprint in CONV_BLUEPRINTS else HIDDEN
    assert blueprint.suits(site, site, False)
    with pytest.raises(BlueprintError, match="does not fit"):
        check_blueprint(blueprint, site, site)


@pytest.mark.parametrize(
    ("blueprints", "sites", "sizes"),
    [
        # 9 c_in c_out + 2 c_out a block, (c_last + 1) 10 of the head
        (CONV_BYPASSES, (IMAGE, CLASSES), {"conv4x2": 438, "conv8x2": 1442, "conv16x2": 5178, "conv32x2": 19562}),
        (VECTOR_BYPASSES, (IMAGE, CLASSES), {"probe": 650, "mlp8x1": 610, "mlp16x1": 1210, "mlp32x1": 2410}),
        (
            TOKEN_BYPASSES,
            (TEXT, NEXT),
            {
                "transformer16x1": (96 + 16) * 16 + 3280 + 32 + 17 * 96,
                "transformer16x2": (96 + 16) * 16 + 2 * 3280 + 32 + 17 * 96,
                "transformer32x1": (96 + 16) * 32 + 12704 + 64 + 33 * 96,
                "transformer32x2": (96 + 16) * 32 + 2 * 12704 + 64 + 33 * 96,
            },
        ),
        (MAP_BYPASSES[1:2], (IMAGE, WIDE), {"map8x1_pool1": 72 + 16 + 64}),
        ((TOKEN_PROBE,), (TEXT, NEXT), {"token_probe": 96 * 97}),
    ],
)
def test_sizes_of_what_is_shipped(blueprints, sites, sizes):
    """The first four are the sizes of the static networks that they were measured against."""
    assert {blueprint.name: blueprint.layout(*sites).size for blueprint in blueprints} == sizes
    for blueprint in blueprints:
        check_blueprint(blueprint, *sites, num_networks=2, batch_size=2)


def test_names_tell_what_differs():
    made = [conv_bypass(c, b, n) for c, b, n in product((4, 8), (1, 2), ("batch", "group"))]
    made += [map_bypass(c, b, p, n) for c, b, p, n in product((4, 8), (1, 2), (0, 1), ("batch", "group"))]
    made += [PROBE, linear_probe(pooled=True), TOKEN_PROBE, *(mlp_bypass(h, k) for h, k in product((4, 8), (1, 2)))]
    made += [transformer_bypass(w, k) for w, k in product((4, 8), (1, 2))]
    assert len({blueprint.name for blueprint in made}) == len(made)


@pytest.mark.parametrize("blueprint", OFFERS, ids=lambda blueprint: blueprint.name)
def test_every_tensor_learns_within_three_steps(blueprint):
    """The last layer at once, what lies before it as soon as that is not 0."""
    places = sorted(OFFERS[blueprint])
    source, target = (SITES[place] for place in (places[0] if places else ("image", "maps")))
    if not places:
        target = conv_site(3, 2, 2)
    layout, held = blueprint.layout(source, target), blueprint.buffer_layout(source, target)
    flat, keys = layout.init(rng.split(rng.key(3), 2), torch.float64), rng.split(rng.key(3), 2)
    shape = (2, 4, *source.shape)
    tokens = source.kind == "tokens"
    x = (rng.uniform(rng.key(4), shape) * 96).long() if tokens else rng.normal(rng.key(4), shape, torch.float64)
    weight, first = rng.normal(rng.key(5), (2, 4, *target.shape), torch.float64), flat
    buffers = held.views(held.init(keys, torch.float64))

    def loss(rows):
        y = blueprint.train(layout.views(rows), buffers, x, None)[0]
        return (y - weight).square().sum() / y[0].numel()

    losses = []
    for _ in range(3):
        grad, value = torch.func.grad_and_value(loss)(flat)
        losses.append(float(value))
        flat = flat - 0.05 * grad
    assert losses[2] < losses[1] < losses[0]
    moved = layout.views((flat != first).double())
    alive = {name: bool(part.flatten(1).any(1).all()) for name, part in moved.items()}
    assert all(alive.values()), alive


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 1), (12, 1), (16, 2), (24, 3), (32, 4), (20, 2), (64, 8)])
def test_groups_have_eight_channels_or_more(channels, groups):
    assert groups_of(channels) == groups


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: conv_bypass(3), "conv_bypass channels = 3"),
        (lambda: conv_bypass(4, 0), "blocks = 0"),
        (lambda: conv_bypass(4, 1, "layer"), "norm = 'layer': .* batch or group"),
        (lambda: map_bypass(0), "map_bypass channels = 0"),
        (lambda: map_bypass(pools=-1), "map_bypass pools = -1"),
        (lambda: mlp_bypass(0), "mlp_bypass hidden = 0"),
        (lambda: mlp_bypass(4, 0), "layers = 0"),
        (lambda: transformer_bypass(0), "transformer_bypass width = 0"),
        (lambda: transformer_bypass(4, 0), "layers = 0"),
    ],
)
def test_factories_refuse_in_one_line(make, words):
    with pytest.raises(ConfigError, match=words) as error:
        make()
    assert "\n" not in str(error.value) and "expected" in str(error.value)
