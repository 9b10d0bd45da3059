"""Seeds that train behind the host while a bypass from the tokens is part of the network: tokens have no gradient."""

from dataclasses import replace

import pytest
import torch

import esper
from esper.bench.case import mixed
from esper.kasmina.slot_table import take_table
from esper.leyline.config import Isolation, Precision
from esper.leyline.stages import ACTIVE, Stage, is_in
from esper.runtime.tasks import named
from esper.tezzeret import oracle

E = 10
SIZES = {"steps_per_epoch": 2, "batch_size": 3, "val_samples": 4, "eval_batch_size": 4, "precision": Precision.FLOAT64}


@pytest.mark.parametrize("isolation", Isolation, ids=lambda each: each.value)
def test_a_step_equals_the_oracles(isolation):
    engine = esper.make(named("chars"), E, backend="eager", isolation=isolation, **SIZES)
    truth = replace(engine, backend=oracle.build(engine.structure, torch.device("cpu")))
    state, wait = mixed(engine, 0.9, ACTIVE), torch.zeros(E, dtype=torch.int64)
    stage = state.slots.stage
    behind, beside = (
        (stage[:, :2] == int(Stage.TRAINING)).any(1),
        is_in(stage[:, 2], (Stage.BLENDING, Stage.FOSSILIZED)),
    )
    assert (behind & beside).any() and take_table(state.slots).any_held
    (after, event), (expected, other) = (each.step(state, wait) for each in (engine, truth))
    close = {"rtol": 1e-9, "atol": 1e-10}
    for name in ("host", "seeds"):
        torch.testing.assert_close(after.get(name).get("params"), expected.get(name).get("params"), **close)
    torch.testing.assert_close(event.evaluation.effect, other.evaluation.effect, **close)
