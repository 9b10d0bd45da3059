"""A step on a device that is not there: nothing between the plan's download and the event asks for a value."""

import pytest
import torch
from device_fake import THERE, device, engine_there

import esper
from esper import engine as story
from esper.bench.case import mixed
from esper.kasmina import lifecycle
from esper.kasmina.slot_table import take_table
from esper.leyline.config import Isolation
from esper.leyline.stages import ACTIVE, Stage
from esper.runtime import debug
from esper.runtime.tasks import TASKS, named

SMALL = {"steps_per_epoch": 1, "batch_size": 4, "val_samples": 8, "horizon": 4}
STAGES = (*ACTIVE, Stage.GERMINATED, Stage.CULLED)

UPLOADS = 1
"""In a step: fresh seeds, the plan with its evaluation, and where the effects of seeds belong, side by side."""


def step_there(engine, monkeypatch, padded=False):
    """One step with seeds in all stages; what crossed after the decision was carried out."""
    state, wait = mixed(engine, 1.0, STAGES), torch.zeros(engine.config.num_envs, dtype=torch.int64)
    accuracy = state.signals.val_accuracy
    slots, _ = lifecycle.apply_action(engine.structure, engine.hypers, state.slots, wait, accuracy)
    table = take_table(slots)
    assert set(map(int, STAGES)) == set(table.stage.flatten().tolist()) or engine.config.num_slots < 3
    monkeypatch.setattr(story, "take_table", lambda slots: table)
    with debug.watching(False), device() as (bring, crossings):
        there, moved, action = engine_there(engine, bring, padded), bring(state), bring(wait)
        crossings.seen.clear()
        after, event = there.step(moved, action)
        assert {leaf.device for leaf in after.flatten_keys(".").values()} == {THERE}
        assert event.evaluation.loss.device == event.judgement.verdict.device == THERE
    return crossings


@pytest.mark.parametrize("name", TASKS)
def test_a_step_of_every_preset(name, monkeypatch):
    crossings = step_there(esper.make(named(name), 3, backend="eager", **SMALL), monkeypatch)
    assert crossings.downloads == 0 and crossings.uploads == UPLOADS


CASES = {
    "straight-through": (Isolation.STRAIGHT_THROUGH, ("adam", "sgd"), False),
    "own objective, padded": (Isolation.OBJECTIVE, ("sgd", "adamw"), True),
    "not isolated": (Isolation.NONE, ("adamw", "adam"), False),
}


@pytest.mark.parametrize("isolation, optimizers, padded", CASES.values(), ids=CASES)
def test_a_step_of_every_isolation_and_optimizer(small_task, monkeypatch, isolation, optimizers, padded):
    host, seeds = optimizers
    settings = {"isolation": isolation, "host_optimizer": host, "seed_optimizer": seeds}
    task = small_task._replace(blueprints=small_task.blueprints[:2])
    crossings = step_there(esper.make(task, 3, backend="eager", **SMALL | settings), monkeypatch, padded)
    assert crossings.downloads == 0 and crossings.uploads == UPLOADS


def test_what_asks_for_a_value_raises_there():
    """Otherwise nothing above could fail."""
    with device() as (bring, crossings):
        x = bring(torch.arange(4.0))
        crossings.seen.clear()
        asked = (lambda: x.sum().item(), lambda: bool(x.any()), x.tolist, lambda: x[x > 1], lambda: x + torch.ones(4))
        for ask in asked:
            with pytest.raises(RuntimeError):
                ask()
        assert crossings.seen == []
        x.cpu()
        torch.ones(4).to(THERE)
        assert crossings.downloads == crossings.uploads == 1 and crossings.seen == [("cpu", 16), (THERE.type, 16)]
