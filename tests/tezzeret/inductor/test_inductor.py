"""The compiled backend against the definition: the same numbers, and nothing compiled twice."""

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import compilation_time_metrics

import esper
from esper.engine import Engine
from esper.leyline.config import Isolation
from esper.runtime.tasks import named
from esper.tezzeret.compiler import find_compiler
from esper.tezzeret.inductor.graph import build_graph
from esper.tezzeret.inductor.unit_calls import build_units
from esper.utils import rng

LENIENT = {
    "min_training_epochs": 1,
    "min_improvement": -100.0,
    "min_contribution": -100.0,
    "min_gradient_ratio": 0.0,
    "blend_epochs": 2,
    "min_blending_epochs": 1,
    "embargo_epochs": 1,
    "steps_per_epoch": 2,
    "batch_size": 8,
}
CLOSE = {"rtol": 0, "atol": 5e-5}


def task(name: str, blueprints: tuple[str, ...]) -> esper.Task:
    whole = named(name)
    few = {part: getattr(whole.data, part).take(slice(40)) for part in ("validation", "test")}
    kept = tuple(b for b in whole.blueprints if b.name in blueprints)
    return whole._replace(blueprints=kept, data=whole.data._replace(**few))


def random_legal(engine: Engine, state: esper.State, step: int) -> torch.Tensor:
    keys = rng.fold_in(rng.key(5), step, torch.arange(engine.config.num_envs))
    return rng.categorical(keys, torch.where(engine.mask(state), 0.0, -torch.inf))


def compilations() -> int:
    return len(compilation_time_metrics.get("_compile.compile_inner", []))


def play(fast: Engine, exact: Engine, steps: int) -> list[int]:
    """Steps from the same states on both sides; the number of compilations after each."""
    state, seen = fast.init(3), []
    for step in range(steps):
        action = random_legal(fast, state, step)
        after, event = fast.step(state, action)
        wanted, other = exact.step(state, action)
        for name in ("host", "seeds"):
            torch.testing.assert_close(after.get(name).get("params"), wanted.get(name).get("params"), **CLOSE)
        torch.testing.assert_close(event.epoch.loss, other.epoch.loss, **CLOSE)
        torch.testing.assert_close(event.evaluation.loss, other.evaluation.loss, **CLOSE)
        state = after
        seen.append(compilations())
    return seen


@pytest.mark.compiled
@pytest.mark.skipif(find_compiler() is None, reason="Inductor needs a C++ compiler on a CPU")
@pytest.mark.parametrize(
    ("name", "blueprints"), [("digits_v1", ("norm", "conv_light")), ("synthetic_tokens", ("norm", "lora"))]
)
def test_compiled_units_equal_the_definition_and_compile_once(name, blueprints):
    fast, exact = (esper.make(task(name, blueprints), 5, backend=b, **LENIENT) for b in ("inductor", "eager"))
    before = compilations()
    seen = play(fast, exact, 20)
    functions = fast.backend.epoch.__wrapped__.keywords["call"].functions
    assert seen[-1] - before == len(functions) > 10


@pytest.mark.parametrize(
    ("build", "isolation"), [(build_units, Isolation.OBJECTIVE), (build_graph, Isolation.STRAIGHT_THROUGH)]
)
def test_every_way_of_compiling_traces_whole_once(build, isolation):
    """What torch.compile traces is run as it stands: which graphs there are, not what Inductor makes of them."""
    settings = LENIENT | {"isolation": isolation}
    exact = esper.make(task("digits_v1", ("norm", "conv_small")), 4, backend="eager", **settings)
    fast = Engine(exact.structure, build(exact.structure, "eager"), exact.hypers, exact.data)
    torch._dynamo.reset()
    before = compilations()
    seen = play(fast, exact, 8)
    if build is build_graph:
        assert seen[0] - before == 2 and seen[-1] == seen[0]
    else:
        assert seen[-1] - before == len(fast.backend.epoch.__wrapped__.keywords["call"].functions)
