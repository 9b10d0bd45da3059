"""The compiled backend against the definition: the same numbers, and nothing compiled twice."""

import pytest
import torch
import torch._dynamo

import esper
from esper.bench.meter import compilations
from esper.engine import Engine
from esper.leyline.config import Isolation
from esper.runtime.tasks import named
from esper.tezzeret.compiler import find_compiler
from esper.tezzeret.inductor import store
from esper.tezzeret.inductor.graph import build_graph
from esper.tezzeret.inductor.unit_calls import UnitCalls, build_units
from esper.utils import rng
from esper.utils.compilations import LEDGER

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


def play(fast: Engine, exact: Engine, steps: int) -> list[int]:
    """Steps from the same states on both sides; the number of compilations in each."""
    state, seen = fast.init(3), []
    for step in range(steps):
        action = random_legal(fast, state, step)
        with compilations() as counted:
            after, event = fast.step(state, action)
        wanted, other = exact.step(state, action)
        for name in ("host", "seeds"):
            torch.testing.assert_close(after.get(name).get("params"), wanted.get(name).get("params"), **CLOSE)
        torch.testing.assert_close(event.epoch.loss, other.epoch.loss, **CLOSE)
        torch.testing.assert_close(event.evaluation.loss, other.evaluation.loss, **CLOSE)
        state = after
        seen.append(counted[0])
    return seen


@pytest.mark.compiled
@pytest.mark.skipif(find_compiler() is None, reason="Inductor needs a C++ compiler on a CPU")
@pytest.mark.parametrize(
    ("name", "blueprints"), [("digits_v1", ("norm", "conv_light")), ("synthetic_tokens", ("norm", "lora"))]
)
def test_compiled_units_equal_the_definition_and_compile_once(name, blueprints, monkeypatch, tmp_path):
    monkeypatch.setenv(store.CACHE, str(tmp_path))
    exact = esper.make(task(name, blueprints), 5, backend="eager", **LENIENT)
    seen = {}
    LEDGER.since_told()
    for start in ("cold", "warm"):
        fast = Engine(exact.structure, build_units(exact.structure), exact.hypers, exact.data)
        seen[start] = play(fast, exact, 12)
        assert fast.backend.describe() == ("inductor: every block, seed, gate and step one compiled function",)
        told = LEDGER.since_told()
        assert told["compilations_units"] == sum(seen[start]) and told["compilations_graphs"] == 0
        assert (told["compilation_seconds_units"] > 0) == (start == "cold")
        looked_up = told["cache_misses_units"], told["cache_hits_units"]
        assert looked_up[start == "warm"] >= sum(seen["cold"]) and (start == "cold" or looked_up[0] == 0)
    kept = list(store.folder().glob("*.npz"))
    assert sum(seen["cold"]) == len(kept) > 10 and sum(seen["warm"]) == 0
    kept[0].write_bytes(b"")  # what is damaged is made again, and it alone
    again = Engine(exact.structure, build_units(exact.structure), exact.hypers, exact.data)
    assert sum(play(again, exact, 12)) == 1


@pytest.mark.parametrize(
    ("build", "isolation"), [(build_units, Isolation.OBJECTIVE), (build_graph, Isolation.STRAIGHT_THROUGH)]
)
def test_every_way_of_compiling_traces_whole_once(build, isolation):
    """What is compiled is run as it stands: which graphs there are, not what Inductor makes of them."""
    settings = LENIENT | {"isolation": isolation}
    exact = esper.make(task("digits_v1", ("norm", "conv_small")), 4, backend="eager", **settings)
    fast = Engine(exact.structure, build(exact.structure, "eager"), exact.hypers, exact.data)
    torch._dynamo.reset()
    seen = play(fast, exact, 8)
    assert len(fast.backend.describe()) == 1
    if build is build_graph:
        assert seen[0] == 2 and sum(seen) == 2
    else:
        held = [cell.cell_contents for cell in fast.backend.watched_epoch.__wrapped__.__closure__]
        (calls,) = (each for each in held if isinstance(each, UnitCalls))
        assert sum(seen) == len(calls.functions)
