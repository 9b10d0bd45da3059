"""Drawn functions of all captured operations, as blocks and as seeds, against the definition, at every width."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from native_steps import NEAREST, STEPS, Drawn, Shape
from tezzeret_states import Pair, batch_of, double, evaluated, largest_gap, lesson

import esper
from esper.kasmina.blueprint import Blueprint, preserving
from esper.kasmina.counterfactuals import single_changes
from esper.kasmina.host import Host, plain_block
from esper.kasmina.layers import conv2d, linear
from esper.kasmina.layout import constant, fan_in_uniform
from esper.kasmina.site import conv_site
from esper.kasmina.slot_table import take_table
from esper.leyline.config import Isolation
from esper.tezzeret.native.library import library
from esper.tolaria.synthetic import synthetic

pytestmark = [
    pytest.mark.skipif(library() is None, reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # vmap has no attention of its own
]

CLASSES, ENVS, INPUT, INSIDE = 3, 7, (2, 4, 3), (4, 4, 3)
NEAR, LIMIT, LARGEST = 3e-6, 3e-4, 120
"""How near to a bend rounding decides; the largest error of a float32 gradient; numbers of a map."""


@st.composite
def functions(draw: Callable[..., Any], shape: Shape, name: str | None = None) -> Drawn:
    """One to three steps; a given one among them."""
    drawn = Drawn((), shape)
    for each in draw(st.permutations([name, None, None][: draw(st.integers(1, 3))])):
        channels, height, width = drawn.shapes()[-1]
        fitting = [key for key, step in STEPS.items() if step.fits(channels, height, width)]
        if each is None or each in fitting:
            further = drawn.then(each or draw(st.sampled_from(fitting)))
            drawn = further if torch.Size(further.shapes()[-1]).numel() <= LARGEST else drawn
    return drawn


def seed_of(name: str, drawn: Drawn) -> Blueprint:
    return preserving(
        name,
        frozenset({"conv"}),
        lambda site: drawn.params(True),
        lambda p, x: torch.func.vmap(drawn.beside)(p, x),
        lambda site: 1,
        9.0,
    )._replace(fits=lambda source, target: source == target and source.shape == drawn.shape)


def network(block: Drawn, seeds: tuple[Drawn, ...], isolation: Isolation, batch: int) -> esper.Task:
    """A convolution, the drawn block, and a head; slots behind the first two."""
    out = block.shapes()[-1]
    first = fan_in_uniform("w", (INSIDE[0], INPUT[0], 3, 3), 9 * INPUT[0])
    head = fan_in_uniform("w", (CLASSES, out[0]), out[0]), constant("b", (CLASSES,), 0.1)
    blocks = (
        plain_block((first,), lambda p, x: conv2d(x, p["w"]), conv_site(*INSIDE), 1),
        plain_block(block.params(False), lambda p, x: torch.func.vmap(block.run)(p, x), conv_site(*out), 1),
        plain_block(head, lambda p, x: linear(x.mean((3, 4)), p["w"], p["b"]), None, 1),
    )
    numbers = {"slots": (0, 1), "batch_size": batch, "eval_batch_size": batch, "isolation": isolation}
    dataset = synthetic(INPUT, num_classes=CLASSES, num_train=30, num_val=batch)
    host = Host("drawn", INPUT, CLASSES, blocks)
    return esper.Task("drawn", host, tuple(seed_of(f"s{n}", each) for n, each in enumerate(seeds)), dataset, numbers)


@contextmanager
def watched() -> Iterator[list[float]]:
    """How near the numbers of drawn functions come to where they bend."""
    NEAREST.append(1.0)
    try:
        yield NEAREST
    finally:
        NEAREST.clear()


def equal(task: esper.Task, batch: int, seed: int = 3) -> bool:
    """Gradients of a minibatch and outputs of all lanes; where float32 itself is farther off, as far as it is.

    False where a number is so near to a bend that rounding decides.
    """
    pair = Pair(task, ENVS, seed)
    assert pair.fast.describe()[0].startswith("native")
    samples = batch_of(pair.fast, batch)
    with watched() as nearest:
        found, wanted = pair.lessons(samples)
        wanted_lanes = single_changes(take_table(pair.state.slots))
        exact = evaluated(pair.exact, double(pair.state), wanted_lanes)[1]
        if min(nearest) < NEAR:
            return False
    outputs = evaluated(pair.fast, pair.state, wanted_lanes)[1]
    gaps = [largest_gap(mine, true) for mine, true in zip(found.rows(), wanted.rows(), strict=True)]
    gaps.append(largest_gap(outputs, exact))
    if max(gaps) >= LIMIT:
        plain = lesson(esper.make(task, ENVS, backend="eager"), pair.state, samples)
        rounding = max(largest_gap(mine, true) for mine, true in zip(plain.rows(), wanted.rows(), strict=True))
        assert max(gaps) < 30 * rounding, (gaps, rounding)
    return True


@pytest.mark.usefixtures("build")
@settings(max_examples=4, deadline=None)
@given(st.data())
def test_drawn_networks_equal_the_definition(data: st.DataObject) -> None:
    """Of blocks and seeds, all stages, isolations and objective passes, in odd batches."""
    block = data.draw(functions(INSIDE))
    seeds = [data.draw(functions(shape)) for shape in {INSIDE, block.shapes()[-1]}]
    batch = data.draw(st.sampled_from([1, 3, 5, 9, 13, 17]))
    assume(equal(network(block, tuple(seeds), data.draw(st.sampled_from(list(Isolation))), batch), batch))


@pytest.mark.parametrize("name", STEPS)
def test_every_operation_equals_the_definition(name: str) -> None:
    """As a block that an objective pass goes through, and as a seed."""
    block = Drawn((name,), INSIDE)
    seeds = tuple(Drawn((name,), shape) for shape in dict.fromkeys((INSIDE, block.shapes()[-1])))
    seeds = tuple(each if STEPS[name].fits(*each.shape) else each._replace(names=("tanh",)) for each in seeds)
    assert any(equal(network(block, seeds, Isolation.OBJECTIVE, 11), 11, seed) for seed in range(3, 7))
