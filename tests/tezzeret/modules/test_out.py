"""Networks that leave: the same outputs, the same further training, nothing of Esper in them; and the way back in."""

import copy

import pytest
import torch
from module_nets import Residuals, descend, drawn, numbers

import esper
from esper.kasmina.counterfactuals import no_changes
from esper.kasmina.slot_table import take_table
from esper.leyline.actions import Blend
from esper.leyline.learners import learners_of
from esper.leyline.stages import MERGED, Stage
from esper.runtime.tasks import TASKS
from esper.tezzeret import eager, modules
from esper.tezzeret.batches import batch_at
from esper.tezzeret.score import infer
from esper.tezzeret.surgery import anatomy_of, learned_of
from esper.tezzeret.surgery.forward import Forward
from esper.tolaria.training import draw_batches
from esper.utils import rng

CPU = torch.device("cpu")
BESIDE = "input:logits"


def grown(engine, seed, stages, kinds):
    """A state whose slots hold what is asked for, by noise on parameters and statistics, in every environment."""
    state, keys = engine.init(seed), rng.split(rng.key(seed), 4)
    shape, dtype = tuple(state.slots.stage.shape), engine.config.precision.dtype
    names = engine.codec.blueprint_names
    row = {
        "stage": torch.tensor([int(stage) for stage in stages]),
        "blueprint": torch.tensor([names.index(kind) if kind else -1 for kind in kinds]),
        "blend": torch.tensor([int(engine.config.blends[-1]) if kind else -1 for kind in kinds]),
    }
    fields = {name: value.expand(shape).clone() for name, value in row.items()}
    merged = torch.isin(fields["stage"], torch.tensor([int(stage) for stage in MERGED]))
    ramp = torch.where(fields["stage"] == int(Stage.FOSSILIZED), 1.0, 0.25 + 0.5 * rng.uniform(keys[0], shape))
    fields["alpha"] = torch.where(merged, ramp, 0.0).to(dtype)
    noise = (0.3 * rng.normal(keys[1], tuple(state.seeds.params.shape))).to(dtype)
    held = state.seed_buffers + rng.uniform(keys[2], tuple(state.seed_buffers.shape)).to(dtype)
    buffers = state.buffers + 0.2 * rng.uniform(keys[3], tuple(state.buffers.shape)).to(dtype)
    return state.replace(
        slots=state.slots.replace(**fields),
        seeds=state.seeds.replace(params=noise),
        seed_buffers=held,
        buffers=buffers,
    )


def engine_of(task, slots, **settings):
    given = {"slots": slots, "precision": "float64", "batch_size": 8, "steps_per_epoch": 50, "val_samples": 20}
    given |= {"host_optimizer": "sgd", "seed_optimizer": "sgd"}
    return esper.make(task, 2, backend="eager", **(given | settings))


def module_task():
    host = esper.host(drawn(Residuals), torch.zeros(2, 1, 8, 8), ("0", "1"))
    task = TASKS["digits"]()
    return task._replace(host=host)


F, B, S, P, T, D = (
    Stage[name] for name in ("FOSSILIZED", "BLENDING", "SHADOWING", "PROBATIONARY", "TRAINING", "DORMANT")
)
CASES = {
    "digits": (
        "digits",
        (0, 0, 0, 0, BESIDE),
        (F, S, B, T, F),
        ("norm", "conv_heavy", "bottleneck", "norm", "conv8x2"),
    ),
    "tokens": ("synthetic_tokens", (0, 0, 0), (F, P, D), ("attention", "mlp", "")),
    "module": ("module", (0, 1), (F, B), ("conv_heavy", "norm")),
}
"""Task, slots, stages and kinds."""


def case(name, **settings):
    task, slots, stages, kinds = CASES[name]
    blends = (Blend.LINEAR,) if task == "module" else (Blend.SIGMOID, Blend.GATED)
    engine = engine_of(module_task() if task == "module" else TASKS[task](), slots, blends=blends, **settings)
    return engine, grown(engine, 3, stages, kinds)


@pytest.fixture(scope="module", params=["digits", "module", pytest.param("tokens", marks=pytest.mark.large)])
def both(request):
    """An engine, a state, and the network of environment 1; the state keeps its bits."""
    engine, state = case(request.param)
    before = state.clone()
    found = modules.export(engine.structure, state, 1)
    assert bool((state == before).all())
    return engine, state, found


