"""Shipped documents against the Python blueprints: tensors, costs, outputs and gradients to the bit."""

from itertools import product

import pytest
import torch
from tezzeret_states import Pair, batch_of, evaluated, largest_gap

import esper
from esper.kasmina.blueprint import Blueprint
from esper.kasmina.bypass_blueprints import CONV_BYPASSES, MAP_BYPASSES, conv_bypass, linear_probe
from esper.kasmina.checks import check_blueprint
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.kasmina.counterfactuals import single_changes
from esper.kasmina.site import Site, conv_site, token_site, vector_site
from esper.kasmina.slot_table import take_table
from esper.kasmina.token_blueprints import TOKEN_BLUEPRINTS
from esper.kasmina.token_bypasses import TOKEN_BYPASSES, TOKEN_PROBE
from esper.kasmina.vector_blueprints import VECTOR_BLUEPRINTS
from esper.kasmina.vector_bypasses import VECTOR_BYPASSES
from esper.runtime import tasks
from esper.tezzeret.blueprints import blueprint_of, infer, parse, shipped
from esper.tezzeret.blueprints.catalogue import shipped_bytes
from esper.tezzeret.blueprints.document import readable
from esper.tezzeret.native.capture import capture
from esper.tezzeret.native.graph import Graph
from esper.tezzeret.native.library import library
from esper.tezzeret.surgery.forward import Forward
from esper.tolaria.synthetic import synthetic
from esper.utils import rng

TWO_OF_A_NAME = {"norm": ("conv_norm", "token_norm"), "attention": ("conv_attention", "token_attention")}


def key_of(blueprint: Blueprint) -> str:
    """The file of a blueprint: where two have one name, behind its kind of site."""
    names = TWO_OF_A_NAME.get(blueprint.name, (blueprint.name,))
    return names[0] if blueprint in CONV_BLUEPRINTS else names[-1]


ALL = [
    *(*CONV_BLUEPRINTS, *TOKEN_BLUEPRINTS, *VECTOR_BLUEPRINTS[2:], *CONV_BYPASSES, *MAP_BYPASSES),
    *(*VECTOR_BYPASSES, linear_probe(True), conv_bypass(8, 2, "group"), *TOKEN_BYPASSES, TOKEN_PROBE),
]
PYTHON = {key_of(blueprint): blueprint for blueprint in ALL}
CONV = [
    (8, 8, 8),
    (1, 1, 1),
    (3, 5, 7),
    (64, 4, 4),
    (4, 2, 3),
    (32, 1, 1),
    (2, 1, 1),
    (8, 4, 4),
    (12, 2, 2),
    (48, 1, 2),
]
LOGITS = [
    Site("logits", shape, len(shape) - 1, 0 if len(shape) == 2 else None) for shape in ((10,), (1,), (6, 11), (6, 5))
]
SITES = [
    *(conv_site(*shape) for shape in CONV),
    *(token_site(*shape) for shape in ((6, 8), (6, 1), (5, 12), (6, 3))),
    *(vector_site(width) for width in (8, 1, 33)),
    *LOGITS,
    Site("tokens", (6,), 0),
]
EVERY = pytest.mark.parametrize("key", PYTHON)


def pairs(key: str) -> list[tuple[Site, Site]]:
    python = PYTHON[key]
    return [pair for pair in product(SITES, SITES) if python.suits(*pair, python.is_bypass)]


def test_every_blueprint_of_the_presets_is_shipped() -> None:
    assert set(shipped()) == set(PYTHON)
    used = {id(blueprint) for table in (tasks.IMAGE_BLUEPRINTS, tasks.TEXT_BLUEPRINTS) for blueprint in table}
    used |= {id(blueprint) for table in (CONV_BLUEPRINTS, TOKEN_BLUEPRINTS, VECTOR_BLUEPRINTS) for blueprint in table}
    assert used <= {id(blueprint) for blueprint in PYTHON.values()}


@EVERY
def test_tensors_costs_and_sites_are_those_of_the_python_form(key: str) -> None:
    python, document = PYTHON[key], shipped()[key]
    made = blueprint_of(document)
    assert (made.name, made.identity_bound, made.is_bypass, made.draws) == (
        *(python.name, python.identity_bound, python.is_bypass),
        python.draws,
    )
    for pair in product(SITES, SITES):
        fits = python.suits(*pair, python.is_bypass)
        assert made.suits(*pair, made.is_bypass) == fits, pair
    for pair in pairs(key)[:12]:
        assert made.params(*pair) == python.params(*pair) and made.buffers(*pair) == python.buffers(*pair), pair
        costs = infer(document, *pair)
        assert (costs.flops, costs.params) == (python.flops(*pair), python.layout(*pair).size), pair
        assert made.flops(*pair) == costs.flops and costs.buffers == python.buffer_layout(*pair).size


def drawn(number: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number))


