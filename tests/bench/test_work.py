"""Counts of work against torch's own counter of operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import esper
from esper.bench.case import mixed
from esper.bench.work import evaluation_work, train_work
from esper.kasmina.counterfactuals import single_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.actions import Blend
from esper.leyline.learners import learners_of
from esper.leyline.stages import ACTIVE, MERGED
from esper.runtime.tasks import text
from esper.tolaria.training import train_epoch

E = 5
SMALL = {"steps_per_epoch": 2, "batch_size": 3}


@pytest.fixture(scope="module", params=["conv", "token"])
def task(request, small_task):
    """Without the blueprint whose convolution goes channel by channel: torch's counter sees no products there."""
    if request.param == "token":
        small_text = text("a quick brown fox jumps over the lazy dog; " * 40)
        return small_text._replace(settings=small_text.settings | SMALL)
    return small_task._replace(blueprints=tuple(b for b in small_task.blueprints if b.name != "depthwise"))


def attention(query, key, value, *more, **options):
    """Operations of scores and of their product with the values."""
    batch, heads, length, width = query
    return 4 * batch * heads * length * length * width


def counted(run):
    """What torch counts; its counter does not know the CPU's fused attention."""
    fused = "_scaled_dot_product_flash_attention_for_cpu"
    mapping = {getattr(torch.ops.aten, fused): attention}
    mapping[getattr(torch.ops.aten, f"{fused}_backward")] = lambda grad, *more, **options: 2 * attention(*more)
    with FlopCounterMode(display=False, custom_mapping=mapping) as mode:
        run()
    return mode.get_total_flops()


def scene(task, share, gated):
    """The definition lets every gate on offer take part, whether it is looked through or not: so all are, or none."""
    engine = esper.make(task, E, backend="eager", blends=(Blend.GATED if gated else Blend.LINEAR,))
    state = mixed(engine, share, MERGED if gated else ACTIVE)
    table = take_table(state.slots)
    return engine, state, table, engine.backend.plan(table, torch.device("cpu"))


@pytest.mark.parametrize(("share", "gated"), [(0.0, True), (0.4, False), (0.4, True), (1.0, False)])
def test_training_does_the_operations_that_are_claimed(task, share, gated):
    engine, state, table, plan = scene(task, share, gated)
    claimed = train_work(engine, table)
    arguments = (engine.config, engine.backend, engine.hypers, state, plan, engine.data)
    assert counted(lambda: train_epoch(*arguments)) == claimed.flops
    assert claimed.sgd_steps == E * engine.config.steps_per_epoch
    assert claimed.samples == E * engine.config.steps_per_epoch * engine.config.batch_size


@pytest.mark.parametrize(("share", "gated"), [(0.0, True), (0.4, False), (0.4, True), (1.0, False)])
def test_validation_does_the_operations_that_are_claimed(task, share, gated):
    engine, state, table, plan = scene(task, share, gated)
    samples, found = (engine.data.val_inputs, engine.data.val_targets), single_changes(table)
    arguments = (engine.hypers, plan, learners_of(state), state.slots.alpha, samples)
    forked = counted(lambda: engine.backend.evaluate(*arguments, found))
    assert forked == evaluation_work(engine, table).flops
    nobody = found._replace(env=found.env[:0], change=found.change[:0])
    alone = counted(lambda: engine.backend.evaluate(*arguments, nobody))
    assert alone == evaluation_work(engine, table, forks=False).flops
    assert (alone == forked) == (share == 0.0)