class Flat(torch.nn.Module):
    """Logits of all positions side by side."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).flatten(0, -2)


def outputs_of(engine, state, x):
    structure, table = engine.structure, take_table(state.slots)
    learners, alphas, wanted = learners_of(state), state.slots.alpha, no_changes(table.stage.shape[1])
    plan = eager.plan(structure, table, CPU)
    tree, rows = eager.prepare(structure, engine.hypers, plan, learners, alphas, wanted)
    return infer(structure, tree, rows, x.expand(2, *x.shape))


def test_outputs_are_the_environments_own(both):
    engine, state, export = both
    for size in (1, 2, 7, 64):
        x = engine.data.test.inputs[torch.arange(size) % engine.data.test.size]
        wanted = outputs_of(engine, state, x)[1]
        for written in (export.whole, export.folded):
            with torch.no_grad():
                torch.testing.assert_close(written.module.eval()(x), wanted, rtol=0, atol=1e-9)


def test_further_training_is_the_environments_own(both):
    """50 steps; gradients stop where the life cycle stops them, and alphas stay."""
    engine, state, export = both
    structure, plan = engine.structure, eager.plan(engine.structure, take_table(state.slots), CPU)
    batches, learners = draw_batches(engine.config, state, engine.data), learners_of(state)
    pairs, losses = [], []
    for step in range(50):
        batch = batch_at(structure, batches, step)
        learners, seen = engine.backend.minibatch_step(engine.hypers, plan, learners, state.slots.alpha, batch)
        pairs.append((batch.inputs[1], batch.targets[1]))
        losses.append(float(seen.loss[1]))
    network = copy.deepcopy(export.whole.module).train()
    named = dict(network.named_parameters())
    groups = [[p for n, p in named.items() if not n.startswith("slot")]]
    groups += [[p for n, p in named.items() if n.startswith(f"slot{s}.")] for s in range(len(structure.slots))]
    groups = [group for group in groups if group]
    found = descend(Flat(network), groups, [(x, y.flatten()) for x, y in pairs], numbers(engine))
    assert found == pytest.approx(losses, abs=1e-9)
    state = state.replace(host=state.host.replace(params=learners.host.params), buffers=learners.buffers)
    state = state.replace(seeds=state.seeds.replace(params=learners.seeds.params), seed_buffers=learners.seed_buffers)
    x = engine.data.test.inputs[:9]
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), outputs_of(engine, state, x)[1], rtol=0, atol=1e-9)


def test_nothing_of_esper_is_in_it(both):
    export = both[2]
    for written in (export.whole, export.folded):
        assert not [part for part in written.module.modules() if type(part).__module__.startswith("esper")]
        assert "esper" not in written.source and "import esper" not in written.source
        program = torch.export.export(written.module.eval(), (export.example,))
        spaces = {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}
        assert spaces <= {"aten", "<built-in function getitem>"}, spaces


@pytest.mark.parametrize("both", ["module"], indirect=True)
def test_what_can_be_folded_is(both):
    export = both[2]
    assert "slot0.alpha" not in export.whole.module.state_dict()  # alpha 1: what it gives is the features
    assert "slot1.alpha" in export.whole.module.state_dict()
    assert export.norms == 6  # of the stem, of two blocks, and of the way around the second
    assert "batch_norm" in export.whole.source and "batch_norm" not in export.folded.source


@pytest.mark.parametrize("both", ["module"], indirect=True)
def test_a_network_is_a_host_again_and_goes_on_growing(both):
    """Slots sit where they sat. What was drawn from the first growth is the start of the second."""
    engine, state, export = both
    host = esper.host(copy.deepcopy(export.whole.module), engine.data.test.inputs[:4], ("sites.block0", "sites.block1"))
    assert host.sites == engine.structure.host.sites
    again = engine_of(TASKS["digits"]()._replace(host=host), (0, BESIDE))
    x, start = engine.data.test.inputs[:5], again.init(0)
    wanted = outputs_of(engine, state, x)[1]
    torch.testing.assert_close(outputs_of(again, start, x)[1], wanted, rtol=0, atol=1e-9)
    new = grown(again, 4, (F, F), ("norm", "conv4x2"))
    with torch.no_grad():
        found = again.network_of(new, 1).eval()(x)
    torch.testing.assert_close(found, outputs_of(again, new, x)[1], rtol=0, atol=1e-9)


@pytest.mark.large
@pytest.mark.parametrize("both", ["digits"], indirect=True)
def test_a_network_with_a_way_around_all_of_it_has_room_beside_it(both):
    engine, state, export = both
    host = esper.host(copy.deepcopy(export.whole.module), engine.data.test.inputs[:4])
    assert not host.sites and list(host.points) == ["input", "logits"]
    again = engine_of(TASKS["digits"]()._replace(host=host), (BESIDE,))
    x = engine.data.test.inputs[:5]
    wanted = outputs_of(engine, state, x)[1]
    torch.testing.assert_close(outputs_of(again, again.init(0), x)[1], wanted, rtol=0, atol=1e-9)


def test_no_such_environment_is_an_error():
    engine, state = case("digits")
    with pytest.raises(IndexError, match="env = 2: expected 0 to 1"):
        engine.network_of(state, 2)


@pytest.mark.parametrize("kind", [blueprint.name for blueprint in TASKS["digits"]().blueprints])
def test_what_grew_is_a_host_whose_layers_can_change(kind):
    """Fossils of every kind leave as operations that a graph can say; its outputs are the environment's."""
    task = TASKS["digits"]()
    is_bypass = next(each.is_bypass for each in task.blueprints if each.name == kind)
    engine = engine_of(task, (BESIDE if is_bypass else 0,))
    state, x = grown(engine, 3, (F,), (kind,)), engine.data.test.inputs[:4]
    network = modules.export(engine.structure, state, 1).whole.module
    host = esper.host(copy.deepcopy(network), x)
    body = anatomy_of(host)
    learners = learners_of(engine_of(task._replace(host=host), ()).init(0))
    named = learned_of(host, learners)
    with torch.no_grad():
        found = Forward(body.graph)(named.params, named.buffers, x.expand(2, *x.shape)).output[1]
        wanted = network.train()(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
