"""Counts of work against torch's own counter of operations; placed seeds; the plain network."""

from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import esper
from esper.bench.case import SEED, Bench
from esper.bench.cases import cases_of, trunk
from esper.bench.scenes import Seeds, chosen_cells, plain_task, seeded
from esper.bench.work import Work, evaluation_work, train_work
from esper.kasmina.plan import make_plan, take_census
from esper.leyline.actions import Blend
from esper.leyline.config import Precision
from esper.leyline.stages import ACTIVE, MERGED, Stage
from esper.runtime.tasks import text
from esper.tolaria.evaluation import evaluate, lane_scores
from esper.tolaria.training import train_epoch

E = 5


@pytest.fixture(scope="module")
def small_text():
    corpus = "a quick brown fox jumps over the lazy dog; " * 40
    return text(corpus)


@pytest.fixture(scope="module", params=["conv", "token"])
def task(request, small_task, small_text):
    return small_task if request.param == "conv" else small_text._replace(settings=small_text.settings | SMALL)


SMALL = {"steps_per_epoch": 2, "batch_size": 3}


def convolution(x, weight):
    """Operations of a convolution of n networks, from shapes: 2 per multiply-add."""
    n, batch, _, height, width = x
    return 2 * n * batch * height * width * weight[1] * weight[2] * weight[3] * weight[4]


def attention(query, key, value, *more, **options):
    """Operations of scores and of their product with the values."""
    batch, heads, length, width = query
    return 4 * batch * heads * length * length * width


def counted(run):
    """What torch counts; its counter knows neither our convolutions nor the CPU's fused attention."""
    mapping, ops = {}, torch.ops.esper
    for form in ("grouped", "direct"):
        mapping[getattr(ops, f"conv2d_{form}")] = lambda x, w, **_: convolution(x, w)
        for half in ("grad_input", "grad_weight"):
            mapping[getattr(ops, f"conv2d_{form}_{half}")] = lambda g, x, w, **_: convolution(x, w)
    fused = "_scaled_dot_product_flash_attention_for_cpu"
    mapping[getattr(torch.ops.aten, fused)] = attention
    mapping[getattr(torch.ops.aten, f"{fused}_backward")] = lambda grad, *more, **options: 2 * attention(*more)
    with FlopCounterMode(display=False, custom_mapping=mapping) as mode:
        run()
    return mode.get_total_flops()


def scene(task, share=0.7, stages=ACTIVE, blends=(Blend.LINEAR, Blend.GATED)):
    engine = esper.make(task, E, compile=False)
    kinds = tuple(range(len(task.blueprints)))
    return engine, seeded(engine, share, Seeds(kinds, stages, blends), SEED)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_training_does_the_operations_that_are_claimed(task, share):
    engine, state = scene(task, share)
    plan = make_plan(engine.network, state.slots)
    claimed = train_work(engine, plan.census)
    assert counted(lambda: train_epoch(engine.network, engine.hypers, state, plan, engine.data)) == claimed.flops
    assert claimed.sgd_steps == E * engine.config.steps_per_epoch
    assert claimed.samples == E * engine.config.steps_per_epoch * engine.config.batch_size


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_validation_does_the_operations_that_are_claimed(task, share):
    engine, state = scene(task, share)
    census = take_census(state.slots)
    with_lanes = counted(lambda: evaluate(engine.network, engine.hypers, state, census, engine.data))
    assert with_lanes == evaluation_work(engine, census).flops
    lanes = trunk(engine.network, state)
    alone = counted(lambda: lane_scores(engine.network, engine.hypers, state, lanes, engine.data))
    assert alone == evaluation_work(engine, census, forks=False).flops
    assert (alone == with_lanes) == (share == 0.0)


