"""Drawn documents: valid by ``jsonschema``, computed a second time by plain ``torch.nn``, captured for native."""

from typing import Any

import jsonschema
import pytest
import torch
from blueprint_generate import Made, documents
from blueprint_judge import Judge
from torch import Tensor

from esper.kasmina.blueprint import Blueprint
from esper.tezzeret.blueprints import blueprint_of, canonical, infer, parse
from esper.tezzeret.blueprints.published_schema import schema
from esper.tezzeret.native.capture import capture
from esper.tezzeret.native.emit import emit
from esper.tezzeret.surgery.forward import Forward
from esper.utils import rng

NETWORKS, BATCH, EXACT = 2, 3, 1e-9
VALIDATOR = jsonschema.Draft202012Validator(schema())


def features(made: Made) -> Tensor:
    shape = (NETWORKS, BATCH, *made.source.shape)
    if made.source.kind == "tokens":
        return (rng.uniform(rng.key(2), shape) * made.target.channels).long()
    return rng.normal(rng.key(2), shape, torch.float64)


def gap(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)) if wanted.numel() else 0.0


def tensors(made: Made, blueprint: Blueprint) -> tuple[Tensor, Tensor]:
    """Rows of parameters away from their start, and of buffers."""
    layout, held = blueprint.layout(made.source, made.target), blueprint.buffer_layout(made.source, made.target)
    keys = rng.split(rng.key(0), NETWORKS)
    noise = rng.normal(rng.key(1), (NETWORKS, layout.size), torch.float64)
    return layout.init(keys, torch.float64) + 0.1 * noise, held.init(keys, torch.float64)


def gradients(result: Tensor, leaves: list[Tensor], by: Tensor) -> list[Tensor]:
    found = torch.autograd.grad((result * by).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves, found, strict=True)]


def judged(made: Made, training: bool) -> float:
    """The largest gap between the eager form and the independent rendering: outputs, gradients, statistics."""
    blueprint = blueprint_of(parse(made.data, "drawn"))
    sites, (flat, buffers), x = (made.source, made.target), tensors(made, blueprint), features(made)
    layout, held = blueprint.layout(*sites), blueprint.buffer_layout(*sites)
    flat.requires_grad_()
    leaves = [flat, x.requires_grad_()] if x.is_floating_point() else [flat]
    named = layout.views(flat), held.views(buffers)
    y, new = blueprint.train(*named, x, None) if training else (blueprint.infer(*named, x), {})
    by = rng.normal(rng.key(3), tuple(y.shape), torch.float64)
    found, gaps = gradients(y, leaves, by), [0.0]
    for network in range(NETWORKS):
        judge = Judge(made.table, *sites).double().train(training)
        judge.held = {name: value.double() for name, value in judge.held.items()}
        for name, value in layout.views(flat.detach()).items():
            judge.own[name].data.copy_(value[network].reshape(judge.shapes[name]))
        own = x[network].detach().clone()
        own_leaves: list[Any] = [*judge.own.values()]
        own_leaves += [own.requires_grad_()] if own.is_floating_point() else []
        wanted = judge(own)
        slopes = gradients(wanted, own_leaves, by[network])
        rows = torch.cat([slope.flatten() for slope in slopes[: len(judge.own)]])
        gaps += [gap(y[network], wanted), gap(found[0][network], rows)]
        gaps += [gap(found[1][network], slopes[-1])] if own.is_floating_point() else []
        gaps += [gap(value[network], judge.held[name]) for name, value in new.items()]
    return max(gaps)


def captured(made: Made, training: bool) -> float:
    """Capture writes the eager form down, as native instructions, too; what it wrote computes the same."""
    blueprint = blueprint_of(parse(made.data, "drawn"))
    sites, (flat, buffers), x = (made.source, made.target), tensors(made, blueprint), features(made)
    layout, held = blueprint.layout(*sites), blueprint.buffer_layout(*sites)
    vocabulary = made.target.channels if made.source.kind == "tokens" else 0
    train = lambda params, buffers, x: blueprint.train(params, buffers, x, None)  # noqa: E731
    graph = capture(train if training else blueprint.infer, made.source.shape, layout, held, vocabulary)
    assert emit(graph, layout.size, held.size).shape == made.target.shape
    named = layout.views(flat), held.views(buffers)
    y, new = blueprint.train(*named, x, None) if training else (blueprint.infer(*named, x), {})
    computed = Forward(graph)(*named, x)
    return max([gap(computed.output, y), *(gap(computed.buffers[name], value) for name, value in new.items())])


def look(made: Made) -> None:
    """Stages 1 and 2, and both judges."""
    VALIDATOR.validate(made.table)
    document = parse(made.data, "drawn")
    assert parse(canonical(document), "again") == document
    costs = infer(document, made.source, made.target)
    assert costs.params == Judge(made.table, made.source, made.target).count()
    blueprint = blueprint_of(document)
    assert blueprint.suits(made.source, made.target, made.source != made.target)
    assert blueprint.layout(made.source, made.target).size == costs.params
    for training in (True, False):
        assert judged(made, training) < EXACT
        assert captured(made, training) < EXACT


@pytest.mark.parametrize("made", list(documents(0, 16)), ids=lambda made: made.table["name"])
def test_drawn_documents_are_what_an_independent_rendering_says(made: Made) -> None:
    look(made)


@pytest.mark.large
def test_three_thousand_drawn_documents() -> None:
    count = 0
    for made in documents(1, 3000):
        try:
            look(made)
        except Exception as error:
            raise AssertionError(f"{made.table['name']}: {made.data.decode()}") from error
        count += 1
    print(f"{count} drawn documents agree")  # noqa: T201
    assert count == 3000


def test_the_generator_reaches_most_operations_and_repeats_itself() -> None:
    drawn = list(documents(3, 200))
    assert [made.data for made in drawn[:5]] == [made.data for made in documents(3, 5)]
    operations = {node["op"] for made in drawn for node in made.table["cases"][0]["train"]["nodes"]}
    assert len(operations) > 30
    assert {made.source.kind for made in drawn} == {"conv", "token", "vector", "tokens"}
