"""The memory formula: exact where it speaks of the state, by hand where it speaks of maps."""

import pytest
import torch

import esper
from esper.bench import memory
from esper.bench.case import SEED
from esper.bench.memory import MAPS, layer_maps, state_bytes
from esper.bench.scenes import Seeds, seeded
from esper.kasmina.conv_blueprints import ATTENTION as SQUEEZE
from esper.kasmina.conv_blueprints import BOTTLENECK, CONV_HEAVY, DEPTHWISE, NORM
from esper.kasmina.plan import take_census
from esper.kasmina.site import conv_site, token_site
from esper.kasmina.token_blueprints import ATTENTION, LORA, MLP
from esper.leyline.actions import Blend
from esper.leyline.config import Optimizer, Precision
from esper.leyline.stages import Stage

E = 4
STRUCTURES = [
    {},
    {"slots": ()},
    {"slots": (0, 2), "blends": (Blend.LINEAR,)},
    {"host_optimizer": Optimizer.ADAM, "precision": Precision.FLOAT64},
    {"seed_optimizer": Optimizer.ADAM, "history": 9, "loss_window": 7},
]


@pytest.mark.parametrize("task", ["small", "digits", "chars"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_state_bytes_are_those_of_a_state(small_task, task, structure):
    if task != "small" and 2 in structure.get("slots", ()):
        structure = structure | {"slots": (0, 0)}
    engine = esper.make(small_task if task == "small" else task, E, compile=False, **structure)
    held = sum(leaf.nbytes for leaf in engine.init(0).values(include_nested=True, leaves_only=True))
    assert held == E * state_bytes(engine)


@pytest.mark.parametrize(
    ("blueprint", "site", "maps"),
    [
        (NORM, conv_site(4, 3, 5), 0),
        (SQUEEZE, conv_site(8, 3, 5), 2 + 8),
        (DEPTHWISE, conv_site(8, 3, 5), 15 * (8 + 8)),
        (CONV_HEAVY, conv_site(4, 3, 5), 15 * (4 + 4)),
        (BOTTLENECK, conv_site(4, 3, 5), 15 * (8 + 8 + 4)),
        (LORA, token_site(6, 16), 6 * (8 + 16)),
        (MLP, token_site(6, 16), 6 * (64 + 16)),
        (ATTENTION, token_site(6, 16), 6 * (48 + 16)),
    ],
)
def test_maps_of_a_blueprint(blueprint, site, maps):
    """Outputs of its matrices and kernels, by hand."""
    assert layer_maps(blueprint.layout(site), blueprint.flops(site), site) == maps


def test_a_dormant_host_by_hand(small_task):
    """Three convolutions on 8x8, 4x4, 4x4 and a head of 4; batch 8, validation batch 16."""
    engine = esper.make(small_task, E, compile=False)
    census = take_census(engine.init(0).slots)
    maps = [2 * 64, 4 * 16, 8 * 16, 4]
    kept = [2 * sum(maps[: i + 1]) + 2 * maps[i] for i in range(4)]
    assert memory.training_bytes(engine, census) == pytest.approx(4 * 8 * max(kept))
    alive = [64 + 128 + 32, 32 + 64 + 64, 64 + 128 + 128, 128 + 4 + 2 * 4]
    weights = engine.network.host.num_params
    assert memory.evaluation_bytes(engine, census) == pytest.approx(4 * (16 * max(alive) + weights))


def test_a_dormant_language_host_by_hand():
    """Embeddings and a tied head: the logits, behind the last stage and once more for their losses, are the most."""
    engine = esper.make("chars", E, compile=False)
    census = take_census(engine.init(0).slots)
    logits, site, samples = 16 * engine.data.num_classes, 16 * 32, 64
    assert memory.training_bytes(engine, census) == pytest.approx(4 * 32 * 4 * logits)
    weights = engine.network.host.num_params + engine.data.num_classes * 32
    assert memory.evaluation_bytes(engine, census) == pytest.approx(4 * (samples * (site + 3 * logits) + weights))


def test_one_seed_by_hand():
    """A bottleneck in every last slot of the digits: what it keeps, and its backward as the peak."""
    engine = esper.make("digits", E, compile=False, slots=(0,))
    kind = [b.name for b in engine.network.blueprints].index("bottleneck")
    census = take_census(seeded(engine, 1.0, Seeds((kind,), (Stage.FOSSILIZED,), (Blend.LINEAR,)), SEED).slots)
    conv, site, inner, head = 4 * 64, 4 * 16, 16 * 16, 10
    before = MAPS.layer * conv + MAPS.slot * site + MAPS.layer * inner
    places = (4 * conv, before + MAPS.backward * site, before + 2 * MAPS.layer * head)
    size = max(layout.size for layout in engine.network.layouts[0])
    assert memory.training_bytes(engine, census) == pytest.approx(4 * (64 * max(places) + 2 * size))
    rows = max(MAPS.rows * site, 3 * site + MAPS.inner * inner)
    held = engine.network.host.num_params + engine.network.host.blocks[1].layout.size + size
    assert memory.evaluation_bytes(engine, census) == pytest.approx(4 * (360 * (2 * MAPS.lanes * site + rows) + held))


def test_steps_hold_their_state_and_the_larger_peak(small_task):
    engine = esper.make(small_task, E, compile=False)
    for share in (0.0, 1.0):
        state = seeded(engine, share, Seeds((5,), (Stage.FOSSILIZED,), (Blend.LINEAR,)), SEED)
        census = take_census(state.slots)
        changed = (
            state.host
            if share == 0
            else torch.cat([torch.cat([b.params, b.moments.flatten(1)], 1) for b in (state.host, state.seeds)], 1)
        )
        kept = changed.nbytes if share else state.host.params.nbytes + state.host.moments.nbytes
        after = kept / E + memory.evaluation_bytes(engine, census)
        expected = memory.state_bytes(engine) + max(after, memory.training_bytes(engine, census))
        assert memory.step_memory(engine, census) == pytest.approx(expected)