def test_bytes_of_training_by_hand(small_task):
    """One stage at a time: five passes of every map, eight of every parameter and its moment."""
    engine, state = scene(small_task, 1.0, stages=(Stage.FOSSILIZED,))
    census = take_census(state.slots)
    samples, maps = 2 * 8, [2 * 4 * 4, 4 * 4 * 4, 8 * 4 * 4]
    params = [sum(p.size for p in stage.params) for stage in engine.network.host.blocks]
    seeds = sum(engine.network.layouts[slot][census.blueprint[env, slot]].size for env in range(E) for slot in range(3))
    numbers = 5 * samples * E * (2 * sum(maps) + 4) + 2 * 8 * (E * sum(params) + seeds)
    assert train_work(engine, census).bytes == 4 * numbers


def test_work_adds_up():
    assert Work(1, 2, 3, 4, 5).plus(Work(10, 20, 30, 40, 50)) == Work(11, 22, 33, 44, 55)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_seeds_are_placed_as_asked(task, share):
    _, state = scene(task, share, stages=MERGED)
    census = take_census(state.slots)
    cells = chosen_cells(E, 3, share, SEED)
    assert sorted(cells[cells >= 0].tolist()) == list(range(round(share * E * 3)))
    assert ((cells >= 0) == census.within(MERGED)).all() and ((cells < 0) == census.within((Stage.DORMANT,))).all()
    for found, choices in ((census.stage, MERGED), (census.blend, (Blend.LINEAR, Blend.GATED))):
        held = Counter(found[cells >= 0].tolist())
        assert max(held[choice] for choice in choices) - min(held[choice] for choice in choices) <= 1
    assert share < 1.0 or set(census.blueprint.flat) == set(range(len(task.blueprints)))
    drawn = (state.seeds.params != 0).any(1)
    assert torch.equal(drawn, torch.from_numpy((cells >= 0).any(1)))


def test_a_permanent_seed_is_the_same_module_in_a_plain_network(task):
    """With the same numbers and no clipping, slots and modules of the host train to the same losses."""
    same = {"host_clip": float("inf"), "seed_clip": float("inf"), "seed_lr": 0.01, "host_lr": 0.01}
    same |= {"host_weight_decay": 0.0, "seed_weight_decay": 0.0, "precision": Precision.FLOAT64}
    for kind in (0, len(task.blueprints) - 1):
        engine = esper.make(task, E, compile=False, **same)
        state = seeded(engine, 1.0, Seeds((kind,), (Stage.FOSSILIZED,), (Blend.LINEAR,)), SEED)
        bare = plain_task(task, task.settings["slots"], task.blueprints[kind])
        plain = esper.make(bare, E, compile=False, **same)
        rows, network = [], engine.network
        own = state.host.params.split([stage.layout.size for stage in network.host.blocks], dim=1)
        for index, row in enumerate(own):
            seeds = [
                state.seeds.params[:, network.offsets[slot] : network.offsets[slot] + network.layouts[slot][kind].size]
                for slot in network.slots_after(index)
            ]
            rows += [row, *seeds]
        begun = plain.init(SEED)
        begun = begun.replace(host=begun.host.replace(params=torch.cat(rows, dim=1)))
        losses = [
            train_epoch(e.network, e.hypers, s, make_plan(e.network, s.slots), e.data)[1].loss
            for e, s in ((engine, state), (plain, begun))
        ]
        torch.testing.assert_close(*losses, rtol=1e-9, atol=0)


def test_modules_of_a_plain_network_cost_what_seeds_cost(task):
    """The counts of a slot's case and of its plain one are equal: what differs in time is the slot itself."""
    bench = Bench(task, torch.device("cpu"), Precision.FLOAT32, compile=False)
    table = cases_of(task)
    for name in [name.removeprefix("slot-") for name in table if name.startswith("slot-")]:
        slot, plain = (table[f"{kind}-{name}"] for kind in ("slot", "plain"))
        assert slot.work(slot.prepare(bench, 2)).flops == plain.work(plain.prepare(bench, 2)).flops
