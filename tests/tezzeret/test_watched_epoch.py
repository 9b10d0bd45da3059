"""What a backend shows of an epoch's gradients: autograd's, of every minibatch; and no bit is changed."""

from dataclasses import replace

import pytest
import torch
from tezzeret_states import mixed_state

import esper
from esper.kasmina.slot_table import take_table
from esper.leyline.config import Precision
from esper.leyline.learners import learners_of
from esper.leyline.stages import ACTIVE, is_in
from esper.tezzeret import oracle
from esper.tezzeret.backend import BackendError, WatchedBatches
from esper.tezzeret.batches import batch_at
from esper.tezzeret.inductor.graph import build_graph
from esper.tezzeret.inductor.unit_calls import build_units
from esper.tezzeret.native.library import library
from esper.tolaria.training import draw_batches
from esper.utils.tree import leaves_of

SIZES = {"batch_size": 8, "steps_per_epoch": 3, "eval_batch_size": 16}
NATIVE = pytest.param(
    "native", Precision.FLOAT32, 2e-4, marks=pytest.mark.skipif(library() is None, reason="no library")
)
PLACES = [pytest.param("eager", Precision.FLOAT64, 1e-9), NATIVE]


def collect(kept, grads):
    return (*kept, grads)


FORMS = {"units": build_units, "graph": build_graph}
"""The two forms of the compiled backend; what they call is traced, and not compiled further."""


def prepared(task, backend, precision, **settings):
    name = "eager" if backend in FORMS else backend
    engine = esper.make(task, 6, backend=name, **(SIZES | {"precision": precision} | settings))
    if backend in FORMS:
        engine = replace(engine, backend=FORMS[backend](engine.structure, "eager"))
    state = mixed_state(engine, 3)
    plan = engine.backend.plan(take_table(state.slots), torch.device("cpu"))
    arguments = (engine.hypers, plan, learners_of(state), state.slots.alpha)
    return engine, state, arguments, draw_batches(engine.config, state, engine.data)


def expected(engine, state, batches):
    """Gradients of every minibatch by the oracle: autograd of summed losses, [k] of host [E, P] and arena [E, Q]."""
    structure, table = engine.structure, take_table(state.slots)
    held, learners = oracle._held(table, torch.device("cpu")), learners_of(state)
    target, found = engine.hypers.alpha_target.expand(6), []
    for step in range(batches.length):
        batch = batch_at(structure, batches, step)
        grads = oracle.gradients(structure, target, held, learners, state.slots.alpha, batch)
        found.append((grads.host, grads.seeds))
        learners, _ = oracle.minibatch_step(structure, engine.hypers, table, learners, state.slots.alpha, batch)
    return found


@pytest.mark.parametrize(("backend", "precision", "tolerance"), PLACES)
def test_gradients_of_every_minibatch_are_autograds(small_task, backend, precision, tolerance):
    engine, state, arguments, batches = prepared(small_task, backend, precision)
    _, _, kept = engine.backend.watched_epoch(*arguments, WatchedBatches(batches, (), collect))
    active, seen = is_in(state.slots.stage, ACTIVE), 0
    assert len(kept) == batches.length == 3
    for grads, (host, seeds) in zip(kept, expected(engine, state, batches), strict=True):
        assert torch.allclose(grads.host, host, rtol=tolerance, atol=tolerance)
        for number, (slot, found) in enumerate(zip(engine.structure.slots, grads.seeds, strict=True)):
            assert torch.equal(found.present, active[:, number])
            rows = [row for part in found.grads for row in part]
            for env in active[:, number].nonzero().flatten().tolist():
                kind = int(state.slots.blueprint[env, number])
                row = rows[int(found.row_of[env])]
                assert torch.allclose(row, seeds[env, slot.blueprint_columns(kind)], rtol=tolerance, atol=tolerance)
                seen += 1
    assert seen >= 12


@pytest.mark.parametrize(
    "backend",
    ["eager", pytest.param("native", marks=NATIVE.marks), "units", pytest.param("graph", marks=pytest.mark.large)],
)
@pytest.mark.parametrize("settings", [{}, {"mirror": True, "crop_padding": 1}], ids=["stored", "augmented"])
def test_watching_changes_no_bit(small_task, backend, settings):
    engine, _, arguments, batches = prepared(small_task, backend, Precision.FLOAT32, **settings)
    plain = engine.backend.epoch(*arguments, batches)
    *watched, kept = engine.backend.watched_epoch(*arguments, WatchedBatches(batches, (), collect))
    assert len(kept) == batches.length
    for one, other in zip(leaves_of(tuple(plain)), leaves_of(tuple(watched)), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    *unwatched, nothing = engine.backend.watched_epoch(*arguments, WatchedBatches(batches))
    assert nothing is None
    for one, other in zip(leaves_of(tuple(plain)), leaves_of(tuple(unwatched)), strict=True):
        assert torch.equal(one, other)


def test_who_shows_no_gradients_says_so(small_task):
    assert esper.make(small_task, 2, backend="eager", deterministic="strict").backend.watched_epoch is None
    assert esper.make(small_task, 2, backend="oracle").backend.watched_epoch is None


@pytest.mark.skipif(library() is None, reason="no library")
def test_a_derivative_of_a_watched_epoch_is_an_error_and_no_silent_zero(small_task):
    engine, _, (hypers, plan, learners, alphas), batches = prepared(small_task, "native", Precision.FLOAT32)
    asked = alphas.clone().requires_grad_()
    with pytest.raises(BackendError, match="watched_epoch: alphas requires a gradient"):
        engine.backend.watched_epoch(hypers, plan, learners, asked, WatchedBatches(batches, (), collect))
    moved = batches._replace(inputs=batches.inputs.clone().requires_grad_())
    with pytest.raises(BackendError, match=r"watched_epoch: watched\.batches\.inputs requires a gradient"):
        engine.backend.watched_epoch(hypers, plan, learners, alphas, WatchedBatches(moved, (), collect))
