"""Derivatives from outside: of minibatches, epochs and whole lives, exact in both modes and of second order.

Two sources of truth: a loop of plain autograd that stops gradients at one level (``unrolled``), central differences.
"""

import importlib.util
import logging
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch.func import grad, jvp, vjp, vmap

from esper.kasmina.host import Host
from esper.kasmina.objectives import cross_entropy
from esper.kasmina.structure import build_structure
from esper.leyline.config import Isolation
from esper.leyline.stages import ACTIVE, Stage

_spec = importlib.util.spec_from_file_location("tezzeret_lives", Path(__file__).with_name("lives.py"))
lives = sys.modules.setdefault("tezzeret_lives", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(lives)
smooth, E, F64 = lives.smooth, lives.E, lives.F64

logger = logging.getLogger(__name__)
EXACT, SGD, ADAM = 1e-9, 1e-6, 1e-4
WEIGHTS = torch.linspace(0.5, 1.5, E, dtype=F64)
OPTIMIZERS = ("sgd", "adam", "adamw")
SLOTS = (
    (0, "block0:block1", 1),
    ("input", 0, "input:logits"),
    (0, "block0:block1", "block0:logits"),
    (0, 0, "block1:logits"),
)


def total(life, by_epoch, numbers):
    """The weighted losses at the end of a life."""
    return (WEIGHTS * lives.live(life, numbers, by_epoch)).sum()


def per_env(found, direction):
    """The derivative of every environment's own loss along a direction, from the gradient of the weighted sum."""
    parts = []
    for name, part in found.items():
        product = part * direction[name]
        parts.append((product.sum(0) if name == "alphas" else product).reshape(E, -1).sum(1))
    return torch.stack(parts).sum(0) / WEIGHTS


def relative(found, truth):
    """Largest difference, relative to the largest number."""
    assert found.isfinite().all()
    return ((found - truth).abs().max() / truth.abs().max().clamp(min=1e-6)).item()


def differences(life, by_epoch, numbers, direction, slope):
    """How far central differences are from a slope [E]: the first of three steps that is close enough, or the best."""
    errors, limit = [], tolerance(life.structure)
    for size in (1e-5, 1e-4, 1e-6):
        ends = [lives.live(life, lives.shifted(numbers, direction, side * size), by_epoch) for side in (1, -1)]
        errors.append(relative((ends[0] - ends[1]) / (2 * size), slope))
        if errors[-1] < limit:
            break
    return min(errors)


def tolerance(structure):
    """Of central differences."""
    config = structure.config
    return SGD if {config.host_optimizer, config.seed_optimizer} == {"sgd"} else ADAM


@st.composite
def cases(draw):
    """A structure, a table of slots, minibatches, and whether they are one epoch."""
    slots = draw(st.sampled_from(SLOTS))
    choice = smooth.SmoothCase(
        slots,
        norm=draw(st.booleans()),
        tied=draw(st.booleans()),
        optimizers=(draw(st.sampled_from(OPTIMIZERS)), draw(st.sampled_from(OPTIMIZERS))),
        isolation=draw(st.sampled_from(Isolation)),
        squares=draw(st.booleans()),
        clip=draw(st.sampled_from((0.3, math.inf))),
    )
    cells = E * len(slots)
    stages = st.sampled_from((*ACTIVE, Stage.TRAINING, Stage.BLENDING, Stage.DORMANT)).map(int)
    columns = (
        draw(st.lists(each, min_size=cells, max_size=cells)) for each in (stages, st.integers(0, 1), st.booleans())
    )
    seed, count = draw(st.integers(0, 10**6)), draw(st.integers(1, 2))
    return choice, *lives.begin(choice, [tuple(columns)], (count,), seed), draw(st.booleans())


def met(choice, table):
    """What a case covers."""
    active = table.within(ACTIVE)
    stages = {("stage", int(stage), bool(g)) for stage, g in zip(table.stage[active], table.gated[active], strict=True)}
    parts = choice._replace(slots=(), clip=choice.clip == math.inf)._asdict()
    return (
        stages
        | {("slots", choice.slots)}
        | {(name, part) for name, part in parts.items() if name != "optimizers"}
        | {("optimizer", name) for name in choice.optimizers}
    )


def check_first_order(life, numbers, by_epoch, direction):
    """Both modes against the unrolled loop; returns the exact gradient of the weighted losses."""
    value, truth = lives.gradient(life, numbers, WEIGHTS)
    live = partial(lives.live, life, by_epoch=by_epoch)
    losses, pull = vjp(live, numbers)
    same, tangent = jvp(live, (numbers,), (direction,))
    errors = (
        relative(losses, value),
        relative(same, value),
        lives.gap(pull(WEIGHTS)[0], truth),
        relative(tangent, per_env(truth, direction)),
    )
    assert max(errors) < EXACT, errors
    return truth, max(errors)


def check_second_order(life, numbers, direction, first, twice):
    """Forward over reverse, if ``twice`` also reverse over reverse, against the unrolled loop."""
    gradient = grad(partial(total, life, False))
    truth = lives.curvature(life, numbers, WEIGHTS, direction)
    found, forward = jvp(gradient, (numbers,), (direction,))

    def along(numbers):
        return sum((part * direction[name]).sum() for name, part in gradient(numbers).items())

    errors = [lives.gap(found, first), lives.gap(forward, truth)]
    errors += [lives.gap(grad(along)(numbers), truth)] if twice else []
    assert max(errors) < EXACT, errors
    return max(errors)


def test_derivatives_of_drawn_minibatches_are_exact():
    seen, worst = set(), {"exact": 0.0, "sgd": 0.0, "adam": 0.0}

    @settings(max_examples=16, deadline=None, derandomize=True, database=None)
    @given(cases())
    def check(case):
        choice, life, numbers, by_epoch = case
        covered = met(choice, life.phases[0].table)
        for each in sorted(map(str, covered)):
            event(each)
        seen.update(covered)
        direction = lives.direction_at(numbers, 77)
        truth, error = check_first_order(life, numbers, by_epoch, direction)
        worst["exact"] = max(worst["exact"], error)
        coarse = differences(life, by_epoch, numbers, direction, per_env(truth, direction))
        limit = tolerance(life.structure)
        assert coarse < limit
        kind = "sgd" if limit == SGD else "adam"
        worst[kind] = max(worst[kind], coarse)

    check()
    logger.info("worst errors: %s", worst)
    assert {("stage", int(stage), gated) for stage in ACTIVE for gated in (False, True)} <= seen
    assert {("optimizer", name) for name in OPTIMIZERS} <= seen
    assert {("isolation", isolation) for isolation in Isolation} <= seen
    assert {(name, on) for name in ("norm", "tied", "squares", "clip") for on in (False, True)} <= seen


T, D, G, TR, BL, SH, PR = 3, 1, 2, 3, 4, 5, 6
KINDS, GATED = [0, 0, 1, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 1, 1, 0, 1]
STAGES = (
    ([D, TR, SH, TR, D, D, TR, BL, D], 1),
    ([G, BL, SH, TR, G, G, G, BL, G], 1),
    ([TR, BL, SH, BL, TR, TR, TR, BL, TR], 2),
    ([BL, BL, PR, BL, BL, BL, BL, BL, BL], 1),
    ([BL, SH, PR, SH, BL, BL, SH, BL, BL], 1),
    ([SH, SH, PR, SH, SH, SH, SH, SH, SH], 1),
)
"""A life of three environments with three slots: every slot but some of the second and third germinates on the way, one
where an older seed was.
"""
LIVES = {
    "straight_through": smooth.SmoothCase(),
    "objective": smooth.SmoothCase(SLOTS[1], optimizers=("adam", "adamw"), isolation=Isolation.OBJECTIVE),
    "none": smooth.SmoothCase(SLOTS[2], optimizers=("sgd", "adam"), isolation=Isolation.NONE, tied=False),
}


def whole_life(name, seed=40):
    tables = [(stages, KINDS, GATED) for stages, _ in STAGES]
    return lives.begin(LIVES[name], tables, tuple(count for _, count in STAGES), seed)


@pytest.mark.parametrize("name", LIVES)
def test_a_whole_life_can_be_differentiated(name):
    life, numbers = whole_life(name)
    direction = lives.direction_at(numbers, 5)
    truth, first = check_first_order(life, numbers, False, direction)
    second, coarse = check_second_order(life, numbers, direction, truth, name == "straight_through"), []
    for parts in (("host", "seeds", "initial"), ("host_lr", "seed_lr"), ("alphas",)):
        assert min(truth[part].abs().max() for part in parts) > 1e-4
        along = lives.direction_at(numbers, 6, parts)
        coarse.append(differences(life, False, numbers, along, per_env(truth, along)))
    logger.info("%s: first %.1e, second %.1e, differences %.1e", name, first, second, max(coarse))
    assert max(coarse) < tolerance(life.structure), coarse


def test_what_a_seed_was_before_it_germinated_is_forgotten():
    life, numbers = whole_life("straight_through")
    found = grad(partial(total, life, False))(numbers)
    germinated = life.phases[1].table.within((Stage.GERMINATED,))
    fresh = torch.as_tensor(germinated)[:, life.structure.slot_of_column]
    assert (found["seeds"][fresh] == 0).all() and (found["initial"][~fresh] == 0).all()
    assert found["seeds"][~fresh].any() and found["initial"][fresh].any(), "the others do matter"


def test_lives_can_be_mapped_over_numbers_under_one_plan():
    life, numbers = lives.begin(LIVES["objective"], [(STAGES[2][0], KINDS, GATED)], (2,), 50)
    mapped = {part: numbers[part] for part in ("host_lr", "seed_lr", "alphas")}
    several = {part: torch.stack([value, 0.8 * value]) for part, value in mapped.items()}
    direction = lives.direction_at(mapped, 8)

    def losses(values):
        return {"losses": lives.live(life, numbers | values)}

    def gradients(values):
        return grad(lambda values: losses(values)["losses"].sum())(values)

    def slopes(values):
        return jvp(losses, (values,), (direction,))[1]

    for function in (losses, gradients, slopes):
        found = vmap(function)(several)
        for i in range(2):
            alone = function({part: value[i] for part, value in several.items()})
            assert lives.gap({part: value[i] for part, value in found.items()}, alone) < EXACT


def test_detaching_would_be_wrong():
    """So the laws above can fail: constants that are cut off at every level give other derivatives."""
    life, numbers = whole_life("straight_through")
    truth, cut = (lives.gradient(life, numbers, WEIGHTS, cut)[1] for cut in (False, True))
    found = grad(partial(total, life, False))(numbers)
    assert lives.gap(found, truth) < EXACT
    wrong = {name: lives.gap({name: cut[name]}, {name: truth[name]}) for name in truth}
    logger.info("detached: %s", wrong)
    assert min(wrong[name] for name in ("host", "host_lr", "seed_lr", "alphas", "initial")) > 0.01


@pytest.mark.parametrize(
    ("clip", "optimizers"), [(math.inf, ("adam", "adamw")), (0.7, ("sgd", "adam")), (0.0, ("adamw", "sgd"))]
)
def test_no_derivative_is_nan_where_gradients_vanish(clip, optimizers):
    """Hosts and seeds of zeros before their first step, inputs of zeros, targets that ask for nothing, alphas of 0."""
    choice = smooth.SmoothCase(optimizers=optimizers, clip=clip, isolation=Isolation.OBJECTIVE)
    life, numbers = lives.begin(choice, [(STAGES[3][0], KINDS, GATED), (STAGES[2][0], KINDS, GATED)], (1, 1), 0)
    structure = build_structure(
        life.structure.config, life.structure.host, smooth.BLUEPRINTS, cross_entropy(label_smoothing=1.0), lives.CPU
    )
    nothing = torch.utils._pytree.tree_map(torch.zeros_like, life.learners)
    nothing = nothing._replace(buffers=1 + nothing.buffers, seed_buffers=1 + nothing.seed_buffers)
    phases = tuple(
        phase._replace(batches=tuple(batch._replace(inputs=0 * batch.inputs) for batch in phase.batches))
        for phase in life.phases
    )
    life = life._replace(structure=structure, learners=nothing, phases=phases)
    numbers = {name: value if name.endswith("lr") else 0 * value for name, value in numbers.items()}
    gradient, direction = grad(partial(total, life, False)), lives.direction_at(numbers, 3)
    first, second = jvp(gradient, (numbers,), (direction,))
    slope = jvp(partial(lives.live, life), (numbers,), (direction,))[1]
    for part in (*first.values(), *second.values(), slope):
        assert part.isfinite().all()


def test_a_compiled_function_may_hold_the_gradient_of_two_steps():
    """One graph, and the bits of the same function uncompiled."""
    host = Host("tiny", (8,), smooth.CLASSES, (smooth.wide_block(False), smooth.head(False)))
    choice = smooth.SmoothCase(slots=(0,))
    structure, hypers = smooth.build(choice, host)
    table = smooth.table_of(structure, [TR, BL, SH], [0, 0, 0], [0, 1, 0])
    learners, plan = smooth.learners_at(structure, table, 1), lives.eager.plan(structure, table, lives.CPU)
    batches = [smooth.batch_of(seed)._replace(inputs=smooth.drawn(seed, E, smooth.B, 8)) for seed in (2, 3)]
    alphas = torch.tensor([[0.0], [0.4], [0.8]], dtype=F64)

    def outcome(rates):
        found, seen = learners, None
        for batch in batches:
            numbers = hypers.replace(host_lr=rates)
            found, seen = lives.eager.minibatch_step(structure, numbers, plan, found, alphas, batch)
        return seen.loss.sum() + found.seeds.params.square().sum()

    compiled = torch.compile(grad(outcome), backend="eager", fullgraph=True)
    assert torch.equal(compiled(hypers.host_lr), grad(outcome)(hypers.host_lr))