def run(blueprint: Blueprint, pair: tuple[Site, Site], start: torch.Tensor, training: bool) -> list[torch.Tensor]:
    """Output, new buffers, and gradients by parameters and features, away from the start."""
    source, target = pair
    layout, held = blueprint.layout(*pair), blueprint.buffer_layout(*pair)
    flat = (start + 0.1 * drawn(9, *start.shape)).requires_grad_()
    buffers = held.views(held.init(rng.split(rng.key(0), len(start)), torch.float32) + 0.1)
    x = drawn(4, len(start), 4, *source.shape)
    x = (x.abs() * 9).long() % target.channels if source.kind == "tokens" else x.requires_grad_()
    named = layout.views(flat)
    y, new = blueprint.train(named, buffers, x, None) if training else (blueprint.infer(named, buffers, x), {})
    leaves = [flat, x] if x.is_floating_point() else [flat]
    slopes = torch.autograd.grad((y * drawn(5, *y.shape)).sum(), leaves)
    return [y.detach(), *(value for _, value in sorted(new.items())), *slopes]


def equal_to_the_bit(key: str, pair: tuple[Site, Site]) -> None:
    made, keys = blueprint_of(shipped()[key]), rng.split(rng.key(0), 3)
    start = made.layout(*pair).init(keys, torch.float32)
    assert torch.equal(start, PYTHON[key].layout(*pair).init(keys, torch.float32))
    for training in (True, False):
        found, wanted = (run(blueprint, pair, start, training) for blueprint in (made, PYTHON[key]))
        assert len(found) == len(wanted)
        assert all(torch.equal(*both) for both in zip(found, wanted, strict=True)), (pair, training)


@EVERY
def test_outputs_statistics_and_gradients_have_the_bits_of_the_python_form(key: str) -> None:
    """At several of all pairs."""
    fitting = sorted(pairs(key), key=lambda pair: pair[0].shape)
    for pair in fitting[:: max(1, len(fitting) // 3)][:3]:
        equal_to_the_bit(key, pair)


@pytest.mark.large
def test_so_they_have_at_every_pair_of_sites() -> None:
    count = 0
    for key in PYTHON:
        for pair in pairs(key):
            equal_to_the_bit(key, pair)
            count += 1
    print(f"{count} pairs of sites, {len(PYTHON)} documents")  # noqa: T201
    assert count > 700


@pytest.mark.parametrize("key", ["conv_heavy", "conv8x2", "token_attention", "gated_mlp", "transformer16x1"])
def test_the_contract_of_blueprints_is_kept(key: str) -> None:
    made = blueprint_of(shipped()[key])
    for source, target in pairs(key)[:1]:
        check_blueprint(made, source, target if made.is_bypass else None)


REWRITTEN = ("token_norm", "token_probe")
"""Of these the document names one operation where the Python form has several, or the other way round."""


def close(found: Graph, wanted: Graph, made: Blueprint, pair: tuple[Site, Site]) -> bool:
    """Whether two graphs give the same up to rounding."""
    layout = made.layout(*pair)
    params = layout.views(drawn(1, 3, layout.size).double())
    x = drawn(2, 3, 4, *pair[0].shape).double()
    x = (x.abs() * 9).long() % pair[1].channels if pair[0].kind == "tokens" else x
    return torch.allclose(*(Forward(graph)(params, {}, x).output for graph in (found, wanted)), rtol=1e-12, atol=1e-12)


@EVERY
def test_capture_writes_the_same_graph_as_of_the_python_form(key: str) -> None:
    """So native programs are the same instruction by instruction."""
    made = blueprint_of(shipped()[key])
    for pair in [pair for pair in pairs(key) if max(pair[0].shape) <= 12][:2]:
        vocabulary = pair[1].channels if pair[0].kind == "tokens" else 0
        layouts = made.layout(*pair), made.buffer_layout(*pair)
        for training in (True, False):
            found, wanted = (
                capture(
                    (lambda p, b, x, own=own: own.train(p, b, x, None)) if training else own.infer,
                    pair[0].shape,
                    *layouts,
                    vocabulary,
                )
                for own in (made, PYTHON[key])
            )
            if key in REWRITTEN:
                assert close(found, wanted, made, pair)
            else:
                assert found == wanted, pair


@pytest.mark.skipif(library() is None, reason="no C++ compiler")
def test_a_network_of_documents_runs_on_native_as_one_of_python_blueprints_does() -> None:
    dataset = synthetic((1, 8, 8), num_classes=4, num_train=48, num_val=30, noise=0.7)
    host = cnn_host((1, 8, 8), 4, num_blocks=3, base_channels=4, pool_blocks=1)
    keys = ("conv_norm", "conv_light", "bottleneck", "conv_attention", "conv4x2", "probe")
    numbers = {"slots": (0, "input:logits"), "batch_size": 8, "eval_batch_size": 16}
    outputs = []
    for blueprints in (tuple(blueprint_of(shipped()[key]) for key in keys), tuple(PYTHON[key] for key in keys)):
        pair = Pair(esper.Task("documents", host, blueprints, dataset, numbers), 12, 3)
        assert pair.fast.describe()[0].startswith("native")
        found, wanted = pair.lessons(batch_of(pair.fast, 8))
        assert max(largest_gap(*both) for both in zip(found.rows(), wanted.rows(), strict=True)) < 3e-4
        outputs.append(evaluated(pair.fast, pair.state, single_changes(take_table(pair.state.slots)))[1])
    assert torch.equal(*outputs)


@EVERY
def test_files_are_as_documents_are_written(key: str) -> None:
    data = shipped_bytes(key)
    assert readable(parse(data, key)).encode() == data
