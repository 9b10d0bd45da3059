import importlib.util
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import esper
from esper.kasmina.cnn import cnn_host
from esper.kasmina.conv_blueprints import CONV_BLUEPRINTS
from esper.runtime import debug
from esper.tezzeret import choose
from esper.tezzeret.fallback import FALLS_BACK
from esper.tezzeret.inductor import compiled
from esper.tolaria.synthetic import synthetic
from esper.tolaria.training import sample_indices
from esper.utils import rng

# every step function checks that it writes into none of its arguments; ESPER_DEBUG=0 turns that off
debug.switch(os.environ.get("ESPER_DEBUG", "1") == "1")


def pytest_collection_modifyitems(config, items):
    """The large counts wait until they are asked for."""
    if "large" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("large")])
        items[:] = [item for item in items if not item.get_closest_marker("large")]


settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


@pytest.fixture(scope="session")
def small_task() -> esper.Task:
    """A task small enough for many steps a second: three sites of three widths, all blueprints."""
    dataset = synthetic((1, 8, 8), num_classes=4, num_train=48, num_val=30, noise=0.7)
    host = cnn_host((1, 8, 8), 4, num_blocks=3, base_channels=2, pool_blocks=1)
    settings = {
        "slots": (0, 1, 2),
        "batch_size": 8,
        "steps_per_epoch": 2,
        "eval_batch_size": 16,
        "horizon": 12,
        "host_lr": 0.05,
        "seed_lr": 0.05,
        "embargo_epochs": 1,
        "min_training_epochs": 1,
        "min_blending_epochs": 1,
        "blend_epochs": 2,
        "min_improvement": -100.0,
        "min_contribution": -100.0,
        "min_gradient_ratio": 0.0,
    }
    return esper.Task("small", host, CONV_BLUEPRINTS, dataset, settings)


@pytest.fixture(scope="module")
def bench_module():
    """Imports a module of bench/ by name; the folder is no part of the installed package."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "bench"}
    folder = Path(__file__).resolve().parents[1] / "bench"
    spec = importlib.util.spec_from_file_location(
        "bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["bench"] = importlib.util.module_from_spec(spec)
    yield lambda name: importlib.import_module(f"bench.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "bench"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope="session")
def with_bad_row():
    """(engine, state, victims, value) -> the engine with a sample of each victim's next epoch broken that nobody else
    draws in it.
    """

    def run(engine, state, victims, value):
        drawn = sample_indices(engine.config, state, engine.data.train.size).flatten(1)
        inputs, others = engine.data.train.inputs.clone(), set(drawn[~victims].flatten().tolist())
        for rows in drawn[victims].tolist():
            inputs[next(row for row in rows if row not in others), 0, 1, 1] = value
        return replace(engine, data=engine.data._replace(train=engine.data.train._replace(inputs=inputs)))

    return run


LIKING = torch.tensor([0.0, 0.0, 2.0, -3.0, 1.0, -3.0, 0.0])
"""By operation: culling and changing rarely, so that seeds live long enough to reach every stage."""


@pytest.fixture(scope="session")
def walk():
    """(engine, seed, length, state=None) -> the states of a random legal walk, and its actions."""

    def run(engine, seed, length, state=None):
        states, actions = [engine.init(seed) if state is None else state], []
        for _ in range(length):
            mask, op = engine.mask(states[-1]), engine.codec.op
            alike = (mask.unsqueeze(2) & (op.unsqueeze(1) == op)).sum(1)
            keys = rng.fold_in(rng.fold_in(rng.key(seed), torch.arange(mask.shape[0])), states[-1].rounds)
            actions.append(rng.categorical(keys, torch.where(mask, LIKING[op] - alike.log(), -torch.inf)))
            states.append(engine.step(states[-1], actions[-1])[0])
        return states, actions

    return run


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The sizes here are tiny: threads cost more than they give, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_global_randomness():
    """Nothing may draw from torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "torch's global generator was used"


@pytest.fixture
def kernels_may_fail():
    """A test that asks for this lets kernels fail."""


@pytest.fixture(autouse=True)
def _no_kernel_fails_unnoticed(request):
    """What a kernel cannot do, the definition does: a fault of it must show nevertheless."""
    seen, handler = [], logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    handler.addFilter(lambda record: FALLS_BACK in record.getMessage())
    logging.getLogger("esper").addHandler(handler)
    yield
    logging.getLogger("esper").removeHandler(handler)
    assert not seen or "kernels_may_fail" in request.fixturenames, seen


SHIPPED = dict(choose.AUTO)
"""What ``auto`` tries, as it is outside of tests."""


TRIAL = compiled.trial


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_compiled_unasked():
    """Inductor takes a minute to start: a test that wants it names it; ``auto`` goes on to the definition here, and
    nothing is built on trial.
    """
    for key, names in SHIPPED.items():
        choose.AUTO[key] = tuple(name for name in names if name != "inductor")
    compiled.trial = lambda device, program: None
    yield
    choose.AUTO.update(SHIPPED)
    compiled.trial = TRIAL


@pytest.fixture
def auto_as_shipped(monkeypatch):
    """The table of choices as users have it."""
    monkeypatch.setattr(choose, "AUTO", SHIPPED)
