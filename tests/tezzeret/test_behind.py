"""A seed in TRAINING is behind the host: whatever it is, the host neither sees nor feels it."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

from esper.leyline.config import Isolation
from esper.leyline.stages import Stage
from esper.tezzeret import eager, oracle

_spec = importlib.util.spec_from_file_location("tezzeret_lives", Path(__file__).with_name("lives.py"))
lives = sys.modules.setdefault("tezzeret_lives", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(lives)
smooth, E, F64 = lives.smooth, lives.E, lives.F64

D, T, B, S, P = (int(getattr(Stage, name)) for name in ("DORMANT", "TRAINING", "BLENDING", "SHADOWING", "PROBATIONARY"))
SLOTS = (0, "block0:block1", 1, "input:logits")
WITH = [T, T, T, T, B, T, T, B, T, S, P, T]
"""Stages [E, S] with seeds in TRAINING, alone and between seeds that are merged."""
KINDS = [0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0]
GATED = [1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 0]
POISONS = (None, math.inf, -math.inf, math.nan)


def scene(isolation, optimizers=("sgd", "adam")):
    """Structure, numbers, learners, and the tables with and without the seeds in TRAINING."""
    choice = smooth.SmoothCase(SLOTS, optimizers=optimizers, isolation=isolation)
    structure, hypers = smooth.build(choice)
    behind = smooth.table_of(structure, WITH, KINDS, GATED)
    without = smooth.table_of(structure, [D if stage == T else stage for stage in WITH], KINDS, GATED)
    alphas = torch.where(torch.as_tensor(without.stage) == D, 0.0, 0.6).to(F64)
    return structure, hypers, smooth.learners_at(structure, behind, 9), behind, without, alphas


def columns_of(structure, table, widths):
    """Columns of the arena (or of the buffers) that belong to slots in TRAINING, bool [E, ...]."""
    return torch.as_tensor(table.stage == T)[:, widths]


def poisoned(structure, learners, table, number):
    if number is None:
        return learners
    mask = columns_of(structure, table, structure.slot_of_column) & smooth.used(structure, table)
    params = torch.where(mask, number, learners.seeds.params)
    return learners._replace(seeds=learners.seeds._replace(params=params))


@pytest.mark.parametrize("poison", POISONS, ids=str)
@pytest.mark.parametrize("isolation", Isolation, ids=lambda isolation: isolation.value)
@pytest.mark.parametrize("backend", [eager, oracle], ids=["eager", "oracle"])
def test_the_output_keeps_its_bits(backend, isolation, poison):
    structure, _, learners, behind, without, alphas = scene(isolation)
    runs, batch = backend.build(structure, lives.CPU), smooth.batch_of(4)
    learners = poisoned(structure, learners, behind, poison)
    outputs, after = runs.forward(runs.plan(behind, lives.CPU), learners, alphas, batch)
    expected, bare = runs.forward(runs.plan(without, lives.CPU), learners, alphas, batch)
    assert expected.isfinite().all() and torch.equal(outputs, expected)
    assert torch.equal(after.buffers, bare.buffers)


@pytest.mark.parametrize("poison", POISONS, ids=str)
@pytest.mark.parametrize("isolation", [Isolation.STRAIGHT_THROUGH, Isolation.OBJECTIVE], ids=lambda each: each.value)
@pytest.mark.parametrize("optimizers", [("sgd", "adam"), ("adamw", "sgd")], ids="-".join)
def test_hosts_and_merged_seeds_learn_as_without_them(optimizers, isolation, poison):
    """Parameters, moments and running statistics: objective passes leave no trace in them either, hosts' bits stay."""
    structure, hypers, learners, behind, without, alphas = scene(isolation, optimizers)
    learners = poisoned(structure, learners, behind, poison)
    ends = []
    for table in (behind, without):
        found = learners
        for batch in (smooth.batch_of(4), smooth.batch_of(5)):
            plan = eager.plan(structure, table, lives.CPU)
            found, seen = eager.minibatch_step(structure, hypers, plan, found, alphas, batch)
        ends.append((found, seen))
    (found, seen), (bare, expected) = ends
    assert all(torch.equal(one, other) for one, other in zip(found.host, bare.host, strict=True))
    assert torch.equal(found.buffers, bare.buffers) and torch.equal(seen.loss, expected.loss)
    others = ~columns_of(structure, behind, structure.slot_of_column)
    # a row's sum of squares may be taken in another order where there are more rows: AVX-512
    torch.testing.assert_close(found.seeds.params[others], bare.seeds.params[others], rtol=1e-12, atol=1e-15)
    held = ~columns_of(structure, behind, structure.slot_of_buffer)
    assert torch.equal(found.seed_buffers[held], bare.seed_buffers[held])
    if poison is None:
        assert not torch.equal(found.seeds.params, bare.seeds.params), "seeds in TRAINING do learn"
        assert not torch.equal(found.seed_buffers, bare.seed_buffers), "and their own statistics move"


def test_without_isolation_the_host_feels_them():
    structure, hypers, learners, behind, without, alphas = scene(Isolation.NONE)
    ends = [
        eager.minibatch_step(
            structure, hypers, eager.plan(structure, table, lives.CPU), learners, alphas, smooth.batch_of(4)
        )
        for table in (behind, without)
    ]
    assert not torch.allclose(ends[0][0].host.params, ends[1][0].host.params)


@pytest.mark.parametrize("isolation", [Isolation.STRAIGHT_THROUGH, Isolation.OBJECTIVE], ids=lambda each: each.value)
def test_seeds_in_training_do_not_feel_each_other(isolation):
    structure, hypers, learners, behind, _, alphas = scene(isolation)
    ill = columns_of(structure, behind, structure.slot_of_column) & (structure.slot_of_column == 0)
    params = torch.where(ill, math.nan, learners.seeds.params)
    sick = learners._replace(seeds=learners.seeds._replace(params=params))
    plan = eager.plan(structure, behind, lives.CPU)
    found, bare = (
        eager.minibatch_step(structure, hypers, plan, given, alphas, smooth.batch_of(4))[0]
        for given in (sick, learners)
    )
    assert torch.equal(found.seeds.params[~ill], bare.seeds.params[~ill])
    assert found.seeds.params[ill].isnan().any()
